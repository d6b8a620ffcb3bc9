"""StepCost reproduces what its form can express, says when it cannot know, and never clamps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paper_table import paper_table

from beam_runtime.errors import CoverageError, TableError
from beam_runtime.table.cost_fit import held_out
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.schema import RowKind
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import Origin, StepShape
from beamprof.models.registry import registry
from beamprof.tables.table_file import seal_table

CLOCKS_MHZ = (510, 960, 1410)
EDGES_TOKENS = (1, 8, 64, 72, 128, 136, 256)
CELLS = (
    [(tokens, 0, 0, 0) for tokens in EDGES_TOKENS]
    + [(0, 0, b, b * context) for b in (8, 64) for context in (64, 512, 2048)]
    + [(chunk, context, 0, 0) for chunk in (64, 256) for context in (512, 4096)]
    + [(120, 512, 8, 4096)]
)


def staircase_ms(tokens: float) -> float:
    """Flat inside a tile of 128, a step at its edge: straight between the edges above."""
    return float(np.interp(tokens, EDGES_TOKENS, (5.0, 5.1, 5.5, 6.4, 6.5, 9.0, 9.3)))


def true_ms(cell: tuple[int, int, int, int], clock_mhz: float) -> float:
    c, k, b, s = cell
    pairs = c * (k + (c + 1) / 2)
    kernels = -0.2 if c == 0 else 0.15 * (b > 0)
    attention = 2e-6 * pairs + 1e-4 * k + 3e-5 * s + 0.01 * b + kernels
    return (staircase_ms(c + b) + attention) * 1410 / clock_mhz


def true_j(cell: tuple[int, int, int, int], clock_mhz: float) -> float:
    return true_ms(cell, clock_mhz) * 0.2 * clock_mhz / 1410 + 0.3 * true_ms(cell, 1410)


def table(cells=CELLS, clocks_mhz=CLOCKS_MHZ, idle=True, **metadata: str) -> PerfTable:
    return paper_table(
        cells, clocks_mhz, true_ms, true_j, idle_rows=3 * idle, **{"pp": "1"} | metadata
    )


STEPS = st.builds(
    StepShape,
    prefill_tokens=st.integers(0, 190),
    prefill_context_tokens=st.integers(0, 4000),
    decode_requests=st.integers(1, 60),
    decode_context_tokens=st.integers(0, 100_000),
)


@given(STEPS)
def test_it_reproduces_any_step_of_its_own_form(step: StepShape):
    cost = StepCost.from_table(TABLE)
    cell = (
        step.prefill_tokens,
        step.prefill_context_tokens,
        step.decode_requests,
        step.decode_context_tokens,
    )
    expected_ms = [true_ms(cell, clock) for clock in CLOCKS_MHZ]
    expected_j = [true_j(cell, clock) for clock in CLOCKS_MHZ]
    if step.prefill_tokens == 0 and step.prefill_context_tokens:
        return
    np.testing.assert_allclose(cost.latency_ms(step), expected_ms, rtol=1e-6)
    np.testing.assert_allclose(cost.energy_j(step), expected_j, rtol=1e-6)


TABLE = table()


def test_several_chunks_cost_their_pairs_not_the_product_of_sums():
    cost = StepCost.from_table(TABLE)
    one = StepShape(64, 4000)
    two = StepShape(64, 4000, prefill_pairs=32 * (3968 + 16.5) + 32 * (32 + 16.5))
    difference_ms = cost.latency_ms(one) - cost.latency_ms(two)
    expected = 2e-6 * (one.prefill_pairs - two.prefill_pairs)
    np.testing.assert_allclose(difference_ms, expected * 1410 / np.array(CLOCKS_MHZ), rtol=1e-6)


def test_between_clocks_latency_runs_in_the_period():
    cost = StepCost.from_table(TABLE, clocks_mhz=range(510, 1411, 30))
    step = StepShape(128)
    expected = [true_ms((128, 0, 0, 0), clock) for clock in cost.clocks_mhz]
    np.testing.assert_allclose(cost.latency_ms(step), expected, rtol=1e-9)
    with pytest.raises(CoverageError, match="1500 MHz") as caught:
        StepCost.from_table(TABLE, clocks_mhz=[1500])
    assert "--clocks" in caught.value.hint


def test_origin_is_measured_interpolated_or_extrapolated():
    cost = StepCost.from_table(TABLE)
    between = StepCost.from_table(TABLE, clocks_mhz=[600])
    assert cost.predict(StepShape(128)).origin is Origin.MEASURED
    assert between.predict(StepShape(128)).origin is Origin.INTERPOLATED
    assert cost.predict(StepShape(100)).origin is Origin.INTERPOLATED
    for outside in (
        StepShape(300),
        StepShape(64, 5000),
        StepShape(0, 0, 65, 100),
        StepShape(0, 0, 60, 200_000),
    ):
        assert cost.predict(outside).origin is Origin.EXTRAPOLATED
        with pytest.raises(CoverageError, match="over the largest measured"):
            cost.predict(outside, extrapolate=False)


def test_beyond_the_last_edge_it_goes_on_and_does_not_clamp():
    cost = StepCost.from_table(TABLE)
    last, beyond = cost.latency_ms(StepShape(256)), cost.latency_ms(StepShape(512))
    slope_ms = (9.3 - 6.5) / 128
    attention_ms = 2e-6 * (StepShape(512).prefill_pairs - StepShape(256).prefill_pairs)
    expected = (256 * slope_ms + attention_ms) * 1410 / np.array(CLOCKS_MHZ)
    np.testing.assert_allclose(beyond - last, expected, rtol=1e-6)


def test_an_empty_step_costs_nothing():
    assert StepCost.from_table(TABLE).latency_ms(StepShape()).tolist() == [0.0] * 3


def test_idle_power_is_the_median_and_nan_when_unknown():
    assert StepCost.from_table(TABLE).idle_power_w.tolist() == [170.0] * 3
    assert np.isnan(StepCost.from_table(table(idle=False)).idle_power_w).all()


def test_mixed_cells_off_the_edges_are_kept_out_of_the_fit():
    planted = table(cells=[*CELLS, (92, 0, 8, 800)])
    rows = planted.rows(RowKind.FORWARD)
    assert held_out(rows).sum() == len(CLOCKS_MHZ)
    np.testing.assert_allclose(
        StepCost.from_table(planted).linear_latency_ms,
        StepCost.from_table(TABLE).linear_latency_ms,
        rtol=1e-9,
    )


# As imported ones: up to 8 decodes, the rest one chunk, two total contexts, no earlier one.
TOTALS = [(max(0, t - 8), 0, min(t, 8), s) for t in (1, 8, 64, 128, 256) for s in (2048, 40_000)]


def test_a_table_of_tokens_and_total_context_only():
    shape = registry()["llama3-8b"].to_json()
    cost = StepCost.from_table(table(cells=TOTALS, model_shape=shape))
    assert cost.fit.known == {"decode_context_tokens"}
    exact = cost.latency_ms(StepShape(120, 0, 8, 20_000))
    cell = [true_ms((120, 0, 8, 20_000), clock) for clock in CLOCKS_MHZ]
    np.testing.assert_allclose(exact, cell, rtol=1e-6)
    over_context = StepShape(120, 2000, 8, 20_000)
    assert cost.predict(over_context).origin is Origin.EXTRAPOLATED
    assert (cost.latency_ms(over_context) > exact).all()


def test_a_hole_is_filled_from_the_nearest_clock():
    whole = table()
    hole = (whole.columns["clock_mhz"] == 960) & (whole.columns["prefill_tokens"] == 128)
    left = {name: values[~hole] for name, values in whole.columns.items()}
    cost = StepCost.from_table(seal_table(left, whole.metadata))
    np.testing.assert_allclose(
        cost.latency_ms(StepShape(128)), [true_ms((128, 0, 0, 0), c) for c in CLOCKS_MHZ], rtol=1e-6
    )


def test_tables_from_which_nothing_can_be_told():
    with pytest.raises(TableError, match="1 token count"):
        StepCost.from_table(table(cells=[(128, 0, 0, 0)]))
    whole = table(cells=[(64, 0, 0, 0), (128, 0, 0, 0)])
    apart = np.where(
        whole.columns["clock_mhz"] == 960,
        whole.columns["prefill_tokens"] == 128,
        whole.columns["prefill_tokens"] == 64,
    ) | (whole.columns["kind"] == "idle")
    rows = {name: values[apart] for name, values in whole.columns.items()}
    with pytest.raises(TableError, match="no cell in common"):
        StepCost.from_table(seal_table(rows, whole.metadata))


@pytest.mark.parametrize(
    "shape",
    ["{}", "[1]", "5", "{", "[" * 100_000, '{"heads": 0, "kv_heads": 0}',
     '{"heads": 8, "kv_heads": 8, "hidden_size": -1, "head_dim": 1, "intermediate_size": 1}',
     '{"heads": "8", "kv_heads": 8, "hidden_size": 8, "head_dim": 8, "intermediate_size": 8}'],
    ids=lambda text: text[:40],
)  # fmt: skip
def test_chunks_without_context_need_a_shape_that_is_one(shape):
    with pytest.raises(TableError, match="model_shape is no shape of a model"):
        StepCost.from_table(table(cells=TOTALS, model_shape=shape))
