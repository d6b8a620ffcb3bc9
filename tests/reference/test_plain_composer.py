"""The composer's rules one by one; vLLM's under them are in test_plain_schedule.py."""

import math
from dataclasses import replace

import pytest
from composer_cases import decode, hold, prompt, state, step, takes

from beam_runtime.types import (
    Correction,
    Knobs,
    RequestState,
    Rules,
    StepInFlight,
    StepShape,
)


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

    @pytest.mark.parametrize("budget", [512, 256, 200, 192])
    def test_it_is_cut_to_whole_tiles_whatever_its_budget(self, budget):
        def in_stairs(shape: StepShape, issue_ms: float) -> float:
            """200 tokens take 38 ms, more are late."""
            return issue_ms + (38.0 if shape.tokens <= 200 else 60.0)

        found = step(self.late, Knobs(1410, budget), finish_ms=in_stairs)
        assert found.decodes == ("d",)
        assert found.shape.tokens == (200 if budget == 200 else 192)

    @pytest.mark.parametrize(("upper_ms", "tokens"), [(39.0, 256), (41.0, 64)])
    def test_the_margin_is_kept_however_far_a_stair_is(self, upper_ms, tokens):
        def in_stairs(shape: StepShape, issue_ms: float) -> float:
            """64 tokens take 20 ms; 40 are left with the margin."""
            return issue_ms + (20.0 if shape.tokens <= 64 else upper_ms)

        found = step(self.late, finish_ms=in_stairs)
        assert found.decodes == ("d",)
        assert found.shape.tokens == tokens

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
