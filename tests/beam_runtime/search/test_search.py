"""The search against the best of every candidate, and its stated rules."""

import random
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from beam_runtime.emulator.moment import Moment
from beam_runtime.search.chunks import chunk_candidates
from beam_runtime.search.policy import Policy
from beam_runtime.search.search import Search
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import (
    Correction,
    Decision,
    EngineLimits,
    Knobs,
    RequestState,
    Rules,
    Slo,
    Snapshot,
    StepInFlight,
)

CLOCKS_MHZ = np.arange(510, 1411, 90)
EDGES_TOKENS = np.array([1, 8, 32, 64, 72, 128, 136, 256, 264, 384, 392, 512, 4096], dtype=float)
STAIRS_MS = np.array([11, 11.2, 11.6, 12.5, 16, 19, 25, 37, 46, 56, 64, 76, 600], dtype=float)


def cost() -> StepCost:
    """An A100 pair's stage of a 70B model, roughly: stairs of 128, energy U-shaped in clock."""
    ghz = CLOCKS_MHZ / 1e3
    slower = np.maximum(1.41 / ghz, 1.25)[:, None]  # memory-bound at high clocks
    volts = np.where(ghz <= 1.05, 1.0, 1 + 0.95 * (ghz - 1.05))
    watts = (150 + 2 * 200 * ghz * volts**2)[:, None]
    latency = STAIRS_MS / 1.25 * slower
    attention = np.array([1.5e-6, 1e-5, 2e-5, 0.01, -0.2, 0.3]) * slower
    return StepCost(
        clocks_mhz=CLOCKS_MHZ,
        edges_tokens=EDGES_TOKENS,
        linear_latency_ms=latency,
        linear_energy_j=latency * watts / 1e3,
        attention_latency_ms=attention,
        attention_energy_j=attention * watts / 1e3,
        idle_power_w=160.0 + 0.06 * (CLOCKS_MHZ - 510),
        fit=cast(Any, None),
    )


COST = cost()
LIMITS = EngineLimits(pp=4, max_batched_tokens=512, host_gap_ms=5.0)


@pytest.fixture(scope="module")
def search() -> Search:
    return Search(COST, LIMITS)


def decode(name: str, last_ms: float = 0.0, in_flight: bool = False) -> RequestState:
    context, generated = 400 + 37 * len(name), 20
    return RequestState(
        name, context, -9000.0, computed_tokens=context + generated - (not in_flight),
        generated_tokens=generated, last_token_ms=last_ms,
    )  # fmt: skip


def random_state(seed: int) -> Snapshot:
    rng = random.Random(seed)
    groups = rng.randint(1, 4)
    last_ms = [-rng.uniform(0, 90) for _ in range(groups)]
    running, flying = [], [[] for _ in range(groups)]
    for i in range(rng.choice((0, 2, 8, 24, 60))):
        group, in_flight = rng.randrange(groups), rng.random() < 0.6
        running.append(decode(f"r{i}", last_ms[group], in_flight))
        if in_flight:
            flying[group].append(f"r{i}")
    ends_ms = sorted(rng.uniform(0, 60) for _ in range(groups))
    in_flight = [
        StepInFlight(ms, tuple(names)) for ms, names in zip(ends_ms, flying, strict=True) if names
    ]
    waiting = [
        RequestState(f"w{i}", rng.choice((27, 300, 720, 900, 2400)), -rng.uniform(0, 400))
        for i in range(rng.choice((0, 0, 1, 1, 2, 4)))
    ]
    free = (ends_ms[-1] - 45, ends_ms[-1] - 30, ends_ms[-1] - 15, ends_ms[-1])
    return Snapshot(
        0.0, LIMITS, Knobs(int(rng.choice(CLOCKS_MHZ)), 256), tuple(running), tuple(waiting),
        tuple(in_flight), free if in_flight else (), clock_since_ms=-1e6,
    )  # fmt: skip


STATES = [state for seed in range(140) if (state := random_state(seed)).running or state.waiting]


@pytest.mark.parametrize("rules", [Rules(), Rules(ride_along=False)], ids=["riding", "not"])
def test_it_is_held_against_every_candidate(rules: Rules):
    """Energy regret 0.2 % on average and 2 % at worst; never an SLO missed that can be kept."""
    searcher = Search(COST, LIMITS, rules=rules)._searcher
    regrets, kept = [], 0
    # Rules tell in steps that carry both prompts and decodes.
    states = STATES if rules == Rules() else [s for s in STATES if s.running and s.waiting][:30]
    for state in states:
        moment = Moment.of(state)
        found, best = searcher.search(moment), searcher.best_of_all(moment)
        if best.violation > 0.0:
            assert found.violation <= best.violation + 0.05
            continue
        kept += 1
        assert found.violation == 0.0, state
        regrets.append((found.energy_j - best.energy_j) / best.energy_j)
    assert kept > len(states) // 2
    assert np.mean(regrets) <= 0.002
    assert max(regrets) <= 0.02


def test_its_forecast_is_the_emulators(search: Search):
    for state in STATES[:25]:
        decision = search(state)
        again = search.forecast(state, decision.knobs)
        assert again.energy_j == pytest.approx(decision.forecast.energy_j, rel=1e-9)
        assert again.ttft_ms == pytest.approx(decision.forecast.ttft_ms)
        assert again.worst_tbt_ms == pytest.approx(decision.forecast.worst_tbt_ms)


def test_it_says_what_else_it_looked_at_and_why_not(search: Search):
    waiting = tuple(RequestState(f"w{i}", 1500, -320.0) for i in range(2))
    running = tuple(decode(f"r{i}") for i in range(20))
    decision = search(Snapshot(0.0, LIMITS, Knobs(1410, 256), running, waiting))
    assert decision.forecast.feasible
    cheaper = [a for a in decision.alternatives if a.energy_j < decision.forecast.energy_j]
    assert cheaper, decision
    for alternative in cheaper:
        assert alternative.request_id is not None
        assert alternative.request_id in alternative.refused
        assert not search.forecast(
            Snapshot(0.0, LIMITS, Knobs(1410, 256), running, waiting), alternative.knobs
        ).feasible
    assert "cheaper" in decision.why


def test_slack_is_spent_on_energy_and_lateness_on_speed(search: Search):
    relaxed = tuple(RequestState(f"w{i}", 900, 0.0, Slo(ttft_ms=9000.0)) for i in range(3))
    urgent = tuple(RequestState(f"w{i}", 900, 0.0, Slo(ttft_ms=430.0)) for i in range(3))
    slow = search(Snapshot(0.0, LIMITS, Knobs(1410, 256), (), relaxed))
    fast = search(Snapshot(0.0, LIMITS, Knobs(1410, 256), (), urgent))
    assert slow.knobs.clock_mhz < fast.knobs.clock_mhz
    assert slow.forecast.energy_j < fast.forecast.energy_j


def hopeless(arrivals_per_s: float) -> Snapshot:
    waiting = tuple(RequestState(f"w{i}", 3000, -800.0) for i in range(8))
    learnt = Correction(arrivals_per_s=arrivals_per_s)
    return Snapshot(0.0, LIMITS, Knobs(510, 64), (), waiting, correction=learnt)


def test_where_nothing_keeps_the_slos_it_misses_least(search: Search):
    state = hopeless(arrivals_per_s=2.0)
    decision = search(state)
    assert not decision.forecast.feasible
    assert "misses least" in decision.why
    fastest = search.forecast(state, replace(decision.knobs, clock_mhz=1410))
    lazy = search.forecast(state, Knobs(600, 128))
    assert decision.forecast.broken <= fastest.broken + 0.05
    assert decision.forecast.broken < lazy.broken
    assert decision.forecast.energy_j < fastest.energy_j  # no more than needed: it is memory-bound


def test_prompts_lost_already_press_by_those_behind_them_alone(search: Search):
    alone, followed = search(hopeless(0.0)), search(hopeless(2.0))
    assert alone.forecast.energy_j < followed.forecast.energy_j
    assert alone.forecast.horizon_ms > followed.forecast.horizon_ms


def test_a_queue_too_long_for_those_to_come_is_the_reason_where_it_is(search: Search):
    soon, later = Slo(ttft_ms=300.0), Slo(ttft_ms=1e6)
    running = (
        RequestState(
            "d", 500, -900.0, soon, computed_tokens=500, generated_tokens=1, last_token_ms=0.0
        ),
    )
    waiting = tuple(RequestState(f"w{i}", 3000, 0.0, later) for i in range(8))
    learnt = Correction(arrivals_per_s=2.0)
    state = Snapshot(0.0, LIMITS, Knobs(510, 64), running, waiting, correction=learnt)
    decision = search(state)
    assert decision.forecast.ttft_excess_ms < 0.0
    assert "whoever comes next waits too long" in decision.why
    assert decision.alternatives
    assert not any("None" in a.refused for a in decision.alternatives)


def test_a_token_lost_already_does_not_cost_full_clocks(search: Search):
    # Its gap is over the SLO whatever is done now; everybody else has time.
    late = decode("late", last_ms=-900.0, in_flight=True)
    others = tuple(decode(f"r{i}") for i in range(8))
    state = Snapshot(
        0.0, LIMITS, Knobs(1410, 256), (late, *others), (),
        (StepInFlight(10.0, ("late",)),), (0.0, 0.0, 0.0, 10.0),
    )  # fmt: skip
    decision = search(state)
    assert decision.forecast.worst_tbt_ms["late"] >= 910.0
    fastest = search.forecast(state, Knobs(1410, 256))
    assert decision.forecast.energy_j < 0.9 * fastest.energy_j
    assert decision.forecast.broken <= fastest.broken + 0.02


def test_a_step_in_flight_that_may_be_late_hides_no_later_one(search: Search):
    # No knob changes when it is back; what comes after it is due as ever.
    def found(gap_ms: float) -> Decision:
        flying = tuple(decode(f"r{at}", last_ms=10.0 - gap_ms, in_flight=True) for at in range(8))
        steps = (StepInFlight(10.0, tuple(one.request_id for one in flying)),)
        free_ms = (0.0, 0.0, 0.0, 10.0)
        return search(Snapshot(0.0, LIMITS, Knobs(510, 256), flying, (), steps, free_ms))

    in_time, nearly_late = found(100.0), found(199.0)
    assert nearly_late.knobs == in_time.knobs
    assert nearly_late.forecast.broken == in_time.forecast.broken == 0.0


def test_nobody_there_rests_at_the_least_idle_power(search: Search):
    decision = search(Snapshot(0.0, LIMITS, Knobs(1410, 256)))
    assert decision.knobs.clock_mhz == 510
    assert "no requests" in decision.why


def test_a_rest_that_a_prompt_could_not_start_from_in_time_is_not_taken():
    slow = replace(LIMITS, clock_delay_ms=500.0)
    decision = Search(COST, slow)(Snapshot(0.0, slow, Knobs(1410, 256)))
    assert decision.knobs.clock_mhz > 510


def test_a_clock_dwells_unless_an_slo_needs_another(search: Search):
    running = tuple(decode(f"r{i}") for i in range(8))
    state = Snapshot(0.0, LIMITS, Knobs(1410, 256), running, clock_since_ms=-1e6)
    assert search(state).knobs.clock_mhz < 1410
    young = replace(state, clock_since_ms=-10.0)
    assert search(young).knobs.clock_mhz == 1410
    prompts = tuple(RequestState(f"w{i}", 900, 0.0, Slo(ttft_ms=430.0)) for i in range(3))
    urgent = replace(young, knobs=Knobs(510, 256), running=(), waiting=prompts)
    assert search(urgent).knobs.clock_mhz > 510


def test_a_clock_change_must_be_worth_its_price():
    running = tuple(decode(f"r{i}") for i in range(8))
    state = Snapshot(0.0, LIMITS, Knobs(1140, 256), running, clock_since_ms=-1e6)
    dear = Search(COST, LIMITS, policy=Policy(switch_j=1e6))
    assert dear(state).knobs.clock_mhz == 1140


class TestSeats:
    """Until every stream has so many tokens more, no more come than there are seats for."""

    def running(self, generated: int = 50) -> tuple[RequestState, ...]:
        """Eight of as much context, however many tokens of it are answers."""
        eight = [decode(f"r{i}") for i in range(8)]
        return tuple(
            replace(
                one,
                prompt_tokens=one.prompt_tokens + one.generated_tokens - generated,
                generated_tokens=generated,
            )
            for one in eight
        )

    def tokens(
        self, rate: float, seats: int = 16, free_blocks: int = 1 << 30, generated: int = 50
    ) -> float:
        """Decoded within the horizon where so many answers of 100 tokens begin a second."""
        running = self.running(generated)
        learnt = Correction(arrivals_per_s=rate, decode_tokens_per_s=100 * rate)
        limits = replace(LIMITS, max_num_seqs=seats)
        state = Snapshot(
            0.0, limits, Knobs(1410, 256), running, correction=learnt, free_blocks=free_blocks
        )
        search = Search(COST, limits)
        decision = search(state)
        assert decision.knobs in [knobs for knobs, _ in search.survey(state)]
        return decision.forecast.output_tokens

    def test_streams_are_as_fast_as_leaves_seats_to_those_to_come(self):
        few, many, too_many = (self.tokens(rate) for rate in (0.1, 1.2, 1e3))
        assert few < many < too_many

    def test_the_kv_cache_may_be_what_is_short(self):
        blocks = sum(-(-one.computed_tokens // LIMITS.block_size) for one in self.running())
        for rate in (0.1, 1.2, 1e3):  # there is room for sixteen
            assert self.tokens(rate, 256, free_blocks=blocks) == self.tokens(rate)

    def test_nobody_holds_the_last_seat(self):
        assert self.tokens(0.1, seats=8) == self.tokens(1e3)

    def test_the_young_make_no_room_soon(self):
        old, young = (self.tokens(0.3, seats=9, generated=tokens) for tokens in (90, 1))
        assert old < young == self.tokens(1e3)


@pytest.mark.parametrize("seed", range(0, 140, 7))
def test_a_chunk_has_room_for_every_decode_and_a_minimum_chunk(search: Search, seed: int):
    state = random_state(seed)
    if state.waiting:
        least = len(state.running) + Rules().min_chunk_tokens
        assert search(state).knobs.chunk_tokens >= min(least, LIMITS.max_batched_tokens)
    assert search(state).knobs.chunk_tokens <= LIMITS.max_batched_tokens


class TestEdgesOfInput:
    def test_one_stage(self):
        limits = replace(LIMITS, pp=1)
        waiting = (RequestState("w", 900, 0.0),)
        decision = Search(COST, limits)(Snapshot(0.0, limits, Knobs(1410, 256), (), waiting))
        assert decision.forecast.feasible
        assert decision.knobs.microbatches == 1

    def test_one_clock(self):
        one = replace(
            COST, clocks_mhz=COST.clocks_mhz[-1:], linear_latency_ms=COST.linear_latency_ms[-1:],
            linear_energy_j=COST.linear_energy_j[-1:], idle_power_w=COST.idle_power_w[-1:],
            attention_latency_ms=COST.attention_latency_ms[-1:],
            attention_energy_j=COST.attention_energy_j[-1:],
        )  # fmt: skip
        found = Search(one, LIMITS)
        for state in STATES[:10]:
            assert found(state).knobs.clock_mhz == 1410

    def test_a_prompt_that_is_cached_whole(self, search: Search):
        cached = (RequestState("w", 512, 0.0, cached_tokens=512),)
        assert search(Snapshot(0.0, LIMITS, Knobs(1410, 256), (), cached)).forecast.feasible

    def test_a_prompt_over_the_model_length(self):
        limits = replace(LIMITS, max_model_len=1000)
        huge = (RequestState("w", 5000, 0.0),)
        decision = Search(COST, limits)(Snapshot(0.0, limits, Knobs(1410, 256), (), huge))
        assert decision.forecast.ttft_ms == {"w": float("inf")}

    def test_timestamps_that_go_backwards(self, search: Search):
        later = (decode("r", last_ms=500.0),)
        early = (RequestState("w", 100, 900.0),)
        assert search(Snapshot(0.0, LIMITS, Knobs(1410, 256), later, early)).forecast.feasible

    def test_a_clock_that_nobody_profiled(self, search: Search):
        running = (decode("r"),)
        decision = search(Snapshot(0.0, LIMITS, Knobs(1400, 256), running))
        assert decision.knobs.clock_mhz in CLOCKS_MHZ

    def test_no_block_left(self, search: Search):
        running = tuple(decode(f"r{i}") for i in range(4))
        waiting = (RequestState("w", 900, 0.0),)
        decision = search(Snapshot(0.0, LIMITS, Knobs(1410, 256), running, waiting, free_blocks=0))
        assert decision.forecast.ttft_ms["w"] == float("inf")

    def test_more_running_requests_than_seats(self, search: Search):
        running = tuple(decode(f"r{i}") for i in range(400))
        assert search(Snapshot(0.0, LIMITS, Knobs(1410, 256), running)).knobs.clock_mhz > 0


class TestCandidates:
    def test_chunks_sit_before_the_steps_of_the_staircase(self):
        chunks = chunk_candidates(COST, LIMITS, Rules(), 12)
        assert chunks == (64, 128, 256, 384, 512)

    def test_too_many_are_thinned_and_keep_their_ends(self):
        chunks = chunk_candidates(COST, LIMITS, Rules(), 3)
        assert len(chunks) == 3
        assert (chunks[0], chunks[-1]) == (64, 512)

    def test_the_envelope_is_always_one(self):
        limits = replace(LIMITS, max_batched_tokens=300)
        assert chunk_candidates(COST, limits, Rules(), 12)[-1] == 300


def test_an_engine_that_does_not_split_its_decodes_is_not_told_to():
    whole = Search(COST, LIMITS, rules=Rules(microbatches=False))
    for state in STATES[:8]:
        if state.running or state.waiting:
            decision = whole(state)
            assert decision.knobs.microbatches == 1
            best = whole.best_of_all(state)
            assert decision.forecast.broken <= best.forecast.broken + 0.01
    assert {knobs.microbatches for knobs, _ in whole.survey(STATES[1])} <= {1}


def test_the_survey_goes_through_every_candidate(search: Search):
    state = Snapshot(0.0, LIMITS, Knobs(1410, 256), (decode("r"),), (RequestState("w", 900, 0.0),))
    points = list(search.survey(state))
    assert len(points) == len(CLOCKS_MHZ) * len(search.chunks) * 4 * 4
    best = min((f.energy_j for _, f in points if f.feasible), default=0.0)
    assert search(state).forecast.energy_j <= best * 1.02 + Policy().switch_j


def test_decodes_go_faster_where_many_come(search: Search):
    """Whoever comes waits for the pass that has begun, and starts before the clock has changed."""

    def clock_mhz(arrivals_per_s: float) -> int:
        learnt = Correction(arrivals_per_s=arrivals_per_s)
        running = tuple(decode(f"r{i}") for i in range(8))
        state = Snapshot(0.0, LIMITS, Knobs(1410, 256), running, correction=learnt)
        decision = search(state)
        assert decision.knobs.clock_mhz == search.best_of_all(state).knobs.clock_mhz
        return decision.knobs.clock_mhz

    clocks = [clock_mhz(per_s) for per_s in (0.0, 1.0, 10.0, 1000.0)]
    assert clocks == sorted(clocks)
    assert clocks[0] < clocks[-1] <= 1410
