"""The composer's rules one by one, and vLLM's scheduling rules under them."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_composer import Hold, Step, compose
from plain_emulator import finish, issue
from plain_pipeline import Pass
from plain_schedule import blocks

from beam_runtime.types import (
    Correction,
    EngineLimits,
    Knobs,
    RequestState,
    Rules,
    Slo,
    Snapshot,
    StepInFlight,
    StepShape,
)

LIMITS = EngineLimits(pp=4, block_size=16, max_num_seqs=8, max_batched_tokens=512)
MARGIN = Correction(tbt_margin_ms=10.0)


def decode(name: str, last_ms: float = 0.0, context: int = 100, tbt_ms: float = 200.0):
    return RequestState(
        name, context, -1000.0, Slo(tbt_ms=tbt_ms), computed_tokens=context,
        generated_tokens=1, last_token_ms=last_ms,
    )  # fmt: skip


def prompt(name: str, tokens: int, computed: int = 0, cached: int = 0):
    return RequestState(name, tokens, 0.0, computed_tokens=computed, cached_tokens=cached)


def state(*running: RequestState, waiting=(), limits=LIMITS, **given) -> Snapshot:
    return Snapshot(
        0.0, limits, Knobs(1410, 256), running, tuple(waiting), correction=MARGIN, **given
    )


def takes(ms_per_token: float, fixed_ms: float = 0.0) -> Callable[[StepShape, float], float]:
    """A pipeline that brings a step back after so long."""
    return lambda shape, issue_ms: issue_ms + fixed_ms + ms_per_token * shape.tokens


AT_256 = Knobs(1410, 256)
QUICK = takes(0.1)


def step(snapshot: Snapshot, knobs=AT_256, now_ms=0.0, finish_ms=QUICK, rules=None):
    found = compose(snapshot, knobs, now_ms, finish_ms, rules)
    assert isinstance(found, Step), found
    return found


def hold(snapshot: Snapshot, knobs=AT_256, now_ms=0.0, finish_ms=QUICK, rules=None):
    found = compose(snapshot, knobs, now_ms, finish_ms, rules)
    assert isinstance(found, Hold), found
    return found


class TestSchedulingLikeVllm:
    def test_running_requests_come_before_waiting_ones_and_prefill_takes_the_rest(self):
        found = step(state(decode("d"), prompt("p", 600, computed=500), waiting=[prompt("w", 900)]))
        assert found.decodes == ("d",)
        assert found.chunks == (("p", 100), ("w", 155))
        assert found.admitted == ("w",)
        assert found.shape.tokens == 256
        assert found.shape.prefill_context_tokens == 500
        assert found.shape.decode_context_tokens == 100
        assert found.shape.prefill_pairs == 100 * (500 + 101 / 2) + 155 * 156 / 2

    def test_a_decode_in_flight_needs_its_token_but_the_next_chunk_does_not(self):
        flying = decode("d")
        flying = RequestState("d", 100, 0.0, computed_tokens=101, generated_tokens=1)
        found = step(state(flying, prompt("p", 600, computed=256)))
        assert found.decodes == ()
        assert found.chunks == (("p", 256),)

    def test_no_more_requests_run_than_there_are_seats(self):
        limits = EngineLimits(pp=4, max_num_seqs=2)
        found = step(state(decode("d"), waiting=[prompt("a", 8), prompt("b", 8)], limits=limits))
        assert found.admitted == ("a",)

    def test_a_prompt_is_admitted_only_if_all_of_it_fits(self):
        waiting = [prompt("large", 65), prompt("small", 16)]
        assert step(state(waiting=waiting, free_blocks=5)).admitted == ("large",)
        assert hold(state(waiting=waiting, free_blocks=4)).until_ms == math.inf

    def test_blocks_are_taken_as_tokens_are_scheduled(self):
        found = step(state(waiting=[prompt("w", 900)], free_blocks=57), Knobs(1410, 100))
        assert found.blocks == 7  # ceil(100 / 16) now; all of ceil(900 / 16) = 57 were there

    def test_a_prefix_hit_counts_as_computed_on_admission(self):
        found = step(state(waiting=[prompt("w", 100, cached=64)]))
        assert found.chunks == (("w", 36),)
        assert found.shape.prefill_context_tokens == 64
        assert found.blocks == 3  # blocks 5 to 7; 1 to 4 are somebody else's

    def test_blocks_of_a_hit_that_nobody_holds_are_taken_from_the_free_ones(self):
        hit = replace(prompt("w", 100, cached=64), unheld_tokens=32)
        found = step(state(waiting=[hit], free_blocks=5))
        assert found.chunks == (("w", 36),)
        assert found.blocks == 5  # blocks 3 to 7; 1 and 2 are held already
        assert isinstance(compose(state(waiting=[hit], free_blocks=4), AT_256, 0.0, QUICK), Hold)

    def test_a_prompt_that_is_cached_whole_still_computes_its_last_block(self):
        assert step(state(waiting=[prompt("w", 64, cached=64)])).chunks == (("w", 16),)

    def test_a_request_that_was_preempted_may_hit_its_own_answer(self):
        back = replace(prompt("w", 60, cached=80), generated_tokens=30)
        assert step(state(waiting=[back])).chunks == (("w", 10),)

    def test_preemption_gives_back_what_nobody_ahead_holds(self):
        full = decode("a", context=160)
        last = replace(decode("b", context=80), cached_tokens=64, unheld_tokens=16)
        found = step(state(full, last, free_blocks=0))
        assert found.preempted == ("b",)
        assert found.blocks == 1 - 2  # of its five blocks "a" holds three

    def test_the_last_running_request_is_preempted_and_then_nobody_admitted(self):
        full = decode("a", context=160)  # its next token opens an eleventh block
        found = step(state(full, decode("b", context=40), waiting=[prompt("w", 8)], free_blocks=0))
        assert found.preempted == ("b",)
        assert found.decodes == ("a",)
        assert found.admitted == ()
        assert found.blocks == 1 - 3

    def test_a_request_that_finds_no_block_preempts_itself_last(self):
        found = step(state(decode("a", context=160), free_blocks=0))
        assert found.preempted == ("a",)
        assert found.shape.tokens == 0

    def test_a_prompt_over_the_model_length_does_not_block_the_queue(self):
        limits = EngineLimits(pp=4, max_model_len=1000)
        found = step(state(waiting=[prompt("huge", 1001), prompt("w", 9)], limits=limits))
        assert found.admitted == ("w",)

    def test_a_request_at_the_model_length_is_scheduled_no_more(self):
        limits = EngineLimits(pp=4, max_model_len=100)
        assert hold(state(decode("d", context=100), limits=limits)).until_ms == math.inf

    def test_vanilla_skips_decodes_beyond_the_budget(self):
        both = state(decode("a"), decode("b"), waiting=[prompt("w", 9)])
        assert step(both, Knobs(1410, 1), rules=Rules.vanilla()).decodes == ("a",)
        full = step(both, Knobs(1410, 2), rules=Rules.vanilla())
        assert (full.decodes, full.chunks) == (("a", "b"), ())


class TestTheChunkKeepsItsRoom:
    def test_never_under_running_decodes_and_a_minimum_chunk(self):
        decodes = [decode(f"d{i}") for i in range(6)]
        rules = Rules(give_way=False)
        found = step(state(*decodes, waiting=[prompt("w", 900)]), Knobs(1410, 4), rules=rules)
        assert found.budget_tokens == 6 + Rules().min_chunk_tokens
        assert len(found.decodes) == 6

    def test_never_over_what_the_engine_was_started_for(self):
        found = step(state(waiting=[prompt("w", 5000)]), Knobs(1410, 4096))
        assert found.shape.tokens == 512


class TestJustInTime:
    def test_nothing_goes_until_the_first_stage_is_about_to_be_free(self):
        busy = state(decode("d"), stage_free_ms=(50.0, 60.0, 70.0, 80.0))
        assert hold(busy).until_ms == pytest.approx(48.0)
        assert step(busy, now_ms=48.0).decodes == ("d",)

    def test_switched_off_steps_queue_up_like_vllms(self):
        busy = state(decode("d"), stage_free_ms=(50.0, 60.0, 70.0, 80.0))
        assert step(busy, rules=Rules(just_in_time=False)).decodes == ("d",)

    def test_a_full_pipeline_waits_for_its_oldest_step(self):
        flights = tuple(StepInFlight(float(ms)) for ms in (10, 20, 30, 40))
        assert hold(state(decode("d"), in_flight=flights)).until_ms == 10.0


class TestRideAlong:
    mixed = state(*(decode(f"d{i}") for i in range(8)), prompt("p", 2000, computed=256))

    def test_every_ready_decode_rides_in_a_chunk_step(self):
        found = step(self.mixed, Knobs(1410, 256, microbatches=4), rules=Rules(give_way=False))
        assert len(found.decodes) == 8

    def test_switched_off_they_are_split_into_microbatches(self):
        rules = Rules(ride_along=False)
        assert len(step(self.mixed, Knobs(1410, 256, microbatches=4), rules=rules).decodes) == 2


class TestGiveWay:
    """Eight decodes, four stages; a step of 256 tokens takes 100 ms, the next 25 more."""

    takes = staticmethod(takes(100 / 256))

    def eight(self, pressed: int, tokens: int = 2000, **given):
        # Due 200 - 10 after their last token: at 120, before the next step is back, or at 180.
        decodes = (decode(f"d{i}", -70.0 if i < pressed else -10.0) for i in range(8))
        return state(*decodes, prompt("p", tokens, computed=256), **given)

    def test_decodes_that_can_wait_leave_their_places_but_for_a_fair_share(self):
        found = step(self.eight(pressed=0), finish_ms=self.takes)
        assert found.decodes == ("d0", "d1")
        assert found.chunks == (("p", 254),)

    def test_those_that_the_next_step_would_make_late_ride(self):
        found = step(self.eight(pressed=5), finish_ms=self.takes)
        assert found.decodes == ("d0", "d1", "d2", "d3", "d4")

    def test_nobody_stays_behind_where_there_is_room(self):
        found = step(self.eight(pressed=0, tokens=256 + 200), finish_ms=self.takes)
        assert len(found.decodes) == 8

    def test_room_that_the_prompts_leave_is_taken(self):
        found = step(self.eight(pressed=0, tokens=256 + 251), finish_ms=self.takes)
        assert len(found.decodes) == 5
        assert found.chunks == (("p", 251),)

    def test_switched_off_all_ride(self):
        found = step(self.eight(pressed=0), finish_ms=self.takes, rules=Rules(give_way=False))
        assert len(found.decodes) == 8


class TestLateCutsChunk:
    late = state(decode("d", last_ms=-150.0), prompt("p", 2000, computed=256))

    def test_a_chunk_that_would_make_a_rider_late_is_cut_to_what_is_in_time(self):
        found = step(self.late, finish_ms=takes(0.2))  # 256 tokens take 51 ms, 40 are left
        assert found.decodes == ("d",)
        assert 200 - 16 <= found.shape.tokens <= 200
        assert found.budget_tokens == found.shape.tokens

    def test_it_is_cut_to_less_than_half_as_well(self):
        found = step(self.late, finish_ms=takes(0.4))
        assert 100 - 16 <= found.shape.tokens <= 100

    def test_of_what_is_in_time_it_is_cut_to_what_gives_the_most_tokens_per_ms(self):
        def in_stairs(shape: StepShape, issue_ms: float) -> float:
            """128 tokens take 20 ms, 200 take 38, more are late."""
            stairs = ((128, 20.0), (200, 38.0), (10**6, 60.0))
            return issue_ms + next(ms for most, ms in stairs if shape.tokens <= most)

        found = step(self.late, finish_ms=in_stairs)
        assert (found.decodes, found.chunks) == (("d",), (("p", 127),))

    @pytest.mark.parametrize(("upper_ms", "tokens"), [(37.0, 256), (39.0, 256), (41.0, 64)])
    def test_the_margin_is_wide_unless_the_chunk_falls_off_a_stair_for_it(self, upper_ms, tokens):
        def in_stairs(shape: StepShape, issue_ms: float) -> float:
            """64 tokens take 20 ms; 40 are left with the margin, 38 with the wide one."""
            return issue_ms + (20.0 if shape.tokens <= 64 else upper_ms)

        found = step(self.late, finish_ms=in_stairs)
        assert found.decodes == ("d",)
        assert found.shape.tokens == pytest.approx(tokens, abs=16)

    def test_where_no_chunk_is_in_time_decodes_go_alone(self):
        found = step(self.late, finish_ms=takes(3.0))  # 40 ms are 13 tokens
        assert (found.decodes, found.chunks) == (("d",), ())

    def test_in_time_they_ride(self):
        found = step(self.late, finish_ms=takes(0.15))  # 38 ms
        assert found.decodes == ("d",)
        assert found.chunks == (("p", 255),)

    def follows(self, back_ms: float):
        flying = replace(decode("d"), computed_tokens=101)
        return state(
            flying, prompt("p", 2000, computed=256), in_flight=(StepInFlight(back_ms, ("d",)),)
        )

    def test_decodes_in_flight_have_to_come_after_it_in_time(self):
        # Back at 10, due at 200: the step after a chunk of 160 tokens is there at 160 x 1.25.
        found = step(self.follows(10.0), finish_ms=takes(1.0))
        assert 160 - 16 <= found.shape.tokens <= 160

    def test_where_they_cannot_the_chunk_waits_for_them(self):
        assert hold(self.follows(10.0), finish_ms=takes(20.0)).until_ms == 10.0

    def test_switched_off_they_ride_and_are_late(self):
        found = step(self.late, finish_ms=takes(0.2), rules=Rules(late_cuts_chunk=False))
        assert found.decodes == ("d",)
        assert found.chunks == (("p", 255),)


class TestPace:
    paced = Knobs(1410, 256, microbatches=1, pace_ms=1000.0)

    def test_ready_decodes_are_held_until_the_earliest_is_due(self):
        held = state(decode("a", last_ms=-20.0), decode("b", last_ms=-5.0))
        # due at -20 + 200 - 12 (the wide margin); the pass takes 30
        assert hold(held, self.paced, finish_ms=takes(0.0, 30.0)).until_ms == pytest.approx(138.0)
        both = step(held, self.paced, now_ms=138.0, finish_ms=takes(0.0, 30.0))
        assert both.decodes == ("a", "b")

    def test_a_pace_ends_before_the_due_time(self):
        held = state(decode("a", last_ms=-20.0))
        knobs = Knobs(1410, 256, pace_ms=50.0)
        assert hold(held, knobs, finish_ms=takes(0.0, 30.0)).until_ms == pytest.approx(30.0)

    def test_the_pass_is_reckoned_at_the_clock_it_will_meet(self):
        def slower_later(_: StepShape, issue_ms: float) -> float:
            return issue_ms + (10.0 if issue_ms < 25.0 else 30.0)

        assert hold(state(decode("a")), self.paced, finish_ms=slower_later).until_ms == 158.0

    def test_it_reckons_with_those_in_flight_that_may_join(self):
        flying = RequestState("f", 100, 0.0, computed_tokens=101, generated_tokens=1)
        found = hold(state(decode("a"), flying), self.paced, finish_ms=takes(10.0))
        assert found.until_ms == pytest.approx(188.0 - 20.0)

    def test_microbatches_behind_the_first_go_in_time_too(self):
        held = state(*(decode(f"d{i}") for i in range(4)))
        knobs = Knobs(1410, 256, microbatches=2, pace_ms=1000.0)
        # the second microbatch goes one stage's time (40 / 4) after the first
        assert hold(held, knobs, finish_ms=takes(0.0, 40.0)).until_ms == pytest.approx(138.0)

    def test_switched_off_nothing_is_held(self):
        assert step(state(decode("a")), self.paced, rules=Rules(pace=False)).decodes == ("a",)

    def test_late_ones_go_at_once(self):
        assert step(state(decode("a", last_ms=-500.0)), self.paced).decodes == ("a",)


class TestMicrobatches:
    def test_a_decode_only_step_shows_the_earliest_due_only(self):
        decodes = [decode("a", -10.0), decode("b", -30.0), decode("c", -20.0), decode("d", -40.0)]
        found = step(state(*decodes), Knobs(1410, 256, microbatches=2))
        assert found.decodes == ("b", "d")

    def test_a_tighter_slo_is_due_earlier(self):
        decodes = [decode("a", -10.0), decode("b", -5.0, tbt_ms=50.0)]
        assert step(state(*decodes), Knobs(1410, 256, microbatches=2)).decodes == ("b",)


PROMPTS = st.lists(
    st.tuples(st.integers(1, 60), st.integers(-5, 90), st.integers(-5, 90), st.integers(1, 40)),
    min_size=1,
    max_size=6,
)


@given(PROMPTS, st.sampled_from((1, 4, 7)), st.integers(20, 60))
def test_kv_blocks_are_neither_lost_nor_made(
    prompts: list[tuple[int, int, int, int]], block_size: int, tokens: int
) -> None:
    """Whatever a prefix cache claims to hold of a prompt, to its last token and beyond."""
    limits = EngineLimits(pp=2, block_size=block_size, max_num_seqs=4, max_batched_tokens=24)
    every_block = -(-100 // block_size)  # one request always fits
    now = state(
        waiting=[
            replace(prompt(f"w{i}", tokens, cached=hit), unheld_tokens=unheld)
            for i, (tokens, hit, unheld, _) in enumerate(prompts)
        ],
        limits=limits, free_blocks=every_block,
    )  # fmt: skip
    outputs = {f"w{i}": last for i, (*_, last) in enumerate(prompts)}
    for at in range(10_000):
        held = {r.request_id: blocks(r.computed_tokens, r, block_size) for r in now.running}
        assert now.free_blocks + sum(held.values()) == every_block
        assert now.free_blocks >= 0
        assert all(number > 0 for number in held.values()), "its last token is its own"
        if not (now.running or now.waiting):
            return
        move = compose(now, Knobs(1410, tokens), float(at), QUICK, Rules.vanilla())
        if isinstance(move, Step):
            route = (Pass(float(at), 0.0, 0.0),) * 2 if move.shape.tokens else ()
            now = issue(now, move, route)
        else:
            now = finish(now, float(at))
            ended = [r for r in now.running if r.generated_tokens >= outputs[r.request_id]]
            freed = sum(blocks(r.computed_tokens, r, block_size) for r in ended)
            now = replace(
                now,
                running=tuple(r for r in now.running if r not in ended),
                free_blocks=now.free_blocks + freed,
            )
    raise AssertionError("it never ends")


def test_an_empty_engine_waits():
    assert hold(state()).until_ms == math.inf


def test_it_changes_nothing_and_says_the_same_again():
    snapshot = state(decode("d"), waiting=[prompt("w", 900)])
    assert step(snapshot) == step(snapshot)


class TestOverdue:
    def answer(self, arrival_ms: float):
        waiting = replace(prompt("p", 2000, computed=256), arrival_ms=arrival_ms)
        return step(state(decode("d", last_ms=-150.0), waiting), finish_ms=takes(3.0))

    def test_a_prompt_that_waited_for_too_long_is_not_held_up_by_decodes(self):
        assert self.answer(-1000.0 * Correction().patience_slos - 1.0).chunks == (("p", 255),)

    def test_one_that_did_not_is(self):
        assert self.answer(-1000.0 * Correction().patience_slos + 1.0).chunks == ()
