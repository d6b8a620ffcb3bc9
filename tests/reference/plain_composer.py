"""The step composer: how knobs become the engine's next step.

``compose`` is one pure function. Emulator, replay plant and engine adapter call it (the first
two in its compiled form), so that what was predicted is what is done.

BEAM's rules (design/control.md), each of which ``Rules`` can switch off: issue just in time;
let decodes ride while there is prefill; those that can wait give way to prompts, or all go in
one step with chunks alone between; cut a chunk that would make decodes late, or send them ahead of
it; hold decodes until the earliest is due.
What they leave to be scheduled vLLM's own rules put into the step (schedule.py); an adapter takes
from the result the budget and which decodes to show.

What it does not know: when requests end, and what arrives next.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import plain_promises as promises
from plain_in_time import (
    LATER_MS,
    Finish,
    cut_in_time,
    decodes_of,
    due_ms,
    gap_due_ms,
    in_time,
    overdue,
    step_after_ms,
)
from plain_promises import last_token_ms
from plain_schedule import Step, admissible, available, fill, new_tokens

from beam_runtime.types import (
    SAME_MS,
    Knobs,
    Phase,
    RequestState,
    Rules,
    Snapshot,
    StepShape,
)

__all__ = [
    "Hold",
    "Step",
    "chunk_budget",
    "compose",
    "due_ms",
    "last_token_ms",
    "prefill_pending",
]


@dataclass(frozen=True, slots=True)
class Hold:
    """Issue nothing before ``until_ms`` unless something happens; inf = until it does."""

    until_ms: float
    why: str


def compose(
    state: Snapshot, knobs: Knobs, now_ms: float, finish_ms: Finish, rules: Rules | None = None
) -> Step | Hold:
    """Decide what the engine does now.

    Args:
        state: the engine; the knobs in it are not looked at.
        knobs: chunk, microbatches and pace to follow.
        now_ms: the moment of deciding.
        finish_ms: when a step of some shape would be back if it were issued at some time.
        rules: which of BEAM's rules hold; all of them by default.
    """
    rules = rules or Rules()
    return (
        _closed(state, now_ms, rules)
        or _with_prefill(state, knobs, now_ms, finish_ms, rules)
        or _decodes_alone(state, knobs, now_ms, finish_ms, rules)
    )


def _closed(state: Snapshot, now_ms: float, rules: Rules) -> Hold | None:
    """Whether the pipeline takes no step now."""
    if len(state.in_flight) >= state.limits.max_steps_in_flight:
        return Hold(state.in_flight[0].finish_ms, "the pipeline is full")
    first_stage_ms = state.stage_free_ms[0] - rules.lead_ms
    if rules.just_in_time and now_ms < first_stage_ms - SAME_MS:
        return Hold(first_stage_ms, "the first stage is busy")
    return None


def _with_prefill(
    state: Snapshot, knobs: Knobs, now_ms: float, finish_ms: Finish, rules: Rules
) -> Step | Hold | None:
    """A step with a chunk in it, or the decodes that have to go ahead of one."""
    if not prefill_pending(state):
        return None
    decoding = decodes_of(state)
    ready = [r for r in decoding if new_tokens(r, state)]
    riding: Sequence[RequestState] = ready
    if not rules.ride_along:
        riding = _earliest_due(ready, _group(decoding, knobs), state)
    budget = chunk_budget(knobs.chunk_tokens, len(decoding), state, rules)
    together = rules.together and rules.ride_along and rules.late_cuts_chunk
    if together and len(ready) < len(decoding):
        move = _between(state, budget, ready, decoding, now_ms, finish_ms)
        if move is not None:
            return move
    mixed = fill(state, budget, riding, prefill=True)
    if not mixed.chunks:
        return mixed if mixed.preempted else None
    return _with_chunk(mixed, riding, decoding, state, now_ms, finish_ms, rules)


def _with_chunk(
    mixed: Step,
    riding: Sequence[RequestState],
    decoding: Sequence[RequestState],
    state: Snapshot,
    now_ms: float,
    finish_ms: Finish,
    rules: Rules,
) -> Step | Hold:
    """The step with as much of its chunk as lets every decode be in time.

    Where the budget is what ends it, or time leaves nothing for prompts, decodes that can wait do.
    """
    cuts = rules.late_cuts_chunk and not overdue(mixed, state, now_ms)
    together = rules.together and rules.ride_along and rules.late_cuts_chunk
    spreads = rules.give_way and rules.ride_along and not together
    step: Step | None = mixed
    if cuts:
        step = cut_in_time(mixed, riding, state, now_ms, finish_ms)
    if step is not None:
        if spreads and step.decodes and step.shape.tokens == mixed.budget_tokens:
            fewer, wider = _give_way(step, riding, len(decoding), state, now_ms, finish_ms)
            if not cuts or in_time(wider, fewer, state, now_ms, finish_ms):
                return wider
        return step
    if not riding:
        return Hold(state.in_flight[0].finish_ms, "decodes in flight could not follow a chunk")
    alone = _decode_only(state, riding, len(riding))
    if spreads:
        riders = _riders(alone, riding, len(decoding), state, now_ms, finish_ms)
        riding = _earliest_due(riding, riders, state)
        alone = _decode_only(state, riding, len(riding))
    return alone


def _between(
    state: Snapshot,
    budget: int,
    ready: Sequence[RequestState],
    decoding: Sequence[RequestState],
    now_ms: float,
    finish_ms: Finish,
) -> Step | Hold | None:
    """A chunk alone between two steps with all decodes; None: those that are ready go now.

    Prompts stay a token short, and who is ready waits for the others, if that is in time.
    """
    if not state.in_flight:
        return None
    head = state.in_flight[0]
    if head.request_ids and head.finish_ms <= state.stage_free_ms[0] + SAME_MS:
        return Hold(head.finish_ms, "the others are back before the first stage is free")
    everyone = _all_of(decoding)
    chunk = fill(state, budget, (), prefill=True, short=True)
    if chunk.chunks and not chunk.preempted:
        next_ms = _stage_ms(everyone, state, finish_ms)
        cut: Step | None = chunk
        if not overdue(chunk, state, now_ms):
            cut = cut_in_time(
                chunk, (), state, now_ms, finish_ms, waiting=ready, next_ms=next_ms, short=True
            )
        if cut is not None:
            return cut
    margin_ms = state.correction.wide_margin_ms
    in_time_ms = gap_due_ms(ready, state) - margin_ms + SAME_MS
    if ready and finish_ms(everyone, head.finish_ms) > in_time_ms:
        return None
    return Hold(head.finish_ms, "decodes go on together")


def _all_of(decoding: Sequence[RequestState]) -> StepShape:
    return StepShape(
        decode_requests=len(decoding),
        decode_context_tokens=sum(r.computed_tokens for r in decoding),
    )


def _stage_ms(shape: StepShape, state: Snapshot, finish_ms: Finish) -> float:
    """A step in one stage: one that finds all of them free takes pp times that."""
    travel_ms = finish_ms(shape, LATER_MS) - LATER_MS
    pp = state.limits.pp
    return (travel_ms - (pp - 1) * state.limits.transfer_ms) / pp


def _give_way(
    full: Step,
    ready: Sequence[RequestState],
    decoding: int,
    state: Snapshot,
    now_ms: float,
    finish_ms: Finish,
) -> tuple[Sequence[RequestState], Step]:
    """The decodes that ride in a step that its budget ends, and that step."""
    budget = full.budget_tokens
    riders = _riders(full, ready, decoding, state, now_ms, finish_ms)
    riding = _earliest_due(ready, riders, state)
    step = fill(state, budget, riding, prefill=True)
    if len(riding) < len(ready) and step.shape.tokens < budget:
        riding = _earliest_due(ready, riders + budget - step.shape.tokens, state)
        step = fill(state, budget, riding, prefill=True)
    return riding, step


def _riders(
    step: Step,
    ready: Sequence[RequestState],
    decoding: int,
    state: Snapshot,
    now_ms: float,
    finish_ms: Finish,
) -> int:
    """How many decodes ride in a step; the others give way.

    Those that the step after it would make late, and a fair share even if nobody is pressed:
    decodes that went together while they were paced come to be spread over the pipeline, so
    that its steps are equally long.
    """
    next_ms = step_after_ms(step, state, now_ms, finish_ms) + state.correction.tbt_margin_ms
    pressed = sum(1 for r in ready if due_ms([r], state) + SAME_MS < next_ms)
    return min(len(ready), max(pressed, -(-decoding // state.limits.pp)))


def _decodes_alone(
    state: Snapshot, knobs: Knobs, now_ms: float, finish_ms: Finish, rules: Rules
) -> Step | Hold:
    """One microbatch of the ready decodes, held until the earliest is due."""
    decoding = decodes_of(state)
    ready = [r for r in decoding if new_tokens(r, state)]
    if not ready:
        return Hold(math.inf, "nothing is ready")
    group = _group(decoding, knobs)
    if rules.pace and knobs.pace_ms > 0.0:
        until_ms = _hold_until_ms(ready, decoding, group, state, knobs, now_ms, finish_ms)
        if now_ms < until_ms - SAME_MS:
            return Hold(until_ms, "paced: no token is due yet")
    budget = chunk_budget(knobs.chunk_tokens, len(decoding), state, rules)
    return _decode_only(state, _earliest_due(ready, group, state), budget)


def _group(decoding: Sequence[RequestState], knobs: Knobs) -> int:
    """Decodes of one microbatch."""
    return -(-len(decoding) // knobs.microbatches)


def _decode_only(state: Snapshot, decodes: Sequence[RequestState], budget: int) -> Step:
    return fill(state, min(len(decodes), budget), decodes, prefill=False)


def _hold_until_ms(
    ready: Sequence[RequestState],
    decoding: Sequence[RequestState],
    group: int,
    state: Snapshot,
    knobs: Knobs,
    now_ms: float,
    finish_ms: Finish,
) -> float:
    """When the ready decodes must go: at the end of the pace, or in time for the earliest due.

    In time is reckoned with a full microbatch, for what is in flight may join until then; and
    each further microbatch goes one stage's time after the one before. One that is not full
    waits on for the next step to come back where its streams have the lead for that.
    """
    full = StepShape(
        decode_requests=group,
        decode_context_tokens=sum(r.computed_tokens for r in decoding) * group // len(decoding),
    )
    further = -(-len(ready) // group) - 1
    pace_end_ms = min(last_token_ms(r, state) for r in ready) + knobs.pace_ms
    until_ms = behind_ms = now_ms
    # Once as if it went now, once as if it went then: the clock may change in between.
    for _ in range(2):
        travel_ms = finish_ms(full, until_ms) - until_ms
        behind_ms = state.correction.wide_margin_ms + travel_ms
        behind_ms += further * travel_ms / state.limits.pp
        until_ms = min(due_ms(ready, state) - behind_ms, pace_end_ms)
        if until_ms <= now_ms:
            break
    if len(ready) < group and state.in_flight:
        joining_ms = min(promises.joining_due_ms(r, state) for r in ready)
        back_ms = state.in_flight[0].finish_ms
        if back_ms <= min(joining_ms - behind_ms, pace_end_ms):
            until_ms = max(until_ms, back_ms)
    return until_ms


def chunk_budget(chunk_tokens: int, decoding: int, state: Snapshot, rules: Rules) -> int:
    """The step's token budget: room for every decode and a minimum chunk, inside the envelope."""
    if rules.min_chunk_tokens:
        chunk_tokens = max(chunk_tokens, decoding + rules.min_chunk_tokens)
    return min(chunk_tokens, state.limits.max_batched_tokens)


def prefill_pending(state: Snapshot) -> bool:
    """Whether the next step could carry prefill."""
    if any(r.phase is not Phase.DECODE and new_tokens(r, state) for r in state.running):
        return True
    head = next((r for r in state.waiting if available(r, state)), None)
    return head is not None and admissible(
        head, len(state.running), state.free_blocks, state.limits
    )


def _earliest_due(ready: Sequence[RequestState], size: int, state: Snapshot) -> list[RequestState]:
    """The ``size`` decodes that are due first, in the engine's order."""
    if len(ready) <= size:
        return list(ready)
    by_due = sorted(
        range(len(ready)),
        key=lambda i: (promises.due_ms(ready[i], state), i),
    )
    return [ready[i] for i in sorted(by_due[:size])]
