"""The plant's event loop, compiled: arrivals, steps and tokens from one event to the next.

    advance()   arrivals join the queue, steps come back, the composer sends the next one

What enters a step and how it moves through the stages is the emulator's own code (``compose``,
``issue``, ``finish``). Two things differ from a forecast: the composer predicts with the
controller's table while passes take what the plant's table and the noise say, and requests end
when their real output, which no policy sees, is complete.
"""

import math
from typing import NamedTuple

from beam_runtime.emulator.compiler import compiled, entry
from beam_runtime.emulator.composer import compose, count, refresh_due
from beam_runtime.emulator.deadlines import note_broken
from beam_runtime.emulator.places import opened, waiting_place
from beam_runtime.emulator.play import finish, issue, next_finish_ms
from beam_runtime.emulator.schedule import held_blocks
from beam_runtime.emulator.setup import HOLD, Batch, Setting, Tables, pass_ms
from beam_runtime.emulator.state import OTHER, Floats, Ints, Records, State, record_type
from beamprof.replay.prefix_cache import PrefixCache, let_go, opened_cache, take, tell_hits

# What a policy may ask to be woken by.
ON_ARRIVAL, ON_FIRST_TOKEN, ON_COMPLETION, ON_STEP = 1, 2, 4, 8
# Why the loop came back.
DONE, EVENT, TICK, FULL, NO_ROOM, STUCK = range(6)

# One line per step; the clock is an index of the table until the replay is over, MHz then.
STEP = record_type(
    "clock prefill_tokens decode_requests prefill_context_tokens decode_context_tokens "
    "running_requests waiting_requests chunk_tokens microbatches",
    "issued_ms finished_ms prefill_pairs busy_ms energy_j pace_ms",
)
TOKEN = record_type("request", "at_ms gap_ms")  # one line per token after a request's first
HIDDEN = record_type(
    "request output_tokens "  # of a row of State.requests: no policy may see it
    "free_row "  # a stack of rows without a request
    "admitted "  # 1: it has been, if only once
    "hit_blocks known_blocks",  # of its prompt: in the cache when admitted; known there by now
)
TALLY = record_type(
    "next_arrival next_sent free_rows steps tokens events preempted",
    "now_ms active_j covered_idle_j busy_ms",
)


class Workload(NamedTuple):
    """The trace, by arrival; idling counts until ``duration_ms``.

    A request is sent at ``arrival_ms`` and stands in the engine's queue at ``queued_ms``. In a
    closed loop both are infinite for requests that are not sent yet: each that ends sends the
    next, which stands in the queue ``front_end_ms`` later. ``promises`` are of REQUEST.
    """

    duration_ms: float
    arrival_ms: Floats
    queued_ms: Floats
    front_end_ms: float
    input_tokens: Ints
    output_tokens: Ints
    promises: Records


class Plant(NamedTuple):
    """What the loop keeps beside the engine's State.

    Attributes:
        tally: (1,) of TALLY.
        setup: (1,) of SETUP: the truth; its scales are each step's noise.
        hidden: (n,) of HIDDEN.
        noise: one factor for each line of ``steps``.
        steps: of STEP since they were last emptied.
        tokens: of TOKEN since they were last emptied.
        first_token_ms: (requests,) NaN until it happens.
        finish_ms: the same for the last one.
        prefixes: the prefix cache.
    """

    tally: Records
    setup: Records
    hidden: Records
    noise: Floats
    steps: Records
    tokens: Records
    first_token_ms: Floats
    finish_ms: Floats
    prefixes: PrefixCache


@entry
def advance(
    arrays: State, plant: Plant, load: Workload, setting: Setting, setup: Records,
    believed: Tables, true: Tables, wanted: int, tick_ms: float,
) -> int:  # fmt: skip
    """Run until something a policy wants to know, a full record, or the end."""
    at_hand = Plant(
        plant.tally[0], plant.setup[0], plant.hidden, plant.noise, plant.steps, plant.tokens,
        plant.first_token_ms, plant.finish_ms, opened_cache(plant.prefixes),
    )  # fmt: skip
    return run(opened(arrays), at_hand, load, setting, setup[0], believed, true, wanted, tick_ms)


@compiled
def run(
    state: State, plant: Plant, load: Workload, setting: Setting, setup: Records,
    believed: Tables, true: Tables, wanted: int, tick_ms: float,
) -> int:  # fmt: skip
    """``advance`` with the records at hand."""
    tally, arrivals = plant.tally, load.queued_ms
    while True:
        now_ms = tally.now_ms
        while next_finish_ms(state) <= now_ms:
            coming = state.flights[state.engine.flying_head].tokens
            if tally.tokens + coming > len(plant.tokens):
                return FULL
            receive(state, plant, load, now_ms, setup)
        while tally.next_arrival < len(arrivals) and arrivals[tally.next_arrival] <= now_ms:
            if tally.free_rows == 0:
                return NO_ROOM
            arrive(state, plant, load)
        if tally.events & wanted:
            tally.events = 0
            return EVENT
        if now_ms >= tick_ms:
            return TICK
        tell_hits(state, plant.prefixes, plant.hidden, setup)
        answer, until_ms, batch = compose(state, setting, now_ms, setup, believed)
        if answer == HOLD:
            until_ms = min(until_ms, next_finish_ms(state))
            if tally.next_arrival < len(arrivals):
                until_ms = min(until_ms, arrivals[tally.next_arrival])
            if until_ms == math.inf:
                return STUCK if state.engine.running + state.engine.waiting > 0 else DONE
            tally.now_ms = max(now_ms, min(until_ms, tick_ms))
            continue
        if tally.steps == len(plant.steps):
            return FULL
        send(state, plant, batch, now_ms, load.duration_ms, setting, setup, true)


@compiled
def send(
    state: State, plant: Plant, batch: Batch, now_ms: float, duration_ms: float,
    setting: Setting, setup: Records, true: Tables,
) -> None:  # fmt: skip
    """Issue a step; its passes take what the plant's table and this step's noise say."""
    tally, real = plant.tally, plant.setup
    factor = plant.noise[tally.steps]
    real.prefill_scale = real.decode_scale = factor
    if batch.items > 0:
        tally.covered_idle_j += covered_idle_j(
            state, batch, now_ms, duration_ms, setting, real, true
        )
    for last in range(batch.preempted):
        row = state.places[state.engine.running - 1 - last].running
        let_go(state, plant.prefixes, plant.hidden, row, setup)
    passes = issue(state, batch, now_ms, setting, real, true)
    take(state, plant.prefixes, plant.hidden, batch, setup)
    tally.preempted += batch.preempted
    if batch.items == 0:  # everything in it was preempted
        return
    tally.active_j += factor * passes.energy_j
    tally.busy_ms += passes.busy_ms
    step = plant.steps[tally.steps]
    step.issued_ms = now_ms
    step.finished_ms = state.stage_free_ms[real.pp - 1]
    step.clock = setting.clock_before if now_ms < setting.switch_ms else setting.clock
    step.prefill_tokens, step.prefill_pairs = batch.chunk_tokens, batch.pairs
    step.prefill_context_tokens = batch.chunk_context_tokens
    step.decode_requests = batch.decodes
    step.decode_context_tokens = batch.decode_context_tokens
    step.busy_ms, step.energy_j = passes.busy_ms, factor * passes.energy_j
    step.running_requests, step.waiting_requests = state.engine.running, state.engine.waiting
    step.chunk_tokens, step.microbatches = setting.chunk_tokens, setting.microbatches
    step.pace_ms = setting.pace_ms
    tally.steps += 1


@compiled
def covered_idle_j(
    state: State, batch: Batch, now_ms: float, duration_ms: float, setting: Setting,
    real: Records, true: Tables,
) -> float:  # fmt: skip
    """What the stages would have drawn waiting while they compute this step, up to the end."""
    after_ms = pass_ms(setting.clock, batch, real, true)
    before_ms = pass_ms(setting.clock_before, batch, real, true)
    ready_ms, joules = now_ms, 0.0
    for free_ms in state.stage_free_ms:
        start_ms = max(ready_ms, free_ms)
        early = start_ms < setting.switch_ms
        one_ms = before_ms if early else after_ms
        inside_ms = max(0.0, min(start_ms + one_ms, duration_ms) - start_ms)
        joules += true.idle_w[setting.clock_before if early else setting.clock] * inside_ms / 1e3
        ready_ms = start_ms + one_ms + real.host_gap_ms + real.transfer_ms
    return joules


@compiled
def arrive(state: State, plant: Plant, load: Workload) -> None:
    """The next request of the trace joins the end of the queue."""
    tally = plant.tally
    number = tally.next_arrival
    tally.next_arrival += 1
    tally.free_rows -= 1
    row = plant.hidden[tally.free_rows].free_row
    request = state.requests[row]
    request.total_tokens = load.input_tokens[number]
    request.computed_tokens = request.generated_tokens = request.cached_tokens = 0
    request.shared_blocks = request.room_tokens = request.last_step = 0
    request.kind = OTHER
    request.arrival_ms = request.last_token_ms = load.arrival_ms[number]
    given = load.promises[number]
    request.slo_kind, request.answer_tokens = given.slo_kind, given.answer_tokens
    request.ttft_slo_ms, request.stream_slo_ms = given.ttft_slo_ms, given.stream_slo_ms
    request.token_slo_ms, request.lost_due_ms = given.token_slo_ms, given.lost_due_ms
    request.tbt_share = given.tbt_share
    request.least_tokens_per_s, request.max_slowdown = given.least_tokens_per_s, given.max_slowdown
    request.broken, request.first_token_ms = 0, math.nan
    request.ttft_ms, request.worst_gap_ms, request.late_ms = math.inf, -1.0, -math.inf
    plant.hidden[row].request = number
    plant.hidden[row].output_tokens = load.output_tokens[number]
    plant.hidden[row].admitted = 0
    plant.hidden[row].hit_blocks = plant.hidden[row].known_blocks = 0
    plant.prefixes.books.changed = 1
    state.places[waiting_place(state, state.engine.waiting)].waiting = row
    state.engine.waiting += 1
    tally.events |= ON_ARRIVAL


@compiled
def receive(state: State, plant: Plant, load: Workload, now_ms: float, setup: Records) -> None:
    """The oldest step comes back: tokens go out, and requests that have all of theirs leave."""
    tally = plant.tally
    slot = state.engine.flying_head
    tokens = state.flights[slot].tokens
    for member in range(tokens):
        row = state.members[slot, member]
        number = plant.hidden[row].request
        note_broken(state.requests[row], now_ms)
        if state.requests[row].generated_tokens == 0:
            plant.first_token_ms[number] = now_ms
            tally.events |= ON_FIRST_TOKEN
        else:
            token = plant.tokens[tally.tokens]
            token.request = number
            token.at_ms = now_ms
            token.gap_ms = now_ms - state.requests[row].last_token_ms
            tally.tokens += 1
    finish(state, now_ms, setup)
    tally.events |= ON_STEP
    left = False
    for member in range(tokens):
        row = state.members[slot, member]
        if state.requests[row].generated_tokens >= plant.hidden[row].output_tokens:
            plant.finish_ms[plant.hidden[row].request] = now_ms
            leave(state, plant, row, setup)
            send_next(plant, load, now_ms)
            left = True
    if left:
        refresh_due(state)
        tally.events |= ON_COMPLETION


@compiled
def send_next(plant: Plant, load: Workload, now_ms: float) -> None:
    """In a closed loop whoever got a whole answer sends the next request at once."""
    number = plant.tally.next_sent
    if number < len(load.arrival_ms):
        load.arrival_ms[number] = now_ms
        load.queued_ms[number] = now_ms + load.front_end_ms
        plant.tally.next_sent += 1


@compiled
def leave(state: State, plant: Plant, row: int, setup: Records) -> None:
    """A request is complete: its seat, its KV blocks and its row are free."""
    engine, request = state.engine, state.requests[row]
    found = 0
    for at in range(engine.running):
        found += state.places[at].running == row
        if found and at + 1 < engine.running:
            state.places[at].running = state.places[at + 1].running
    if found:
        engine.running -= 1
        count(state, request.kind, -1)
        engine.free_blocks += held_blocks(request, request.computed_tokens, setup)
        engine.free_blocks -= let_go(state, plant.prefixes, plant.hidden, row, setup)
    else:  # it was preempted after its last token had been sent for
        for number in range(engine.waiting):
            found += state.places[waiting_place(state, number)].waiting == row
            if found:
                next_row = state.places[waiting_place(state, number + 1)].waiting
                state.places[waiting_place(state, number)].waiting = next_row
        engine.waiting -= 1
    request.kind = OTHER
    plant.hidden[plant.tally.free_rows].free_row = row
    plant.tally.free_rows += 1
