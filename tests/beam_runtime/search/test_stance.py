"""The stance follows the SLO and the table, not the engine's largest step."""

from dataclasses import replace

import pytest

from beam_runtime.search.search import Search
from beam_runtime.search.stance import stance_for
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import EngineLimits, Follows, Knobs, Rules, Slo, Snapshot, StepShape

LARGEST = (512, 2048, 8192)


def pass_ms(cost: StepCost, tokens: int) -> float:
    return float(cost.latency_ms(StepShape(tokens)).min())


def test_chunks_lie_about_the_largest_that_a_token_can_ride_in(small_cost: StepCost) -> None:
    limits = EngineLimits(pp=4, max_batched_tokens=8192, host_gap_ms=5.5)
    stance = stance_for(small_cost, limits, Slo(1000.0, 200.0))
    allowed_ms = (200.0 - stance.floor.tbt_margin_ms) / 4 - 5.5
    chunks = stance.policy.chunk_tokens
    assert pass_ms(small_cost, chunks[-4]) <= allowed_ms, "several of them are in time"
    assert pass_ms(small_cost, chunks[-1]) > allowed_ms, "and the longest are not held back by it"
    assert stance.rules == Rules()


def test_an_engine_started_for_longer_steps_is_steered_alike(small_cost: StepCost) -> None:
    stances = {
        stance_for(small_cost, EngineLimits(pp=4, max_batched_tokens=n), Slo(1000.0, 120.0))
        for n in LARGEST[1:]
    }
    assert len(stances) == 1


@pytest.mark.parametrize("largest", [1, 2, 8, 40, 512])
def test_no_chunk_is_longer_than_the_engines_steps(small_cost: StepCost, largest: int) -> None:
    for tbt_ms in (20.0, 100.0, 200.0, 2000.0):
        limits = EngineLimits(pp=4, max_batched_tokens=largest)
        chunks = stance_for(small_cost, limits, Slo(1000.0, tbt_ms)).policy.chunk_tokens
        assert chunks
        assert all(1 <= chunk <= largest for chunk in chunks)


def test_a_promise_that_no_setting_keeps_is_said_to_be_that(small_cost: StepCost) -> None:
    for largest in LARGEST:
        limits = EngineLimits(pp=4, max_batched_tokens=largest)
        stance = stance_for(small_cost, limits, Slo(1000.0, 5.0))
        assert "promised are 5 ms" in stance.hopeless
        assert not stance_for(small_cost, limits, Slo(1000.0, 200.0)).hopeless


def test_a_mean_leaves_room_for_chunks_longer_than_a_token_takes(small_cost: StepCost) -> None:
    limits = EngineLimits(pp=4, max_batched_tokens=512)
    by_gap = stance_for(small_cost, limits, Slo(1000.0, 100.0)).policy.chunk_tokens
    by_mean = stance_for(small_cost, limits, Slo(1000.0, tpot_ms=100.0)).policy.chunk_tokens
    assert max(by_mean) > max(by_gap)


def test_margins_are_shares_of_the_promise(small_cost: StepCost) -> None:
    limits = EngineLimits(pp=1)
    one = stance_for(small_cost, limits, Slo(1000.0, 200.0)).floor
    two = stance_for(small_cost, limits, Slo(2000.0, 400.0)).floor
    assert two.ttft_margin_ms == pytest.approx(2 * one.ttft_margin_ms)
    assert two.tbt_margin_ms == pytest.approx(2 * one.tbt_margin_ms)


def test_the_tightest_promise_sets_the_margins(small_cost: StepCost) -> None:
    limits = EngineLimits(pp=4)
    alone = stance_for(small_cost, limits, Slo(200.0, 150.0))
    beside = stance_for(
        small_cost, limits, Slo(1000.0, 200.0), classes=(Slo(200.0, 400.0), Slo(5000.0, 150.0))
    )
    assert beside.floor == alone.floor


def test_an_empty_engine_rests_at_a_clock_that_the_tightest_class_can_start_at(
    small_cost: StepCost,
) -> None:
    slow = EngineLimits(pp=4, clock_delay_ms=100.0)
    chosen_mhz = []
    for promise in (Slo(2000.0, 200.0), Slo(330.0, 200.0)):
        stance = stance_for(small_cost, slow, Slo(), classes=(promise,))
        search = Search(small_cost, slow, rules=stance.rules, policy=stance.policy)
        state = Snapshot(0.0, slow, Knobs(1410, 256), correction=stance.floor)
        chosen_mhz.append(search(state).knobs.clock_mhz)
    assert chosen_mhz[0] < chosen_mhz[1]


def test_streams_are_by_gap_where_one_class_is(small_cost: StepCost) -> None:
    gap, mean = Slo(1000.0, 200.0), Slo(1000.0, tpot_ms=100.0)
    limits = EngineLimits(pp=4)
    assert stance_for(small_cost, limits, gap).by_gap
    assert not stance_for(small_cost, limits, mean).by_gap
    assert stance_for(small_cost, limits, mean, classes=(gap,)).by_gap


@pytest.mark.parametrize("tbt_ms", [100.0, 110.0, 120.0, 200.0])
def test_what_an_engine_does_not_follow_is_foreseen_as_it_does_it(
    small_cost: StepCost, tbt_ms: float
) -> None:
    limits = EngineLimits(pp=4, max_batched_tokens=1024)
    slo = Slo(1000.0, tbt_ms)
    stances = [
        stance_for(small_cost, limits, slo, follows=follows, own_chunk_tokens=384)
        for follows in (Follows.CLOCK, Follows.CHUNK)
    ]
    for stance in stances:
        room = Rules().min_chunk_tokens
        assert replace(stance.rules, min_chunk_tokens=0) == Rules.vanilla()
        assert stance.rules.min_chunk_tokens == room
        assert stance.floor == stance_for(small_cost, limits, slo).floor
    clock, chunk = stances
    assert clock.policy.chunk_tokens == (384,)
    assert len(chunk.policy.chunk_tokens) > 1
