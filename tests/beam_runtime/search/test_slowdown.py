"""Limits that people set on saving, as the search keeps them."""

from dataclasses import replace

import pytest

from beam_runtime.search.search import Search
from beam_runtime.search.slowdown import out_of_reach
from beam_runtime.types import EngineLimits, Knobs, RequestState, Slo, Snapshot, StepShape

LIMITS = EngineLimits(pp=1, host_gap_ms=2.0)


@pytest.fixture(scope="module")
def search(small_cost):
    return Search(small_cost, LIMITS)


def state_of(search, slo, *, groups=1, waiting=()):
    top_mhz = int(search.cost.clocks_mhz[-1])
    running = tuple(
        RequestState(
            f"r{number}", 200, -500.0, slo, computed_tokens=201, generated_tokens=2,
            first_token_ms=-100.0, last_token_ms=0.0,
        )
        for number in range(4)
    )  # fmt: skip
    prompts = tuple(RequestState(f"w{at}", tokens, 0.0, slo) for at, tokens in enumerate(waiting))
    return Snapshot(0.0, LIMITS, Knobs(top_mhz, 512), running, prompts)


def longest_gap_ms(search, slo):
    found = search.decide(state_of(search, slo))
    return max(found.forecast.worst_tbt_ms.values())


def fastest_gap_ms(search):
    state = state_of(search, Slo())
    clocks = search.cost.clocks_mhz.tolist()
    every = (
        search.forecast(state, Knobs(clock, 512, groups)) for clock in clocks for groups in (1,)
    )
    return min(max(one.worst_tbt_ms.values()) for one in every)


@pytest.mark.parametrize("slowdown", [1.0, 1.5, 3.0])
def test_a_token_takes_no_longer_than_so_many_times_the_fastest_setting(search, slowdown):
    found_ms = longest_gap_ms(search, Slo(max_slowdown=slowdown))
    assert found_ms <= slowdown * fastest_gap_ms(search) * 1.01


def test_without_a_limit_the_pace_takes_the_slack(search):
    assert longest_gap_ms(search, Slo()) > 3.0 * fastest_gap_ms(search)


def test_a_floor_holds_no_token_longer_than_it_says(search):
    assert longest_gap_ms(search, Slo(least_tokens_per_s=10.0)) <= 100.0 * 1.01
    assert longest_gap_ms(search, Slo(least_tokens_per_s=10.0)) > 60.0


def test_the_tightest_limit_of_those_present_counts(search):
    state = state_of(search, Slo())
    patient, hurried = state.running[0], replace(state.running[1], slo=Slo(max_slowdown=1.5))
    found = search.decide(replace(state, running=(patient, hurried)))
    assert max(found.forecast.worst_tbt_ms.values()) < 100.0


@pytest.mark.parametrize("slo", [Slo(max_slowdown=1.0), Slo(least_tokens_per_s=1e6)])
@pytest.mark.parametrize("waiting", [(), (300, 2000)])
def test_what_cannot_be_kept_is_served_at_the_fastest_clock_and_breaks_nothing(
    search, slo, waiting
):
    found = search.decide(state_of(search, slo, waiting=waiting))
    assert found.knobs.clock_mhz == search.cost.clocks_mhz[-1]
    assert found.forecast.feasible


def test_a_prefill_is_no_slower_either(search):
    def time_ms(slo):
        return search.decide(state_of(search, slo, waiting=(2000,))).forecast.ttft_ms["w0"]

    fastest_ms = time_ms(Slo(10_000.0, max_slowdown=1.0))
    assert fastest_ms <= time_ms(Slo(10_000.0, max_slowdown=1.1)) < 1.12 * fastest_ms
    assert time_ms(Slo(10_000.0)) > 1.15 * fastest_ms


@pytest.mark.parametrize("slowdown", [1.0, 1.5])
def test_a_limit_holds_where_no_setting_keeps_the_promise(small_cost, slowdown):
    limits = EngineLimits(pp=4, host_gap_ms=2.0)
    search = Search(small_cost, limits)
    fastest_ms = 4 * (float(small_cost.latency_ms(StepShape(decode_requests=4)).min()) + 2.0)
    out_of_reach = Slo(tbt_ms=1.0, max_slowdown=slowdown)
    found = search.decide(replace(state_of(search, out_of_reach), limits=limits))
    assert not found.forecast.feasible
    assert min(found.forecast.worst_tbt_ms.values()) <= slowdown * fastest_ms * 1.01


def test_after_a_prefill_no_groups_are_held_beyond_a_limit_to_merge(small_cost):
    limits = EngineLimits(pp=2, host_gap_ms=2.0)
    search = Search(small_cost, limits)
    state = state_of(search, Slo(max_slowdown=1.0), waiting=(600,))
    running = tuple(replace(state.running[0], request_id=f"r{at}") for at in range(128))
    found = search.decide(replace(state, limits=limits, running=running))
    assert found.knobs.pace_ms == 0.0


def test_a_survey_leaves_out_what_a_limit_forbids(search):
    slo = Slo(max_slowdown=1.5)
    limit_ms = 1.5 * fastest_gap_ms(search) * 1.01
    state = state_of(search, slo)
    gaps_ms = [max(one.worst_tbt_ms.values()) for _, one in search.survey(state)]
    assert gaps_ms and max(gaps_ms) <= limit_ms
    assert len(gaps_ms) < len(list(search.survey(state_of(search, Slo()))))


def test_a_floor_above_the_fastest_clock_is_said(small_cost):
    assert not out_of_reach(small_cost, LIMITS, Slo(least_tokens_per_s=1.0))
    assert not out_of_reach(small_cost, LIMITS, Slo())
    assert "1000 tokens/s are asked for, a request alone gets" in out_of_reach(
        small_cost, LIMITS, Slo(least_tokens_per_s=1000.0)
    )


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_limit_is_a_number(value):
    with pytest.raises(ValueError, match="least_tokens_per_s"):
        Slo(least_tokens_per_s=value)
    with pytest.raises(ValueError, match="max_slowdown"):
        Slo(max_slowdown=value)
