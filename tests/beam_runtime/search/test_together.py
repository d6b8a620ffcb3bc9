"""Decodes go in one step where prompts gain by it: on stairs at a tight gap, and nowhere else."""

from dataclasses import replace

import numpy as np
import pytest

from beam_runtime.search.stance import stance_for
from beam_runtime.search.together import longest_between
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import EngineLimits, Slo

LIMITS = EngineLimits(pp=4, max_batched_tokens=512, host_gap_ms=7.0)


def table(small_cost: StepCost, *stairs: tuple[float, float]) -> StepCost:
    """Passes that take so long up to so many tokens, whatever they attend to."""
    edges, ms = np.array(stairs).T
    clocks = len(small_cost.clocks_mhz)
    linear = np.repeat(ms[None, :], clocks, axis=0)
    return replace(
        small_cost,
        edges_tokens=edges.astype(int),
        linear_latency_ms=linear,
        linear_energy_j=linear.copy(),
        attention_latency_ms=np.zeros_like(small_cost.attention_latency_ms),
        attention_energy_j=np.zeros_like(small_cost.attention_energy_j),
    )


@pytest.fixture
def stairs(small_cost: StepCost) -> StepCost:
    """What GEMM tiles make of a pass: 64 tokens more cost nothing, or 5 ms."""
    return table(
        small_cost, (1, 13.0), (64, 13.0), (65, 18.5), (128, 18.5), (129, 29.0), (256, 30.0),
        (257, 40.0), (384, 41.0), (512, 52.0),
    )  # fmt: skip


def test_a_stair_that_decodes_in_every_step_cannot_climb(stairs: StepCost) -> None:
    # Four steps of 18.5 + 7 ms are 102: in every step there is room for 64 tokens.
    assert longest_between(stairs, LIMITS, Slo(1000.0, 100.0), 512) >= 112


def test_where_steps_are_long_stairs_are_small(stairs: StepCost) -> None:
    assert longest_between(stairs, LIMITS, Slo(1000.0, 300.0), 512) == 0


def test_first_tokens_pay_for_it_by_a_round(stairs: StepCost) -> None:
    assert longest_between(stairs, LIMITS, Slo(150.0, 100.0), 512) == 0


def test_without_stairs_only_what_a_step_takes_by_itself_is_saved(small_cost: StepCost) -> None:
    slope = table(small_cost, (1, 10.1), (512, 61.2))
    for tbt_ms in (150.0, 200.0, 300.0):
        assert longest_between(slope, LIMITS, Slo(1000.0, tbt_ms), 512) == 0
    # Most of 80 ms are four times 17: three steps a round are better than four.
    assert longest_between(slope, LIMITS, Slo(1000.0, 80.0), 512) > 0


def test_a_mean_is_no_round_s_limit_and_one_stage_has_no_between(stairs: StepCost) -> None:
    assert longest_between(stairs, LIMITS, Slo(1000.0, tpot_ms=100.0), 512) == 0
    alone = replace(LIMITS, pp=1)
    assert longest_between(stairs, alone, Slo(1000.0, 25.0), 512) == 0


@pytest.mark.parametrize("longest", [1, 8, 15, 16, 17, 40])
def test_an_engine_of_short_steps_is_no_trouble(stairs: StepCost, longest: int) -> None:
    longest_between(stairs, LIMITS, Slo(1000.0, 100.0), longest)


def test_the_stance_has_the_rule_and_chunks_long_enough_for_it(stairs: StepCost) -> None:
    stance = stance_for(stairs, LIMITS, Slo(1000.0, 100.0))
    assert stance.rules.together
    assert max(stance.policy.chunk_tokens) >= longest_between(
        stairs, LIMITS, Slo(1000.0, 100.0), 512
    )
    assert not stance_for(stairs, LIMITS, Slo(1000.0, 300.0)).rules.together
