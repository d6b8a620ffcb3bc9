from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_runtime.clocks.base import POWER_CAP
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.types import StepShape
from beamprof.tables.check import TableCheck, check_table
from beamprof.tables.compare import compare_tables
from beamprof.tables.importers import ImportOverrides, importer
from beamprof.tables.leave_one_out import between_clocks, errors_by_clock
from beamprof.tables.noise import OUTLIER_LATENCY, outliers, residuals
from beamprof.tables.table_file import seal_table

SHIPPED = sorted((Path(__file__).parents[3] / "tables").rglob("*.parquet"))
CELL = {"prefill_tokens": 0, "decode_requests": 64, "decode_context_tokens": 64 * 2048}
STEP = StepShape(0, 0, 64, 64 * 2048)


def plant(rows: list[dict[str, Any]], factor: float, field: str, **where: int) -> None:
    """Multiply a field of the rows that match; at least one must."""
    hit = [
        row
        for row in rows
        if row["kind"] == "forward" and all(row[key] == value for key, value in where.items())
    ]
    assert hit
    for row in hit:
        row[field] *= factor


def said(found: TableCheck, name: str) -> bool | None:
    return next(finding.ok for finding in found.findings if finding.name == name)


def no(found: TableCheck) -> list[str]:
    return [finding.name for finding in found.findings if finding.ok is False]


def test_sound_table_drives_a_controller(sound):
    found = check_table(sound)
    assert found.drivable, no(found)
    assert found.holes == found.outliers == found.rises == ()
    assert found.latency_noise.sigma < 1e-3
    assert found.held_out is not None
    # The planted physics is StepCost's own form, so mixed cells must be predicted almost exactly.
    assert found.held_out.latency_mape < 1e-3
    assert found.held_out.rows == 2 * 9


@pytest.mark.parametrize("field", ["latency_ms", "energy_j"])
def test_planted_outlier_is_found_where_it_is(rows, seal, field):
    plant(rows, 1.4, field, clock_mhz=930, **CELL)
    found = check_table(seal(rows))
    assert not found.drivable
    assert [(o.cell, o.clock_mhz, o.field) for o in found.outliers] == [(STEP, 930, field)]
    assert found.outliers[0].off == pytest.approx(0.4, abs=0.03)


@settings(max_examples=25)
@given(
    line=st.integers(0, 27),
    column=st.integers(0, 8),
    factor=st.one_of(st.floats(1.5, 3.0), st.floats(0.3, 0.65)),
)
def test_any_single_outlier_is_found(sound_grid, line, column, factor):
    grid = sound_grid()
    values = grid.latency_ms.copy()
    values[line, column] *= factor
    found = outliers(
        grid, "latency_ms", values, residuals(values, grid.clocks_mhz), OUTLIER_LATENCY
    )
    assert [(o.cell, o.clock_mhz) for o in found] == [
        (grid.cells[line], int(grid.clocks_mhz[column]))
    ]


def test_latency_that_rises_with_the_clock(rows, seal):
    plant(rows, 1.6, "latency_ms", clock_mhz=1260, **CELL)
    plant(rows, 1.6, "latency_ms", clock_mhz=1410, **CELL)
    found = check_table(seal(rows))
    assert said(found, "rising latency") is False
    assert found.rises[0].cell == STEP
    assert (found.rises[0].from_mhz, found.rises[0].to_mhz) == (1110, 1260)


def test_small_rises_at_the_power_cap_are_forgiven(rows, seal):
    plant(rows, 1.08, "latency_ms", clock_mhz=1410, **CELL)
    found = check_table(seal(rows))
    assert len(found.rises) <= 1
    assert said(found, "rising latency") is True


def test_latency_that_falls_with_tokens(rows, seal):
    plant(rows, 0.5, "latency_ms", **CELL)  # at every clock: no outlier, and none along the clock
    found = check_table(seal(rows))
    assert said(found, "latency by tokens") is False
    assert said(found, "rising latency") is said(found, "outliers") is True
    assert not found.drivable
    assert found.falls[0].cell == STEP
    assert found.falls[0].smaller.tokens < STEP.tokens
    assert found.falls[0].by < -0.1


def test_small_falls_with_tokens_are_told_and_forgiven(rows, seal):
    shape = {"prefill_tokens": 0, "decode_requests": 16, "decode_context_tokens": 16 * 512}
    plant(rows, 0.85, "latency_ms", **shape)
    found = check_table(seal(rows))
    assert found.falls
    assert said(found, "latency by tokens") is True


def test_holes_are_named_and_many_are_too_many(rows, seal):
    one = [r for r in rows if not (r["clock_mhz"] == 840 and r["decode_requests"] == 16)]
    found = check_table(seal(one))
    assert {cell.decode_requests for cell, _ in found.holes} == {16}
    assert {clock for _, clock in found.holes} == {840}
    assert said(found, "holes") is True
    many = [r for r in rows if not (r["clock_mhz"] in (840, 930) and r["decode_requests"] >= 16)]
    assert said(check_table(seal(many)), "holes") is False


def test_a_ragged_table_is_judged_all_the_same(rows, seal):
    # One cell alone knows 1410 MHz, and only one other clock: its neighbours cannot be asked.
    ragged = [
        row
        for row in rows
        if row["clock_mhz"] < 1410
        or (row["decode_requests"] == 8 and row["decode_context_tokens"] == 8 * 512)
    ]
    ragged = [r for r in ragged if r["decode_requests"] != 8 or r["clock_mhz"] in (510, 1410)]
    found = check_table(seal(ragged))
    assert (StepShape(0, 0, 64, 64 * 2048), 1410) in found.holes
    assert said(found, "holes") is False
    assert said(found, "clock outlier") is True


def test_a_clock_that_was_never_set(rows, seal):
    plant(rows, 1.5, "latency_ms", clock_mhz=930)
    found = check_table(seal(rows))
    assert said(found, "clock outlier") is False
    worst = max(found.by_clock, key=lambda fold: fold.error.latency_mape)
    assert worst.clock_mhz == 930
    # All cells share the fault, so along the clock axis it looks like physics, not like outliers.
    assert found.outliers == ()


def test_few_clocks_are_too_few_where_energy_bends(rows, seal):
    # Three clocks around a minimum of energy: straight lines between them miss it by far.
    for row in rows:
        row["energy_j"] *= 1 + 4 * ((row["clock_mhz"] - 960) / 450) ** 2
    three = [row for row in rows if row["clock_mhz"] in (510, 930, 1410)]
    assert said(check_table(seal(three)), "between clocks") is False
    assert said(check_table(seal(rows)), "between clocks") is True


def test_expected_error_between_clocks_is_near_the_truth(measured_csvs):
    """Thin a measured table to 9 clocks: the error at the other 22 must be as expected."""
    for path in measured_csvs:
        imported = importer("beam-artifact")(path, ImportOverrides())
        whole = seal_table(imported.columns, imported.metadata)
        nine = np.isin(
            whole.columns["clock_mhz"], (510, 630, 750, 870, 960, 1050, 1170, 1290, 1410)
        )
        thin = seal_table({k: v[nine] for k, v in whole.columns.items()}, whole.metadata)
        expected = between_clocks(errors_by_clock(thin))
        truth = compare_tables(thin, whole).interpolated
        assert expected is not None
        assert truth is not None
        assert 0.5 < expected.latency / truth.latency_mape < 1.5, path.name
        assert 0.5 < expected.energy / truth.energy_mape < 1.5, path.name


def test_a_cell_that_is_wrong_at_every_clock(rows, seal):
    plant(rows, 1.5, "latency_ms", **CELL)
    by_cell = check_table(seal(rows)).by_cell
    worst = max(by_cell, key=lambda fold: fold.error.latency_mape)
    assert worst.cell == STEP
    assert worst.error.latency_bias == pytest.approx(1 / 1.5 - 1, abs=0.05)


def test_mixed_cells_that_the_fit_does_not_predict(rows, seal):
    plant(rows, 1.2, "latency_ms", prefill_tokens=100)
    plant(rows, 1.2, "latency_ms", prefill_tokens=200)
    found = check_table(seal(rows))
    assert no(found) == ["held-out mixed cells"]
    assert found.held_out is not None
    assert found.held_out.latency_bias == pytest.approx(1 / 1.2 - 1, abs=0.01)


def test_one_clock_is_nothing_to_choose_from(rows, seal):
    found = check_table(seal([row for row in rows if row["clock_mhz"] == 1005]))
    assert said(found, "clocks") is False
    assert said(found, "between clocks") is None
    assert said(found, "clock outlier") is None
    assert said(found, "noise") is None


def test_one_context_does_not_tell_what_context_costs(rows, seal):
    kept = [
        row
        for row in rows
        if row["decode_context_tokens"] == 512 * row["decode_requests"]
        and row["prefill_context_tokens"] == 0
    ]
    assert said(check_table(seal(kept)), "contexts") is False


def test_noise_beyond_what_a_controller_hunts(rows, seal):
    random = np.random.default_rng(7)
    for row in rows:
        row["latency_ms"] *= random.normal(1, 0.08)
    found = check_table(seal(rows))
    assert said(found, "noise") is False
    assert found.latency_noise.sigma == pytest.approx(0.08, rel=0.3)


def test_clocks_not_reached_unless_the_power_cap_says_why(rows, seal):
    for row in rows:
        row["throttle"] = ""
        if row["clock_mhz"] == 1410:
            row["clock_reached_mhz"] = 1300.0
            row["throttle"] = POWER_CAP
    assert said(check_table(seal(rows)), "clock not reached") is True
    for row in rows:
        row["throttle"] = "thermal slowdown" if row["throttle"] else ""
    found = check_table(seal(rows))
    assert said(found, "clock not reached") is False
    assert found.not_reached == 28


def test_wide_confidence_intervals(rows, seal):
    for row in rows:
        row["latency_ci_ms"], row["energy_ci_j"] = row["latency_ms"] / 100, row["energy_j"] / 100
    assert said(check_table(seal(rows)), "confidence") is True
    for row in rows:
        row["latency_ci_ms"] = row["latency_ms"] / 10
    assert said(check_table(seal(rows)), "confidence") is False


def test_published_a100_tables_can_drive_a_controller(measured_csvs):
    for path in measured_csvs:
        imported = importer("beam-artifact")(path, ImportOverrides())
        found = check_table(seal_table(imported.columns, imported.metadata))
        assert found.drivable, (path.name, no(found))
        assert found.not_reached is None
        assert len(found.by_clock) == 29


@pytest.mark.parametrize(
    ("kept", "missing"), [("decode_requests", "prompt"), ("prefill_tokens", "answer")]
)
def test_a_table_of_one_kind_of_steps_drives_no_controller(rows, seal, kept, missing):
    some = [row for row in rows if row["kind"] == "idle" or row[kept] > 0]
    some = [row for row in some if row["kind"] == "idle" or row["prefill_tokens"] * row[
        "decode_requests"] == 0]  # fmt: skip
    found = check_table(seal(some))
    assert no(found) == ["kinds of steps"]
    assert missing in next(f.text for f in found.findings if f.name == "kinds of steps")


def test_passes_that_draw_less_than_waiting_gpus_are_implausible(rows, seal):
    """Energy of one GPU's meter where there were eight: watts that no GPU draws in a pass."""
    plant(rows, 1 / 8, "energy_j")
    found = check_table(seal(rows))
    assert no(found) == ["waiting power"]
    said_so = next(f for f in found.findings if f.name == "waiting power")
    lightest_w = min(
        row["energy_j"] / row["latency_ms"] * 1e3 for row in rows if row["kind"] == "forward"
    )
    assert f"{lightest_w:.0f} W in the lightest pass, 165 W waiting" in said_so.text
    assert "one GPU's meter" in said_so.hint


@pytest.mark.parametrize(("factor", "ok"), [(0.97, True), (0.93, False)])
def test_a_lightest_pass_may_scatter_as_much_as_meters_do(rows, seal, factor, ok):
    for row in rows:
        if row["kind"] == "forward" and row["clock_mhz"] == 930:
            idle_j = next(one["energy_j"] for one in rows if one["kind"] == "idle"
                          and one["clock_mhz"] == 930)  # fmt: skip
            row["energy_j"] = factor * idle_j * row["latency_ms"] / 1e3
    assert said(check_table(seal(rows)), "waiting power") is ok


def test_what_no_idle_row_tells_is_not_judged(rows, seal):
    found = check_table(seal([row for row in rows if row["kind"] != "idle"]))
    assert said(found, "waiting power") is None


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: "/".join(path.parts[-3:]))
def test_shipped_tables_hold_both_and_draw_more_in_passes(path):
    found = check_table(PerfTable.load(path))
    assert said(found, "kinds of steps") and said(found, "waiting power")
