"""A table's scatter along the clock is taken out before anybody chooses by it."""

from dataclasses import replace

import numpy as np
import pytest

from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.smoothing import LEAST_CLOCKS, smoothed
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import StepShape

CLOCKS_MHZ = tuple(range(510, 1411, 60))
STEPS = (StepShape(512), StepShape(128), StepShape(decode_requests=32, decode_context_tokens=9000))


@pytest.fixture(scope="module")
def cost(small_table: PerfTable) -> StepCost:
    """Served at enough clocks for a curve through them."""
    return StepCost.from_table(small_table, CLOCKS_MHZ)


def scattered(cost: StepCost, share: float, seed: int) -> StepCost:
    random = np.random.default_rng(seed)
    factors = [
        np.exp(random.normal(0.0, share, one.shape))
        for one in (cost.linear_latency_ms, cost.linear_energy_j)
    ]
    return replace(
        cost,
        linear_latency_ms=factors[0] * cost.linear_latency_ms,
        linear_energy_j=factors[1] * cost.linear_energy_j,
    )


@pytest.mark.parametrize("step", STEPS)
def test_it_is_closer_to_the_truth_than_what_was_measured(cost: StepCost, step: StepShape) -> None:
    before, after = [], []
    for seed in range(8):
        noisy = scattered(cost, 0.1, seed)
        for seen, errors in ((noisy, before), (smoothed(noisy), after)):
            errors.append(np.abs(seen.latency_ms(step) / cost.latency_ms(step) - 1.0).mean())
            errors.append(np.abs(seen.energy_j(step) / cost.energy_j(step) - 1.0).mean())
    assert np.mean(after) < 0.8 * np.mean(before)


def test_a_pass_is_never_slower_at_a_higher_clock(cost: StepCost) -> None:
    noisy = scattered(cost, 0.1, 3)
    assert (np.diff(noisy.linear_latency_ms, axis=0) > 0.0).any()
    assert (np.diff(smoothed(noisy).linear_latency_ms, axis=0) <= 0.0).all()


@pytest.mark.parametrize("step", STEPS)
def test_a_table_without_scatter_stays(cost: StepCost, step: StepShape) -> None:
    assert smoothed(cost).latency_ms(step) == pytest.approx(cost.latency_ms(step), rel=0.02)


def test_few_clocks_are_left_alone(cost: StepCost) -> None:
    few = slice(0, LEAST_CLOCKS - 1)
    served = replace(
        cost,
        **{
            name: getattr(cost, name)[few]
            for name in (
                "clocks_mhz", "linear_latency_ms", "linear_energy_j", "attention_latency_ms",
                "attention_energy_j", "idle_power_w",
            )
        },
    )  # fmt: skip
    assert smoothed(served) is served
