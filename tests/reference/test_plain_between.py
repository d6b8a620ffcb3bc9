"""Chunks alone between two steps with all decodes, rule by rule."""

from collections.abc import Callable
from dataclasses import replace

from plain_composer import Hold, Step, compose

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

LIMITS = EngineLimits(pp=4, max_num_seqs=8, max_batched_tokens=512)
TOGETHER = Rules(together=True)
AT_128 = Knobs(1410, 128)


def decode(name: str, last_ms: float, *, flying: bool = False) -> RequestState:
    return RequestState(
        name, 100, -1000.0, Slo(tbt_ms=100.0), computed_tokens=101 if flying else 100,
        generated_tokens=1, last_token_ms=last_ms, steps_ahead=int(flying),
    )  # fmt: skip


def prompt(name: str, tokens: int, computed: int = 0) -> RequestState:
    return RequestState(name, tokens, 0.0, Slo(tbt_ms=100.0), computed_tokens=computed)


def state(
    *running: RequestState, waiting: tuple[RequestState, ...] = (), back_ms: float = 60.0
) -> Snapshot:
    """One step is in flight, with all decodes that are not ready."""
    flying = tuple(r.request_id for r in running if r.steps_ahead)
    return Snapshot(
        0.0, LIMITS, AT_128, running, waiting, (StepInFlight(back_ms, flying),),
        stage_free_ms=(0.0, 20.0, 40.0, 60.0), correction=Correction(tbt_margin_ms=5.0),
    )  # fmt: skip


def takes(ms_per_token: float) -> Callable[[StepShape, float], float]:
    """A step goes through four stages, each of which takes 10 ms and so much a token."""
    return lambda shape, issue_ms: issue_ms + 4 * (10.0 + ms_per_token * shape.tokens)


def asked(snapshot: Snapshot, rules: Rules = TOGETHER, ms_per_token: float = 0.1) -> Step | Hold:
    return compose(snapshot, AT_128, 0.0, takes(ms_per_token), rules)


def step(snapshot: Snapshot, rules: Rules = TOGETHER, ms_per_token: float = 0.1) -> Step:
    found = asked(snapshot, rules, ms_per_token)
    assert isinstance(found, Step), found
    return found


FLYING = decode("f", -40.0, flying=True)


def test_a_ready_decode_waits_for_those_in_flight_and_a_chunk_goes_alone() -> None:
    busy = state(FLYING, decode("r", 0.0), prompt("p", 900), back_ms=20.0)
    assert step(busy, ms_per_token=0.01).decodes == ()
    assert step(busy, Rules(), ms_per_token=0.01).decodes == ("r",)


def test_it_does_not_wait_where_that_makes_it_late() -> None:
    late = state(FLYING, decode("r", -50.0), prompt("p", 900), back_ms=20.0)
    assert step(late, ms_per_token=0.01).decodes == ("r",)


def test_a_prompt_is_left_its_last_token() -> None:
    found = step(state(FLYING, prompt("p", 100)))
    assert (found.chunks, found.each_tokens) == ((("p", 99),), 99)


def test_it_gets_that_with_the_decodes() -> None:
    ready = state(decode("r", 0.0), prompt("p", 100, computed=99), prompt("q", 100, computed=20))
    found = step(ready)
    assert (found.decodes, found.chunks) == (("r",), (("p", 1), ("q", 80)))


def test_one_that_has_just_that_is_not_seen_in_between() -> None:
    found = step(state(FLYING, prompt("p", 100, computed=99), prompt("q", 900)))
    assert (found.chunks, found.each_tokens) == ((("q", 128),), 0)


def test_the_first_that_would_be_done_says_how_many_each_may_have() -> None:
    found = step(state(FLYING, prompt("p", 41), prompt("q", 900), waiting=(prompt("w", 900),)))
    assert found.chunks == (("p", 40), ("q", 40), ("w", 40))
    assert found.each_tokens == 40


def test_the_next_one_ends_the_step() -> None:
    found = step(state(FLYING, prompt("p", 41), prompt("q", 31), waiting=(prompt("w", 900),)))
    assert found.chunks == (("p", 40), ("q", 30))


def test_a_chunk_is_cut_to_what_lets_those_in_flight_follow_in_time() -> None:
    # Back at 60, due at 160: less the margins, and 44 ms of which 11 for the decode behind it.
    found = step(state(FLYING, prompt("p", 900)), ms_per_token=0.3)
    whole = step(state(FLYING, prompt("p", 900)), ms_per_token=0.1)
    assert whole.shape.tokens == 128
    assert 0 < found.shape.tokens < 128


def test_a_step_longer_than_a_gap_keeps_a_margin_that_is_as_many_times_wider() -> None:
    def longest_ms(margin_ms: float) -> float:
        snapshot = state(FLYING, prompt("p", 900), back_ms=120.0)
        snapshot = replace(snapshot, correction=Correction(tbt_margin_ms=margin_ms))
        return takes(1.0)(step(snapshot, ms_per_token=1.0).shape, 0.0)

    # Due at 220, the decode behind takes 11: a chunk of more than 100 ms.
    assert longest_ms(0.0) > 150.0
    kept_ms = 220.0 - 11.0 - longest_ms(20.0)
    assert kept_ms > 20.0 * longest_ms(20.0) / 100.0


def test_nothing_but_last_tokens_to_come_is_waited_for() -> None:
    found = asked(state(FLYING, prompt("p", 100, computed=99)))
    assert isinstance(found, Hold)
    assert found.until_ms == 60.0


def test_asked_ahead_of_its_time_it_waits_for_decodes_that_are_about_to_be_back() -> None:
    soon = state(FLYING, prompt("p", 900), back_ms=1.0)
    found = asked(replace(soon, stage_free_ms=(1.5, 20.0, 40.0, 60.0)))
    assert isinstance(found, Hold)
    assert found.until_ms == 1.0


def test_without_decodes_prompts_are_computed_whole() -> None:
    assert step(state(prompt("p", 100))).chunks == (("p", 100),)
