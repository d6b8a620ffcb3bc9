import json

import numpy as np
import pytest

from beam_runtime.errors import CoverageError, TableError
from beam_runtime.types import Origin, StepShape
from beamprof.errors import AnswerIsNo
from beamprof.models.registry import registry
from beamprof.tables.compare import compare_tables
from beamprof.tables.lookup import lookup_step


def scaled(rows, latency=1.0, energy=1.0):
    return [
        {**row, "latency_ms": row["latency_ms"] * latency, "energy_j": row["energy_j"] * energy}
        for row in rows
        if row["kind"] == "forward"
    ]


def test_a_table_equals_itself(sound):
    found = compare_tables(sound, sound)
    assert found.overall.latency_mape == found.overall.energy_mape == 0
    assert found.skipped_rows == 0
    assert found.interpolated is None
    assert found.shared == found.overall
    assert sum(error.rows for error in found.by_tokens.values()) == found.overall.rows
    assert sum(error.rows for error in found.by_clock.values()) == found.overall.rows


def test_error_and_bias_are_fractions_of_the_reference(rows, seal):
    found = compare_tables(seal(scaled(rows, 1.2, 0.9)), seal(scaled(rows)))
    assert found.overall.latency_mape == pytest.approx(0.2)
    assert found.overall.latency_bias == pytest.approx(0.2)
    assert found.overall.energy_mape == pytest.approx(0.1)
    assert found.overall.energy_bias == pytest.approx(-0.1)


def test_errors_stand_where_they_are(rows, seal):
    wrong = [
        {**row, "latency_ms": row["latency_ms"] * (1.3 if row["clock_mhz"] == 840 else 1.0)}
        for row in scaled(rows)
    ]
    found = compare_tables(seal(wrong), seal(scaled(rows)))
    off = {clock for clock, error in found.by_clock.items() if error.latency_mape > 1e-9}
    assert off == {840}
    assert found.by_clock[840].latency_mape == pytest.approx(0.3)


def test_other_clocks_are_interpolated_and_others_skipped(rows, seal):
    a = seal([row for row in scaled(rows) if row["clock_mhz"] in (630, 840, 1110)])
    b = seal([row for row in scaled(rows) if row["clock_mhz"] in (510, 735, 840)])
    found = compare_tables(a, b)
    assert set(found.by_clock) == {735, 840}
    assert found.shared is not None
    assert found.shared.latency_mape == 0
    assert found.shared.rows == found.interpolated.rows == found.skipped_rows == 28
    # Latency is straight in the clock's period here, so interpolation adds nothing to it.
    assert found.interpolated.latency_mape < 1e-9


def test_other_cells_are_interpolated(rows, seal, row_of):
    asked = [row_of(clock, 0, 0, 48, 48 * 1000) for clock in (510, 1410)]
    found = compare_tables(seal(scaled(rows)), seal(asked))
    assert found.shared is None
    assert found.interpolated.rows == 2
    assert found.overall.latency_mape < 1e-3


def test_nothing_in_common_is_an_answer(rows, seal):
    a = seal([row for row in scaled(rows) if row["clock_mhz"] < 700])
    b = seal([row for row in scaled(rows) if row["clock_mhz"] > 700])
    with pytest.raises(AnswerIsNo) as caught:
        compare_tables(a, b)
    assert caught.value.exit_code == 1


def test_other_layouts_are_refused_unless_forced(rows, seal):
    a, b = seal(rows), seal(rows, tp="4")
    with pytest.raises(TableError, match="tp 2 against 4"):
        compare_tables(a, b)
    assert compare_tables(a, b, force=True).differences == ("tp 2 against 4",)


def test_one_shape_under_two_names_is_one_thing(rows, seal):
    shape = registry()["llama3.3-70b"]
    other = seal(rows, model="llama3.3-70b", model_shape=shape.to_json())
    assert compare_tables(seal(rows), other).differences == ()
    changed = json.loads(shape.to_json()) | {"kv_heads": 16}
    with pytest.raises(TableError, match="kv_heads 8 against 16"):
        compare_tables(seal(rows), seal(rows, model_shape=json.dumps(changed)))


def test_another_device_is_said_not_refused(rows, seal):
    found = compare_tables(seal(rows), seal(rows, device="h200-sxm"))
    assert found.differences == ("device a100-sxm4-80gb against h200-sxm",)


def test_lookup_of_a_measured_pass(sound):
    found = lookup_step(sound, StepShape(0, 0, 64, 64 * 512))
    assert [row.clock_mhz for row in found.rows] == list(sound.clocks_mhz)
    for row in found.rows:
        assert row.origin is Origin.MEASURED
        assert row.measured_latency_ms == pytest.approx(row.latency_ms, rel=1e-3)
        assert row.power_w == pytest.approx(row.energy_j / row.latency_ms * 1e3)
    energies = {row.clock_mhz: row.energy_j for row in found.rows}
    assert found.best_clock_mhz == min(energies, key=energies.__getitem__)
    assert found.edges_tokens == (64, 64)


def test_lookup_between_rows_names_its_neighbours(sound):
    found = lookup_step(sound, StepShape(0, 0, 100, 100 * 800), clock_mhz=900)
    (row,) = found.rows
    assert row.origin is Origin.INTERPOLATED
    assert row.measured_latency_ms is None
    assert row.clocks_below_above_mhz == (840, 930)
    assert found.edges_tokens == (64, 128)


def test_lookup_outside_is_refused_or_marked(sound):
    beyond = StepShape(0, 0, 300, 300 * 512)
    with pytest.raises(CoverageError, match="does not cover") as caught:
        lookup_step(sound, beyond)
    assert caught.value.exit_code == 1
    found = lookup_step(sound, beyond, extrapolate=True)
    assert {row.origin for row in found.rows} == {Origin.EXTRAPOLATED}
    assert found.outside
    assert found.edges_tokens == (256, 256)
    assert np.all(np.diff([row.latency_ms for row in found.rows]) < 0)


def test_clocks_are_never_extrapolated(sound):
    with pytest.raises(CoverageError, match="1500 MHz is outside"):
        lookup_step(sound, StepShape(0, 0, 64, 64 * 512), clock_mhz=1500, extrapolate=True)


def test_nothing_to_look_up(sound):
    with pytest.raises(CoverageError, match="without tokens"):
        lookup_step(sound, StepShape())
