from itertools import pairwise

import pytest

from beamprof.tables.inspect import COVERAGE_COLUMNS, COVERAGE_LINES, RIDGE_LINES, inspect_table


def test_what_a_table_holds(sound):
    view = inspect_table(sound)
    assert (view.model, view.tp, view.pp, view.device) == ("llama3-70b", 2, 4, "a100-sxm4-80gb")
    assert view.sources == ("measured",)
    assert (view.cells, view.idle_rows, view.forward_rows) == (28, 9, 28 * 9)
    assert view.provenance["energy_source"] == "nvml counter"
    assert "origin" not in view.provenance
    assert view.check.drivable


def test_coverage_counts_every_row_once(sound):
    coverage = inspect_table(sound).coverage
    assert sum(map(sum, coverage.rows)) == 28 * 9
    assert len(coverage.tokens) <= COVERAGE_LINES
    assert len(coverage.context_tokens) <= COVERAGE_COLUMNS
    for ranges in (coverage.tokens, coverage.context_tokens):
        assert all(low <= high for low, high in ranges)
        assert all(a[1] < b[0] for a, b in pairwise(ranges))


def test_the_ridge_stands_where_energy_is_least(rows, seal):
    for row in rows:
        # A valley at 930 MHz for batches of up to 64 tokens, at 1110 MHz for larger ones.
        best = 930 if row["prefill_tokens"] + row["decode_requests"] <= 64 else 1110
        row["energy_j"] = 5 + ((row["clock_mhz"] - best) / 400) ** 2
    view = inspect_table(seal(rows))
    assert len(view.ridge) <= RIDGE_LINES
    assert {point.best_clock_mhz for point in view.ridge} == {930, 1110}
    for point in view.ridge:
        assert point.best_clock_mhz == (930 if point.cell.tokens <= 64 else 1110)
        highest = 5 + ((1410 - point.best_clock_mhz) / 400) ** 2
        assert point.energy_saved == pytest.approx(1 - 5 / highest)
        assert point.slowdown > 0
    assert 1 < len(view.frontier) <= 3


def test_idle_power_by_clock(rows, seal):
    view = inspect_table(seal(rows))
    assert {idle.clock_mhz: idle.power_w for idle in view.idle}[510] == pytest.approx(165.1)
    assert len(view.idle) == 9
    assert inspect_table(seal([row for row in rows if row["kind"] == "forward"])).idle == ()


def test_a_table_of_one_clock_can_be_looked_at(rows, seal):
    view = inspect_table(seal([row for row in rows if row["clock_mhz"] == 1410]))
    assert view.clocks_mhz == (1410,)
    assert all(point.energy_saved == 0 for point in view.ridge)
    assert not view.check.drivable
