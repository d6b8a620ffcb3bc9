"""Closed loops on the plant: what benchmarks/servers.py plays served rows with."""

from dataclasses import replace

import pytest
from served_load import Load, serve, steps_table

from beam_runtime.types import StepShape
from beamprof.devices.device import resolve_device
from beamprof.models.registry import registry

LOAD = Load(4, 128, 50, 8192, jitter_tokens=0.0, front_ms=0.0, back_ms=0.0)
MODEL, DEVICE = registry()["llama3-8b"], resolve_device("h100-sxm")


def step_ms(step: StepShape) -> float:
    return 1.0 + 0.1 * step.tokens


def played(load: Load) -> tuple[float, float]:
    return serve(load, steps_table(DEVICE, MODEL, MODEL.shard(1, 1), load, step_ms))


def test_one_client_waits_for_its_own_prompt_alone() -> None:
    tpot, ttft = played(replace(LOAD, clients=1))
    assert ttft == pytest.approx(13.8, rel=0.02)
    assert tpot == pytest.approx(1.1, rel=0.05)


def test_those_that_start_together_stay_together() -> None:
    # All four prompts fit one step, and so do their successors', for answers end together.
    tpot, ttft = played(LOAD)
    assert ttft == pytest.approx(52.2, rel=0.02)
    assert tpot == pytest.approx(1.4, rel=0.05)


def test_a_budget_of_one_prompt_makes_the_others_wait() -> None:
    _, together = played(LOAD)
    tpot, apart = played(replace(LOAD, budget_tokens=131))
    assert apart < together
    assert tpot > 1.5  # decodes share their steps with prompts


def test_lengths_that_differ_break_the_lockstep() -> None:
    (_, same), (_, spread) = (played(replace(LOAD, clients=16, jitter_tokens=j)) for j in (0, 40))
    assert spread < 0.7 * same


def test_time_on_the_way_counts_as_ttft_only() -> None:
    before, after = played(LOAD), played(replace(LOAD, back_ms=7.0, front_ms=2.0))
    assert after[1] == pytest.approx(before[1] + 9.0, rel=0.02)
    assert after[0] == pytest.approx(before[0], rel=0.02)
