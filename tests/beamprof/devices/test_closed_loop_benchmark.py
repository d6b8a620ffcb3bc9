"""Clients in a closed loop, step by step: what benchmarks/servers.py plays served rows with."""

from dataclasses import replace

import pytest
from closed_loop import Load, grid, serve

LOAD = Load(4, 100, 50, 8192, jitter_tokens=0.0, front_ms=0.0, back_ms=0.0)


def step_ms(chunk: int, decodes: int) -> float:
    return 1.0 * (decodes > 0) + 0.1 * chunk


def test_one_client_waits_for_its_own_prompt_alone() -> None:
    tpot, ttft = serve(replace(LOAD, clients=1), step_ms)
    assert ttft == pytest.approx(10.0)
    assert tpot == pytest.approx(1.0)


def test_those_that_start_together_stay_together() -> None:
    # All four prompts fit one step, and so do their successors', for answers end together.
    tpot, ttft = serve(LOAD, step_ms)
    assert ttft == pytest.approx(40.0)
    assert tpot == pytest.approx(1.0)


def test_a_budget_of_one_prompt_makes_the_others_wait() -> None:
    _, together = serve(LOAD, step_ms)
    tpot, apart = serve(replace(LOAD, budget_tokens=103), step_ms)
    assert apart < together
    assert tpot > 1.0  # decodes share their steps with prompts


def test_every_request_is_served_once_and_lengths_that_differ_break_the_lockstep() -> None:
    _, same = serve(replace(LOAD, clients=16), step_ms)
    _, spread = serve(replace(LOAD, clients=16, jitter_tokens=40.0), step_ms)
    assert spread < 0.7 * same


def test_time_on_the_way_back_counts_as_ttft_only() -> None:
    before, after = serve(LOAD, step_ms), serve(replace(LOAD, back_ms=7.0), step_ms)
    assert after[1] == pytest.approx(before[1] + 7.0)
    assert after[0] == before[0]


def test_the_grid_is_exact_at_its_points_and_linear_between() -> None:
    at = grid(step_ms, 8192, 64)
    for chunk, decodes in ((0, 1), (64, 64), (8192, 64), (8192, 0)):
        assert at(chunk, decodes) == pytest.approx(step_ms(chunk, decodes))
    assert at(0, 0) == 0.0
    assert at(4000, 32) == pytest.approx(step_ms(4000, 32), rel=0.01)
