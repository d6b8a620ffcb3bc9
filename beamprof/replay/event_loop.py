"""The plant's event loop, compiled: arrivals, steps and tokens from one event to the next.

    advance()   arrivals join the queue, steps come back, the composer sends the next one

What enters a step and how it moves through the stages is the controller's own code
(beam_runtime.kernel: ``compose``, ``issue``, ``finish``). Two things differ from a forecast:
the composer predicts with the controller's table while passes take what the plant's table and
the noise say, and requests end when their real output, which no policy sees, is complete.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from beam_runtime.kernel.composer import (
    HOLD,
    compose,
    count,
    pass_ms,
    refresh_due,
)
from beam_runtime.kernel.emulator import finish, issue, next_finish_ms
from beam_runtime.kernel.jit import compiled, entry
from beam_runtime.kernel.schedule import blocks
from beam_runtime.kernel.state import (
    ARRIVAL,
    CACHED,
    COMPUTED,
    FLY,
    FLY_COUNT,
    FLY_HEAD,
    FREE_BLOCKS,
    GAP,
    GENERATED,
    KIND,
    LAST,
    LAST_STEP,
    N_RUNNING,
    N_WAITING,
    OTHER,
    ROOM,
    RUNNING,
    SHARED,
    STAGE_FREE,
    TBT_SLO,
    TOTAL,
    TTFT,
    TTFT_SLO,
    WAIT_HEAD,
    WAITING,
    Batch,
    Engine,
    Setting,
    State,
    Tables,
)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# What a policy may ask to be woken by.
ON_ARRIVAL, ON_FIRST_TOKEN, ON_COMPLETION, ON_STEP = 1, 2, 4, 8
# Why the loop came back.
DONE, EVENT, TICK, FULL, NO_ROOM, STUCK = range(6)

# Rows of Plant.hidden: what belongs to a request's row and no policy may see.
REQUEST, OUTPUT = range(2)
# Plant.at
NEXT_ARRIVAL, N_FREE_ROWS, N_STEPS, N_TOKENS, EVENTS, PREEMPTED = range(6)
# Plant.clock
NOW, ACTIVE_J, COVERED_IDLE_J, BUSY_MS = range(4)
# Columns of Plant.steps, one line per step.
(
    ISSUED_MS, FINISHED_MS, STEP_CLOCK, STEP_CHUNK, STEP_DECODES, STEP_CONTEXT, STEP_DECODE_CONTEXT,
    STEP_PAIRS, STEP_BUSY_MS, STEP_J, STEP_RUNNING, STEP_WAITING, STEP_BUDGET, STEP_MICROBATCHES,
    STEP_PACE_MS,
) = range(15)  # fmt: skip
STEP_COLUMNS = 15
# Columns of Plant.tokens, one line per token after a request's first.
TOKEN_REQUEST, TOKEN_MS, TOKEN_GAP_MS = range(3)
TOKEN_COLUMNS = 3


class Workload(NamedTuple):
    """The trace, by arrival; idling counts until ``duration_ms``."""

    duration_ms: float

    arrival_ms: Floats
    input_tokens: Ints
    output_tokens: Ints
    ttft_slo_ms: Floats
    tbt_slo_ms: Floats


class Plant(NamedTuple):
    """What the loop keeps beside the engine's State.

    Attributes:
        at: counts; clock: milliseconds and joules so far.
        hidden: (2, n) by row of State.requests.
        free_rows: (n,) stack of rows without a request.
        noise: one factor for each line of ``steps``.
        steps, tokens: records since the last time they were emptied.
        first_token_ms, finish_ms: (requests,) NaN until it happens.
    """

    at: Ints
    clock: Floats
    hidden: Ints
    free_rows: Ints
    noise: Floats
    steps: Floats
    tokens: Floats
    first_token_ms: Floats
    finish_ms: Floats


@entry
def advance(
    s: State,
    p: Plant,
    w: Workload,
    k: Setting,
    e: Engine,
    believed: Tables,
    true: Tables,
    wanted: int,
    tick_ms: float,
) -> int:
    """Run until something a policy wants to know, a full record, or the end."""
    while True:
        now_ms = p.clock[NOW]
        while next_finish_ms(s, e) <= now_ms:
            if p.at[N_TOKENS] + s.at[FLY_COUNT + s.at[FLY_HEAD]] > p.tokens.shape[0]:
                return FULL
            receive(s, p, now_ms, e)
        while p.at[NEXT_ARRIVAL] < len(w.arrival_ms) and (
            w.arrival_ms[p.at[NEXT_ARRIVAL]] <= now_ms
        ):
            if p.at[N_FREE_ROWS] == 0:
                return NO_ROOM
            arrive(s, p, w)
        if p.at[EVENTS] & wanted:
            p.at[EVENTS] = 0
            return EVENT
        if now_ms >= tick_ms:
            return TICK
        what, until_ms, b, owed = compose(s, k, now_ms, e, believed)
        if what == HOLD:
            until_ms = min(until_ms, next_finish_ms(s, e))
            if p.at[NEXT_ARRIVAL] < len(w.arrival_ms):
                until_ms = min(until_ms, w.arrival_ms[p.at[NEXT_ARRIVAL]])
            if until_ms == math.inf:
                return STUCK if s.at[N_RUNNING] + s.at[N_WAITING] > 0 else DONE
            p.clock[NOW] = max(now_ms, min(until_ms, tick_ms))
            continue
        if p.at[N_STEPS] == p.steps.shape[0]:
            return FULL
        send(s, p, b, owed, now_ms, w.duration_ms, k, e, true)


@compiled
def send(
    s: State, p: Plant, b: Batch, owed: bool, now_ms: float, duration_ms: float, k: Setting,
    e: Engine, true: Tables,
) -> None:  # fmt: skip
    """Issue a step; its passes take what the plant's table and this step's noise say."""
    line = p.at[N_STEPS]
    factor = p.noise[line]
    real = Engine(
        e.pp, e.block_size, e.max_num_seqs, e.max_batched, e.max_model_len, e.max_in_flight,
        e.slots, e.gap_ms, e.transfer_ms, factor, factor, e.ttft_margin_ms, e.tbt_margin_ms,
        e.just_in_time, e.ride_along, e.give_way, e.late_cuts, e.pace, e.lead_ms, e.min_chunk,
    )  # fmt: skip
    if b.items > 0:
        p.clock[COVERED_IDLE_J] += covered_idle_j(s, b, now_ms, duration_ms, k, real, true)
    busy_ms, joules, _ = issue(s, b, owed, now_ms, k, real, true)
    p.at[PREEMPTED] += b.preempted
    if b.items == 0:  # everything in it was preempted
        return
    p.clock[ACTIVE_J] += factor * joules
    p.clock[BUSY_MS] += busy_ms
    r = p.steps[line]
    r[ISSUED_MS] = now_ms
    r[FINISHED_MS] = s.clock[STAGE_FREE + e.pp - 1]
    r[STEP_CLOCK] = k.clock_before if now_ms < k.switch_ms else k.clock
    r[STEP_CHUNK], r[STEP_CONTEXT], r[STEP_PAIRS] = b.chunk, b.context, b.pairs
    r[STEP_DECODES], r[STEP_DECODE_CONTEXT] = b.decodes, b.decode_context
    r[STEP_BUSY_MS], r[STEP_J] = busy_ms, factor * joules
    r[STEP_RUNNING], r[STEP_WAITING] = s.at[N_RUNNING], s.at[N_WAITING]
    r[STEP_BUDGET], r[STEP_MICROBATCHES], r[STEP_PACE_MS] = k.chunk, k.microbatches, k.pace_ms
    p.at[N_STEPS] += 1


@compiled
def covered_idle_j(
    s: State, b: Batch, now_ms: float, duration_ms: float, k: Setting, real: Engine, true: Tables
) -> float:
    """What the stages would have drawn waiting while they compute this step, up to the end."""
    after_ms, before_ms = pass_ms(k.clock, b, real, true), pass_ms(k.clock_before, b, real, true)
    ready_ms, joules = now_ms, 0.0
    for stage in range(real.pp):
        start_ms = max(ready_ms, s.clock[STAGE_FREE + stage])
        early = start_ms < k.switch_ms
        one_ms = before_ms if early else after_ms
        inside_ms = max(0.0, min(start_ms + one_ms, duration_ms) - start_ms)
        joules += true.idle_w[k.clock_before if early else k.clock] * inside_ms / 1e3
        ready_ms = start_ms + one_ms + real.gap_ms + real.transfer_ms
    return joules


@compiled
def arrive(s: State, p: Plant, w: Workload) -> None:
    """The next request of the trace joins the end of the queue."""
    request = p.at[NEXT_ARRIVAL]
    p.at[NEXT_ARRIVAL] += 1
    p.at[N_FREE_ROWS] -= 1
    row = p.free_rows[p.at[N_FREE_ROWS]]
    r = s.requests
    r[TOTAL, row] = w.input_tokens[request]
    r[COMPUTED, row], r[CACHED, row], r[GENERATED, row] = 0, 0, 0
    r[KIND, row], r[ROOM, row], r[SHARED, row], r[LAST_STEP, row] = OTHER, 0, 0, 0
    s.times[ARRIVAL, row] = w.arrival_ms[request]
    s.times[LAST, row] = w.arrival_ms[request]
    s.times[TTFT_SLO, row] = w.ttft_slo_ms[request]
    s.times[TBT_SLO, row] = w.tbt_slo_ms[request]
    s.times[TTFT, row] = math.inf
    s.times[GAP, row] = -1.0
    p.hidden[REQUEST, row] = request
    p.hidden[OUTPUT, row] = w.output_tokens[request]
    r[WAITING, (s.at[WAIT_HEAD] + s.at[N_WAITING]) % r.shape[1]] = row
    s.at[N_WAITING] += 1
    p.at[EVENTS] |= ON_ARRIVAL


@compiled
def receive(s: State, p: Plant, now_ms: float, e: Engine) -> None:
    """The oldest step comes back: tokens go out, and requests that have all of theirs leave."""
    slot = s.at[FLY_HEAD]
    members = s.at[FLY_COUNT + slot]
    for i in range(members):
        row = s.requests[FLY + slot, i]
        request = p.hidden[REQUEST, row]
        if s.requests[GENERATED, row] == 0:
            p.first_token_ms[request] = now_ms
            p.at[EVENTS] |= ON_FIRST_TOKEN
        else:
            line = p.tokens[p.at[N_TOKENS]]
            line[TOKEN_REQUEST] = request
            line[TOKEN_MS] = now_ms
            line[TOKEN_GAP_MS] = now_ms - s.times[LAST, row]
            p.at[N_TOKENS] += 1
    finish(s, now_ms, e)
    p.at[EVENTS] |= ON_STEP
    left = False
    for i in range(members):
        row = s.requests[FLY + slot, i]
        if s.requests[GENERATED, row] >= p.hidden[OUTPUT, row]:
            p.finish_ms[p.hidden[REQUEST, row]] = now_ms
            leave(s, p, row, e)
            left = True
    if left:
        refresh_due(s)
        p.at[EVENTS] |= ON_COMPLETION


@compiled
def leave(s: State, p: Plant, row: int, e: Engine) -> None:
    """A request is complete: its seat, its KV blocks and its row are free."""
    r = s.requests
    found = 0
    for i in range(s.at[N_RUNNING]):
        found += r[RUNNING, i] == row
        if found and i + 1 < s.at[N_RUNNING]:
            r[RUNNING, i] = r[RUNNING, i + 1]
    if found:
        s.at[N_RUNNING] -= 1
        count(s, r[KIND, row], -1)
        s.at[FREE_BLOCKS] += blocks(s, row, r[COMPUTED, row], e)
    else:  # it was preempted after its last token had been sent for
        n, head = r.shape[1], s.at[WAIT_HEAD]
        for i in range(s.at[N_WAITING]):
            found += r[WAITING, (head + i) % n] == row
            if found:
                r[WAITING, (head + i) % n] = r[WAITING, (head + i + 1) % n]
        s.at[N_WAITING] -= 1
    r[KIND, row] = OTHER
    p.free_rows[p.at[N_FREE_ROWS]] = row
    p.at[N_FREE_ROWS] += 1
