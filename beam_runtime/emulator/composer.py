"""The step composer: how knobs become the engine's next step.

``compose`` is one function. Emulator, replay plant and engine adapter call it, so that what was
predicted is what is done. BEAM's rules (design/control.md), each of which ``Rules`` can switch
off: issue just in time; let decodes ride while there is prefill; those that can wait give way to
prompts, or all go in one step with chunks alone between (between.py); cut a chunk that would make
decodes late, or send them ahead of it; hold decodes until the earliest is due. What they leave to
be scheduled vLLM's own rules put into the step (schedule.py); an adapter takes from the result the
budget and which decodes to show.

Who is ready, whether prefill is pending and the earliest due are kept up to date by ``set_kind``,
only where a request changes.

What it does not know: when requests end, and what arrives next.
"""

import math

from beam_runtime.emulator.between import between
from beam_runtime.emulator.compiler import compiled
from beam_runtime.emulator.deadlines import due_ms, joining_due_ms
from beam_runtime.emulator.in_time import (
    AS_LONG,
    cut_in_time,
    due_in_flight,
    finish_ms,
    kept,
    overdue,
)
from beam_runtime.emulator.places import flight_slot
from beam_runtime.emulator.promises import GAP
from beam_runtime.emulator.schedule import HIDDEN, WHOLE, fill, kind_of, prefill_pending
from beam_runtime.emulator.setup import GO, HOLD, STEP, Batch, Setting, Tables, decode_batch
from beam_runtime.emulator.shown import fill_with
from beam_runtime.emulator.state import DECODING, PREFILL, READY, Records, State
from beam_runtime.types import SAME_MS


@compiled
def compose(
    state: State, setting: Setting, now_ms: float, setup: Records, tables: Tables
) -> tuple[int, float, Batch]:
    """Decide what the engine does now.

    Args:
        state: the engine.
        setting: clock, chunk, microbatches and pace to follow.
        now_ms: the moment of deciding.
        setup: limits, rules, corrections.
        tables: what steps cost.

    Returns:
        (HOLD, until when nothing is issued unless something happens, -), or
        (STEP, now, the step).
    """
    engine = state.engine
    nothing = decode_batch(0, 0)
    if engine.flying >= setup.max_steps_in_flight:  # the pipeline is full
        return HOLD, state.flights[engine.flying_head].finish_ms, nothing
    first_stage_ms = state.stage_free_ms[0] - setup.lead_ms
    if setup.just_in_time and now_ms < first_stage_ms - SAME_MS:  # its entrance is busy
        return HOLD, first_stage_ms, nothing

    ready = engine.ready
    group = -(-engine.decoding // setting.microbatches)
    budget_tokens = chunk_budget(state, setting.chunk_tokens, setup)
    if prefill_pending(state, setup):
        if setup.together and ready < engine.decoding:
            answer, until_ms, chunk = between(state, budget_tokens, now_ms, setting, setup, tables)
            if answer != GO:
                return answer, until_ms, chunk
        riding = ready if setup.ride_along else min(ready, group)
        mixed = fill_with(state, riding, budget_tokens, WHOLE, setup)
        if mixed.chunk_tokens > 0:
            return with_chunk(state, mixed, riding, budget_tokens, now_ms, setting, setup, tables)
        if mixed.preempted > 0:
            return STEP, now_ms, mixed
    if ready == 0:
        return HOLD, math.inf, nothing

    if setup.pace and setting.pace_ms > 0.0:
        until_ms = hold_until_ms(state, group, now_ms, setting, setup, tables)
        if now_ms < until_ms - SAME_MS:  # paced: no token is due yet
            return HOLD, until_ms, nothing
    chosen = min(ready, group)
    return STEP, now_ms, fill_with(state, chosen, min(chosen, budget_tokens), HIDDEN, setup)


@compiled
def chunk_budget(state: State, chunk_tokens: int, setup: Records) -> int:
    """The step's token budget: room for every decode and a minimum chunk, inside the envelope."""
    least = state.engine.decoding + setup.min_chunk_tokens if setup.min_chunk_tokens > 0 else 0
    budget: int = min(max(chunk_tokens, least), setup.max_batched_tokens)
    return budget


@compiled
def set_kind(state: State, row: int, setup: Records) -> None:
    """A running request changed: what can it do now?"""
    request = state.requests[row]
    count(state, request.kind, -1)
    kind = kind_of(request, setup)
    request.kind = kind
    count(state, kind, 1)
    if kind == READY:
        note_ready(state, request)


@compiled
def count(state: State, kind: int, by: int) -> None:
    """So many more running requests of this kind."""
    state.engine.ready += by * (kind == READY)
    state.engine.prefilling += by * (kind == PREFILL)
    state.engine.decoding += by * (kind == READY or kind == DECODING)


@compiled
def note_ready(state: State, request: Records) -> None:
    """One more decode is ready."""
    due = due_ms(request)
    state.engine.due_ms = min(state.engine.due_ms, due)
    if request.slo_kind == GAP:
        state.engine.gap_due_ms = min(state.engine.gap_due_ms, due)
    state.engine.ready_since_ms = min(state.engine.ready_since_ms, request.last_token_ms)


@compiled
def classify(state: State, setup: Records) -> None:
    """Find anew every kind, and the tightest gap in flight, of a state that was just made."""
    state.engine.ready = state.engine.prefilling = state.engine.decoding = 0
    state.engine.due_ms = state.engine.gap_due_ms = math.inf
    state.engine.ready_since_ms = math.inf
    for at in range(state.engine.running):
        request = state.requests[state.places[at].running]
        request.room_tokens = -request.computed_tokens % setup.block_size
        request.kind = kind_of(request, setup)
        count(state, request.kind, 1)
        if request.kind == READY:
            note_ready(state, request)
    for number in range(state.engine.flying):
        slot = flight_slot(state, number)
        state.flights[slot].gap_ms = math.inf
        for member in range(state.flights[slot].tokens):
            request = state.requests[state.members[slot, member]]
            if request.slo_kind == GAP:
                state.flights[slot].gap_ms = min(state.flights[slot].gap_ms, request.token_slo_ms)


@compiled
def refresh_due(state: State) -> None:
    """Look again for the earliest due, after ready requests were sent off or preempted."""
    state.engine.due_ms = state.engine.gap_due_ms = math.inf
    state.engine.ready_since_ms = math.inf
    if state.engine.ready == 0:
        return
    for at in range(state.engine.running):
        request = state.requests[state.places[at].running]
        if request.kind == READY:
            note_ready(state, request)


@compiled
def with_chunk(
    state: State, mixed: Batch, riding: int, budget_tokens: int, now_ms: float, setting: Setting,
    setup: Records, tables: Tables,
) -> tuple[int, float, Batch]:  # fmt: skip
    """What compose answers while prompts can go: as much as lets every decode be in time.

    Decodes in flight count as well: they can only be in a step after this one. Only gaps count: by
    tpot and e2e a late token is made good by others, and prompts that made way would starve.

    Where the budget is what ends a step, or time leaves nothing for prompts, decodes that can wait
    do. A step that is cut is the same for any larger budget (search/next_play.py).
    """
    all_shown = riding == state.engine.ready
    cuts = setup.late_cuts_chunk and not overdue(state, mixed, now_ms, setup)
    spreads = setup.give_way and setup.ride_along and not setup.together
    due = due_in_flight(state, AS_LONG)
    step = mixed
    if cuts:
        step = cut_in_time(state, mixed, riding, WHOLE, due, now_ms, setting, setup, tables)
    full = step.chunk_tokens + step.decodes == budget_tokens
    if spreads and full and step.decodes > 0:
        fewer = riders(state, step, now_ms, setting, setup, tables)
        if fewer < riding:
            step = fill_with(state, fewer, budget_tokens, WHOLE, setup)
            room = budget_tokens - step.chunk_tokens - step.decodes
            if room > 0:
                fewer = min(riding, fewer + room)
                step = fill_with(state, fewer, budget_tokens, WHOLE, setup)
            if cuts and not kept(state, step, fewer, due, now_ms, setting, setup, tables):
                step = fill(state, budget_tokens, all_shown, WHOLE, setup)
    if step.chunk_tokens > 0:
        return STEP, now_ms, step
    if riding == 0:  # decodes in flight could not follow a chunk in time
        return HOLD, state.flights[state.engine.flying_head].finish_ms, step
    alone = fill(state, riding, all_shown, HIDDEN, setup)
    if spreads:
        riding = riders(state, alone, now_ms, setting, setup, tables)
        alone = fill_with(state, riding, riding, HIDDEN, setup)
    return STEP, now_ms, alone


@compiled
def riders(
    state: State, step: Batch, now_ms: float, setting: Setting, setup: Records, tables: Tables
) -> int:
    """How many decodes ride in a step; the others give way.

    Those that the step after it would make late, and a fair share even if nobody is pressed:
    decodes that went together while they were paced come to be spread over the pipeline, so
    that its steps are equally long.
    """
    back_ms = finish_ms(state, step, now_ms, setting, setup, tables)
    next_ms = back_ms + (back_ms - now_ms) / setup.pp
    pressed = 0
    if state.engine.due_ms - setup.tbt_margin_ms + SAME_MS < next_ms:
        for at in range(state.engine.running):
            request = state.requests[state.places[at].running]
            late = due_ms(request) - setup.tbt_margin_ms + SAME_MS < next_ms
            pressed += late and request.kind == READY
    riding: int = min(state.engine.ready, max(pressed, -(-state.engine.decoding // setup.pp)))
    return riding


@compiled
def hold_until_ms(
    state: State, group: int, now_ms: float, setting: Setting, setup: Records, tables: Tables
) -> float:
    """When the ready decodes must go: at the end of the pace, or in time for the earliest due.

    In time is reckoned with a full microbatch, for what is in flight may join until then; and
    each further microbatch goes one stage's time after the one before. A microbatch that is not
    full waits on for the next step to come back where its streams have the lead for that: they
    go on together, in fewer steps.
    """
    context_tokens, joining_ms = 0, math.inf
    for at in range(state.engine.running):
        request = state.requests[state.places[at].running]
        if request.kind == READY or request.kind == DECODING:
            context_tokens += request.computed_tokens
        if request.kind == READY:
            joining_ms = min(joining_ms, joining_due_ms(request))
    full = decode_batch(group, context_tokens * group // state.engine.decoding)
    further = -(-state.engine.ready // group) - 1
    pace_end_ms = state.engine.ready_since_ms + setting.pace_ms
    until_ms = behind_ms = now_ms
    # Once as if it went now, once as if it went then: the clock may change in between.
    for _ in range(2):
        travel_ms = finish_ms(state, full, until_ms, setting, setup, tables) - until_ms
        behind_ms = setup.wide_margin_ms + travel_ms + further * travel_ms / setup.pp
        until_ms = min(state.engine.due_ms - behind_ms, pace_end_ms)
        if until_ms <= now_ms:
            break
    if state.engine.ready < group and state.engine.flying > 0:
        back_ms = state.flights[state.engine.flying_head].finish_ms
        if back_ms <= min(joining_ms - behind_ms, pace_end_ms):
            until_ms = max(until_ms, back_ms)
    return until_ms
