"""The engine played forward on paper, by two moves on its state.

    issue    the composer's step enters the pipeline
    finish   the oldest step comes back, and its requests get their tokens

Stage s starts when stage s-1 of this step has sent its activations and stage s has finished the
step before:

    stage 0  [ step 1 ][ step 2 ]
    stage 1            [ step 1 ][ step 2 ]
    stage 2                      [ step 1 ][ step 2 ]

All stages are taken to cost the same: a table describes one stage, so what the embedding and the
sampler add to the first and the last one is not known here.

The replay's plant makes the same two moves in an event loop of its own.
"""

import math
from typing import NamedTuple

from beam_runtime.emulator.compiler import compiled
from beam_runtime.emulator.composer import (
    compose,
    count,
    note_ready,
    refresh_due,
    set_kind,
)
from beam_runtime.emulator.deadlines import due_ms, note_first, tightest_ms
from beam_runtime.emulator.places import flight_slot, waiting_place
from beam_runtime.emulator.promises import GAP
from beam_runtime.emulator.schedule import available, prefill_pending
from beam_runtime.emulator.setup import (
    HOLD,
    JOULE,
    Batch,
    Setting,
    Tables,
    early_share,
    pass_ms,
    step_cost,
)
from beam_runtime.emulator.state import DECODING, OTHER, READY, Records, State

# An engine short of KV blocks may preempt for ever; a play may not. Moves are steps and waits:
# no state is known in which waiting leads nowhere, and a search must end in those unknown, too.
MAX_STEPS = 4096
MAX_MOVES = 4 * MAX_STEPS
# After so many steps without a token of a prompt that could go, prompts starve until they are
# overdue: the play ends.
STARVED_STEPS = 32


class Passes(NamedTuple):
    """A step's passes, summed over the stages: how long GPUs work, joules, and ends less now."""

    busy_ms: float
    energy_j: float
    span_ms: float


@compiled
def issue(
    state: State, batch: Batch, now_ms: float, setting: Setting, setup: Records,
    tables: Tables,
) -> Passes:  # fmt: skip
    """Send a composed step into the pipeline."""
    preempt_last(state, batch.preempted)
    admit(state, batch.admitted)
    engine = state.engine
    engine.free_blocks = batch.free_blocks
    slot = flight_slot(state, engine.flying)
    tokens, gap_ms = 0, math.inf
    for item in range(batch.items):
        row = state.places[item].scheduled
        request = state.requests[row]
        request.computed_tokens += state.places[item].scheduled_tokens
        request.last_step = engine.steps_back + engine.flying + 1
        room_tokens = request.room_tokens - state.places[item].scheduled_tokens
        request.room_tokens = room_tokens if room_tokens >= 0 else room_tokens % setup.block_size
        if request.kind == READY:
            request.kind = DECODING
        else:
            set_kind(state, row, setup)
        if request.computed_tokens == request.total_tokens:
            state.members[slot, tokens] = row
            tokens += 1
            if request.slo_kind == GAP:
                gap_ms = min(gap_ms, request.token_slo_ms)
    engine.ready -= batch.decodes
    if batch.decodes > 0 or batch.preempted > 0:
        refresh_due(state)
    if batch.items == 0:  # everything in it was preempted
        return Passes(0.0, 0.0, 0.0)
    passes = travel(state, batch, now_ms, setting, setup, tables)
    state.flights[slot].finish_ms = state.stage_free_ms[setup.pp - 1]
    state.flights[slot].tokens, state.flights[slot].gap_ms = tokens, gap_ms
    engine.flying += 1
    return passes


@compiled
def preempt_last(state: State, preempted: int) -> None:
    """The last running requests lose their KV blocks and wait before all others."""
    engine = state.engine
    for _ in range(preempted):
        engine.running -= 1
        row = state.places[engine.running].running
        request = state.requests[row]
        count(state, request.kind, -1)
        request.computed_tokens = request.cached_tokens = 0
        request.shared_blocks = request.room_tokens = 0
        request.kind = OTHER
        engine.waiting_head = (engine.waiting_head - 1 + len(state.places)) % len(state.places)
        engine.waiting += 1
        state.places[engine.waiting_head].waiting = row


@compiled
def admit(state: State, admitted: int) -> None:
    """The first waiting requests that are available run; those passed over stay first."""
    engine = state.engine
    found, passed_over = 0, 0
    while found < admitted:
        row = state.places[waiting_place(state, found + passed_over)].waiting
        request = state.requests[row]
        if not available(state, request):
            passed_over += 1
            continue
        found += 1
        request.computed_tokens = request.cached_tokens
        request.room_tokens = 0
        state.places[engine.running].running = row
        engine.running += 1
    to = found + passed_over - 1
    for number in range(to, -1, -1):
        row = state.places[waiting_place(state, number)].waiting
        if passed_over > 0 and not available(state, state.requests[row]):
            state.places[waiting_place(state, to)].waiting = row
            to -= 1
    engine.waiting_head = waiting_place(state, admitted)
    engine.waiting -= admitted


@compiled
def travel(
    state: State, batch: Batch, now_ms: float, setting: Setting, setup: Records, tables: Tables
) -> Passes:
    """Lay the step's passes out over the stages."""
    after_ms = pass_ms(setting.clock, batch, setup, tables)
    after_j = step_cost(JOULE, setting.clock, batch, tables)
    before_ms, before_j = after_ms, after_j
    if setting.clock_before != setting.clock:
        before_ms = pass_ms(setting.clock_before, batch, setup, tables)
        before_j = step_cost(JOULE, setting.clock_before, batch, tables)
    busy_ms, energy_j, span_ms = 0.0, 0.0, 0.0
    ready_ms = now_ms
    for stage in range(setup.pp):
        start_ms = max(ready_ms, state.stage_free_ms[stage])
        early = early_share(start_ms, before_ms, setting)
        one_ms = early * before_ms + (1.0 - early) * after_ms
        end_ms = start_ms + (one_ms + setup.host_gap_ms)
        state.stage_free_ms[stage] = end_ms
        ready_ms = end_ms + setup.transfer_ms
        busy_ms += one_ms
        energy_j += early * before_j + (1.0 - early) * after_j
        span_ms += end_ms - now_ms
    return Passes(busy_ms, energy_j, span_ms)


@compiled
def finish(state: State, now_ms: float, setup: Records) -> None:
    """The oldest step comes back: its requests have one token more."""
    engine = state.engine
    slot = engine.flying_head
    for member in range(state.flights[slot].tokens):
        row = state.members[slot, member]
        request = state.requests[row]
        note_token(request, now_ms)
        if request.generated_tokens == 0:
            note_first(request, now_ms)
        request.total_tokens += 1
        request.generated_tokens += 1
        request.last_token_ms = now_ms
        if request.kind == DECODING and request.computed_tokens < setup.max_model_len:
            request.kind = READY
            engine.ready += 1
            note_ready(state, request)
        elif request.computed_tokens > 0:  # else it was preempted, and waits
            set_kind(state, row, setup)
    engine.flying_head = flight_slot(state, 1)
    engine.steps_back += 1
    engine.flying -= 1


@compiled
def note_token(request: Records, token_ms: float) -> None:
    """What a play is asked afterwards: TTFT, or the longest gap."""
    if request.generated_tokens == 0:
        request.ttft_ms = max(0.0, token_ms - request.arrival_ms)
    else:
        gap_ms = max(0.0, token_ms - request.last_token_ms)
        request.worst_gap_ms = max(request.worst_gap_ms, gap_ms)
        # By tpot and e2e the latest token counts, by gap each.
        late_ms = token_ms - due_ms(request)
        if request.slo_kind == GAP:
            late_ms = max(request.late_ms, late_ms)
        request.late_ms = late_ms


@compiled
def last_back_ms(state: State, now_ms: float) -> float:
    """When the newest step in flight is back; -inf without one."""
    if state.engine.flying == 0:
        return -math.inf
    newest = flight_slot(state, state.engine.flying - 1)
    back_ms: float = max(now_ms, state.flights[newest].finish_ms)
    return back_ms


@compiled
def forget_lateness(state: State) -> None:
    """How late streams are counts anew."""
    for row in range(state.engine.rows):
        state.requests[row].late_ms = -math.inf


@compiled
def next_finish_ms(state: State) -> float:
    """When the oldest step in flight is back; inf without one."""
    if state.engine.flying == 0:
        return math.inf
    back_ms: float = state.flights[state.engine.flying_head].finish_ms
    return back_ms


class Decoding(NamedTuple):
    """What a decode-only phase serves.

    Attributes:
        requests: decodes going round.
        context_tokens: their KV tokens together.
        tbt_ms: the tightest TBT SLO among them.
        groups: microbatches they already form; only a pace merges those.
        by_gap: whether any of them is promised its gaps.
    """

    requests: int
    context_tokens: int
    tbt_ms: float
    groups: int
    by_gap: bool


@compiled
def decode_phase(state: State) -> Decoding:
    """What will be decoding once the steps in flight are back."""
    groups = int(state.engine.ready > 0)
    for number in range(state.engine.flying):
        groups += state.flights[flight_slot(state, number)].tokens > 0
    context_tokens, tbt_ms, all_ms, by_gap = 0, math.inf, math.inf, False
    for at in range(state.engine.running):
        request = state.requests[state.places[at].running]
        context_tokens += request.computed_tokens
        by_gap = by_gap or request.slo_kind == GAP
        all_ms = min(all_ms, request.token_slo_ms)
        if request.broken == 0:
            tbt_ms = min(tbt_ms, request.token_slo_ms)
    tbt_ms = tightest_ms(tbt_ms, all_ms)
    return Decoding(state.engine.running, context_tokens, tbt_ms, max(1, groups), by_gap)


class Played(NamedTuple):
    """The part of a play up to its last step that carries prefill, and what follows.

    Attributes:
        steps: issued, of the whole play.
        span_ms: from the start to that step's end, summed over the stages.
        busy_ms: passes of the steps up to it, summed over the stages.
        active_j: their energy.
        decodes: tokens that requests get from decoding in them.
        chunk_tokens: of prompts, in them.
        most_tokens: of any step of the whole play while prompts waited to go.
        after: what decodes then.
        settled_ms: when the last step is back that was in flight at the start; -inf without one.
    """

    steps: int
    span_ms: float
    busy_ms: float
    active_j: float
    decodes: int
    chunk_tokens: int
    most_tokens: int
    after: Decoding
    settled_ms: float


@compiled
def play(
    state: State, setting: Setting, start_ms: float, lookahead_ms: float, setup: Records,
    tables: Tables,
) -> Played:  # fmt: skip
    """Issue steps until the prefills are done and the look-ahead is over, then drain.

    Uses ``state`` up; its requests hold TTFT and longest gap afterwards. Output lengths are
    unknown online: running requests are assumed to go on. No knob changes what is in flight, so
    tokens count as late from the steps after it on.
    """
    now_ms, settled_ms = start_ms, last_back_ms(state, start_ms)
    moves, steps, decodes, chunk_tokens, most_tokens, starved = 0, 0, 0, 0, 0, 0
    busy_ms, active_j = 0.0, 0.0
    prefill = Played(0, 0.0, 0.0, 0.0, 0, 0, 0, decode_phase(state), settled_ms)
    while steps < MAX_STEPS and moves < MAX_MOVES and starved < STARVED_STEPS:
        moves += 1
        while next_finish_ms(state) <= now_ms:
            finish(state, now_ms, setup)
        if now_ms <= settled_ms:
            forget_lateness(state)
        if now_ms >= start_ms + lookahead_ms and not prefill_pending(state, setup):
            break
        answer, until_ms, batch = compose(state, setting, now_ms, setup, tables)
        if answer == HOLD:
            until_ms = min(until_ms, next_finish_ms(state))
            if until_ms == math.inf:
                break
            now_ms = max(now_ms, until_ms)
            continue
        if prefill_pending(state, setup):
            most_tokens = max(most_tokens, batch.chunk_tokens + batch.decodes)
            if batch.preempted > 0:  # who loses their blocks depends on the chunk
                most_tokens = setup.max_batched_tokens
        passes = issue(state, batch, now_ms, setting, setup, tables)
        steps += 1
        busy_ms += passes.busy_ms
        active_j += passes.energy_j
        decodes += batch.decodes
        starved = starved + 1 if batch.chunk_tokens == 0 and prefill_pending(state, setup) else 0
        if batch.chunk_tokens > 0:
            chunk_tokens += batch.chunk_tokens
            span_ms = passes.span_ms + setup.pp * (now_ms - start_ms)
            after = prefill.after
            # Who decodes afterwards is asked only where the horizon reaches that far.
            if span_ms / setup.pp < lookahead_ms:
                after = decode_phase(state)
            prefill = Played(
                steps, span_ms, busy_ms, active_j, decodes, chunk_tokens, most_tokens, after,
                settled_ms,
            )  # fmt: skip
    stop_ms = now_ms
    while state.engine.flying > 0:
        now_ms = max(now_ms, next_finish_ms(state))
        finish(state, now_ms, setup)
        if now_ms <= settled_ms:
            forget_lateness(state)
    # How long the starved have been waiting by then.
    capped = steps == MAX_STEPS or moves == MAX_MOVES
    for row in range(state.engine.rows):
        request = state.requests[row]
        if request.generated_tokens > 0 or capped:
            note_token(request, stop_ms)
        elif starved == STARVED_STEPS:
            waited_ms = stop_ms - request.arrival_ms
            request.ttft_ms = max(waited_ms, setup.patience_slos * request.ttft_slo_ms)
    return Played(
        steps, prefill.span_ms, prefill.busy_ms, prefill.active_j, prefill.decodes,
        prefill.chunk_tokens, most_tokens, prefill.after, settled_ms,
    )  # fmt: skip
