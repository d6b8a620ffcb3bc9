"""An explanation names the state, the knobs, the slack, the joules and who was in the way."""

from dataclasses import replace

import pytest

from beam_runtime.search.explain import cheapest_refused, explain
from beam_runtime.search.search import Search
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import EngineLimits, Knobs, RequestState, Slo, Snapshot


def snapshot(limits: EngineLimits, slo: Slo) -> Snapshot:
    running = tuple(
        RequestState(
            f"old{n}", 400, -9000.0, slo, computed_tokens=400, generated_tokens=1,
            first_token_ms=-20.0, last_token_ms=-20.0,
        )
        for n in range(6)
    )  # fmt: skip
    return Snapshot(
        now_ms=0.0,
        limits=limits,
        knobs=Knobs(1410, 512),
        running=running,
        waiting=(RequestState("new", 1500, 0.0, slo),),
        stage_free_ms=(0.0,) * limits.pp,
    )


@pytest.fixture(scope="module")
def search(small_cost: StepCost) -> Search:
    return Search(small_cost, EngineLimits(pp=4, host_gap_ms=2.0))


def test_it_says_what_was_decided_and_why(search: Search) -> None:
    state = snapshot(search.limits, Slo(350.0, 200.0))
    decision = search.decide(state)
    text = explain(state, decision, search.cost)
    assert "1 waiting (1,500 tokens), 6 running (2,400 tokens of context), 1410 MHz" in text
    assert f"{decision.knobs.clock_mhz} MHz, chunk {decision.knobs.chunk_tokens}" in text
    assert decision.why in text
    assert "(new)" in text
    assert "J/token" in text
    refused = cheapest_refused(decision)
    assert refused is not None, "350 ms rule some clocks out"
    assert refused.request_id in {"new", *(f"old{n}" for n in range(6))}
    assert refused.refused in text
    assert all(refused.energy_j <= one.energy_j for one in decision.alternatives if one.request_id)


def test_what_is_broken_is_said_to_be(search: Search) -> None:
    state = snapshot(search.limits, Slo(50.0, 200.0))
    decision = search.decide(state)
    assert not decision.forecast.feasible
    assert "ms over SLO less margin (new)" in explain(state, decision)


def test_joules_per_token_count_what_is_done(search: Search) -> None:
    state = snapshot(search.limits, Slo())
    decision = search.decide(state)
    done = decision.forecast
    assert done.prompt_tokens == 1500
    assert done.output_tokens > 0
    energy_j = decision.forecast.active_energy_j + decision.forecast.idle_energy_j
    assert done.energy_per_token_j is not None
    total_j = done.energy_per_token_j * (done.prompt_tokens + done.output_tokens)
    assert total_j == pytest.approx(energy_j)


def test_nobody_there_is_a_state_too(search: Search) -> None:
    state = Snapshot(0.0, search.limits, Knobs(1410, 512), stage_free_ms=(0.0,) * 4)
    text = explain(state, search.decide(state), search.cost)
    assert "0 waiting" in text
    assert "J/token" not in text


@pytest.mark.parametrize("requests", [200, 300])
def test_one_microbatch_is_told_in_the_singular(search: Search, requests: int) -> None:
    state = snapshot(search.limits, Slo(1000.0, 150.0))
    one = state.running[0]
    many = tuple(replace(one, request_id=f"r{n}") for n in range(requests))
    why = search(replace(state, running=many, waiting=())).why
    assert ", 1 microbatch, " in why
