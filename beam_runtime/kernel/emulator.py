"""Twin of beam_runtime.emulator.forecast."""

import math
from typing import NamedTuple

from beam_runtime.emulator.forecast import MAX_MOVES, MAX_STEPS
from beam_runtime.kernel.composer import (
    HOLD,
    compose,
    count,
    pass_ms,
    refresh_due,
    set_kind,
    step_cost,
)
from beam_runtime.kernel.jit import compiled, inlined
from beam_runtime.kernel.schedule import available, prefill_pending
from beam_runtime.kernel.state import (
    ARRIVAL,
    CACHED,
    CHUNK_OWED,
    COMPUTED,
    DECODING,
    DUE,
    FLY,
    FLY_COUNT,
    FLY_HEAD,
    FREE_BLOCKS,
    GAP,
    GENERATED,
    ITEM,
    ITEM_TOKENS,
    JOULE,
    KIND,
    LAST,
    LAST_STEP,
    N_FLYING,
    N_READY,
    N_RUNNING,
    N_WAITING,
    OTHER,
    READY,
    READY_SINCE,
    ROOM,
    RUNNING,
    SHARED,
    STAGE_FREE,
    STEPS_BACK,
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
from beam_runtime.kernel.steady import Decoding, Prices, settlement_j, steady


@compiled
def issue(
    s: State, b: Batch, owed: bool, now_ms: float, k: Setting, e: Engine, t: Tables
) -> tuple[float, float, float]:
    """Send a step into the pipeline: (busy ms, joules, ends - now) summed over the stages."""
    r = s.requests
    n = r.shape[1]
    for _ in range(b.preempted):
        s.at[N_RUNNING] -= 1
        row = r[RUNNING, s.at[N_RUNNING]]
        count(s, r[KIND, row], -1)
        r[COMPUTED, row] = 0
        r[CACHED, row] = 0
        r[SHARED, row] = 0
        r[ROOM, row] = 0
        r[KIND, row] = OTHER
        s.at[WAIT_HEAD] = (s.at[WAIT_HEAD] - 1 + n) % n
        s.at[N_WAITING] += 1
        r[WAITING, s.at[WAIT_HEAD]] = row
    admitted, passed = 0, 0
    while admitted < b.admitted:
        row = r[WAITING, (s.at[WAIT_HEAD] + admitted + passed) % n]
        if not available(s, row):
            passed += 1
            continue
        admitted += 1
        r[RUNNING, s.at[N_RUNNING]] = row
        r[COMPUTED, row] = r[CACHED, row]
        r[ROOM, row] = 0
        s.at[N_RUNNING] += 1
    # Who was passed over stays ahead of all who wait.
    to = admitted + passed - 1
    for at in range(to, -1, -1):
        row = r[WAITING, (s.at[WAIT_HEAD] + at) % n]
        if passed > 0 and not available(s, row):
            r[WAITING, (s.at[WAIT_HEAD] + to) % n] = row
            to -= 1
    s.at[WAIT_HEAD] = (s.at[WAIT_HEAD] + admitted) % n
    s.at[N_WAITING] -= admitted
    s.at[FREE_BLOCKS] = b.free_blocks
    s.at[CHUNK_OWED] = owed
    slot = (s.at[FLY_HEAD] + s.at[N_FLYING]) % e.slots
    members = 0
    for i in range(b.items):
        row, tokens = r[ITEM, i], r[ITEM_TOKENS, i]
        r[COMPUTED, row] += tokens
        r[LAST_STEP, row] = s.at[STEPS_BACK] + s.at[N_FLYING] + 1
        room = r[ROOM, row] - tokens
        r[ROOM, row] = room if room >= 0 else room % e.block_size
        if r[KIND, row] == READY:
            r[KIND, row] = DECODING
        else:
            set_kind(s, row, e)
        if r[COMPUTED, row] == r[TOTAL, row]:
            r[FLY + slot, members] = row
            members += 1
    s.at[N_READY] -= b.decodes
    if b.decodes > 0 or b.preempted > 0:
        refresh_due(s)
    if b.items == 0:
        return 0.0, 0.0, 0.0

    after_ms, after_j = pass_ms(k.clock, b, e, t), step_cost(JOULE, k.clock, b, t)
    before_ms, before_j = after_ms, after_j
    if k.clock_before != k.clock:
        before_ms = pass_ms(k.clock_before, b, e, t)
        before_j = step_cost(JOULE, k.clock_before, b, t)
    busy_ms, joules, span_ms = 0.0, 0.0, 0.0
    ready_ms = now_ms
    for stage in range(e.pp):
        start_ms = max(ready_ms, s.clock[STAGE_FREE + stage])
        early = start_ms < k.switch_ms
        one_ms = before_ms if early else after_ms
        end_ms = start_ms + (one_ms + e.gap_ms)
        s.clock[STAGE_FREE + stage] = end_ms
        ready_ms = end_ms + e.transfer_ms
        busy_ms += one_ms
        joules += before_j if early else after_j
        span_ms += end_ms - now_ms
    s.clock[STAGE_FREE + e.pp + slot] = s.clock[STAGE_FREE + e.pp - 1]
    s.at[FLY_COUNT + slot] = members
    s.at[N_FLYING] += 1
    return busy_ms, joules, span_ms


@compiled
def note(s: State, row: int, token_ms: float) -> None:
    if s.requests[GENERATED, row] == 0:
        s.times[TTFT, row] = max(0.0, token_ms - s.times[ARRIVAL, row])
    else:
        s.times[GAP, row] = max(max(0.0, s.times[GAP, row]), token_ms - s.times[LAST, row])


@compiled
def finish(s: State, now_ms: float, e: Engine) -> None:
    """The oldest step comes back."""
    r = s.requests
    slot = s.at[FLY_HEAD]
    due_ms, returned = s.clock[DUE], 0
    for i in range(s.at[FLY_COUNT + slot]):
        row = r[FLY + slot, i]
        note(s, row, now_ms)
        r[TOTAL, row] += 1
        r[GENERATED, row] += 1
        s.times[LAST, row] = now_ms
        if r[KIND, row] == DECODING and r[COMPUTED, row] < e.max_model_len:
            r[KIND, row] = READY
            due_ms = min(due_ms, now_ms + s.times[TBT_SLO, row])
            returned += 1
        elif r[COMPUTED, row] > 0:  # else it was preempted, and waits to be computed afresh
            set_kind(s, row, e)
    if returned > 0:
        s.at[N_READY] += returned
        s.clock[DUE] = min(s.clock[DUE], due_ms)
        s.clock[READY_SINCE] = min(s.clock[READY_SINCE], now_ms)
    s.at[FLY_HEAD] = (slot + 1) % e.slots
    s.at[STEPS_BACK] += 1
    s.at[N_FLYING] -= 1


@compiled
def next_finish_ms(s: State, e: Engine) -> float:
    if s.at[N_FLYING] == 0:
        return math.inf
    at_ms: float = s.clock[STAGE_FREE + e.pp + s.at[FLY_HEAD]]
    return at_ms


class Played(NamedTuple):
    """emulator.PrefillPhase and the decode phase that follows it."""

    steps: int
    span_ms: float
    busy_ms: float
    active_j: float
    decodes: int
    requests: int
    context_tokens: int
    tbt_ms: float
    groups: int


@compiled
def decode_phase(s: State, e: Engine) -> tuple[int, int, float, int]:
    """(requests, context tokens, tightest TBT SLO, groups)."""
    groups = int(s.at[N_READY] > 0)
    for i in range(s.at[N_FLYING]):
        groups += s.at[FLY_COUNT + (s.at[FLY_HEAD] + i) % e.slots] > 0
    context = 0
    tbt_ms = math.inf
    for i in range(s.at[N_RUNNING]):
        row = s.requests[RUNNING, i]
        context += s.requests[COMPUTED, row]
        tbt_ms = min(tbt_ms, s.times[TBT_SLO, row])
    return s.at[N_RUNNING], context, tbt_ms, max(1, groups)


@inlined
def play(
    s: State, k: Setting, start_ms: float, lookahead_ms: float, e: Engine, t: Tables
) -> Played:
    """Uses ``s`` up; what it notes stands in s.times[TTFT] and [GAP]."""
    now_ms = start_ms
    stop_ms = start_ms + lookahead_ms
    moves, steps, decodes = 0, 0, 0
    busy_ms, active_j = 0.0, 0.0
    requests, context, tbt_ms, groups = decode_phase(s, e)
    prefill_ms, prefill_busy_ms, prefill_j, prefill_decodes = 0.0, 0.0, 0.0, 0
    while steps < MAX_STEPS and moves < MAX_MOVES:
        moves += 1
        while next_finish_ms(s, e) <= now_ms:
            finish(s, now_ms, e)
        if now_ms >= stop_ms and not prefill_pending(s, e):
            break
        what, until_ms, b, owed = compose(s, k, now_ms, e, t)
        if what == HOLD:
            until_ms = min(until_ms, next_finish_ms(s, e))
            if until_ms == math.inf:
                break
            now_ms = max(now_ms, until_ms)
            continue
        one_ms, one_j, span_ms = issue(s, b, owed, now_ms, k, e, t)
        steps += 1
        busy_ms += one_ms
        active_j += one_j
        decodes += b.decodes
        if b.chunk > 0:
            prefill_ms = span_ms + e.pp * (now_ms - start_ms)
            prefill_busy_ms, prefill_j, prefill_decodes = busy_ms, active_j, decodes
            # Who decodes afterwards is asked only where the horizon reaches that far.
            if prefill_ms / e.pp < lookahead_ms:
                requests, context, tbt_ms, groups = decode_phase(s, e)
    stop_ms = now_ms
    while s.at[N_FLYING] > 0:
        now_ms = max(now_ms, next_finish_ms(s, e))
        finish(s, now_ms, e)
    capped = steps == MAX_STEPS or moves == MAX_MOVES
    for row in range(s.times.shape[1]):
        if s.requests[GENERATED, row] > 0 or capped:
            note(s, row, stop_ms)
    return Played(
        steps,
        prefill_ms,
        prefill_busy_ms,
        prefill_j,
        prefill_decodes,
        requests,
        context,
        tbt_ms,
        groups,
    )


class Outcome(NamedTuple):
    """Forecast; requests as rows, -1 for nobody."""

    active_j: float
    idle_j: float
    settlement_j: float
    horizon_ms: float
    ttft_excess_ms: float
    ttft_row: int
    ttft_violation: float
    tbt_excess_ms: float
    tbt_row: int
    tbt_violation: float
    cycle_ms: float
    steps: int


@compiled
def restore(s: State, start: State) -> None:
    """Make ``s`` equal to ``start`` again, scratch rows aside."""
    for i in range(len(start.at)):
        s.at[i] = start.at[i]
    for i in range(len(start.clock)):
        s.clock[i] = start.clock[i]
    n = start.times.shape[1]
    for line in range(WAITING + 1):
        for row in range(n):
            s.requests[line, row] = start.requests[line, row]
    for line in range(GAP + 1):
        for row in range(n):
            s.times[line, row] = start.times[line, row]
    for slot in range(start.at[N_FLYING]):
        for i in range(start.at[FLY_COUNT + slot]):
            s.requests[FLY + slot, i] = start.requests[FLY + slot, i]


@inlined
def forecast(
    s: State, start: State, k: Setting, start_ms: float, lookahead_ms: float, p: Prices,
    e: Engine, t: Tables,
) -> Outcome:  # fmt: skip
    """emulator.forecast; plays on ``s``, which holds the requests' TTFT and GAP afterwards."""
    restore(s, start)
    played = play(s, k, start_ms, lookahead_ms, e, t)
    d = Decoding(played.requests, played.context_tokens, played.tbt_ms, played.groups)
    prefill_ms = played.span_ms / e.pp
    rest_ms = max(0.0, lookahead_ms - prefill_ms)
    after = steady(d, k.clock, k.microbatches, k.pace_ms, e, t)
    window_ms = played.span_ms
    if played.span_ms > 0.0:
        for stage in range(e.pp):
            window_ms -= max(0.0, start.clock[STAGE_FREE + stage] - start_ms)
    idle_j = t.idle_w[k.clock] * (window_ms - played.busy_ms) / 1e3
    horizon_ms = max(prefill_ms, lookahead_ms)

    cycle_ms = after.cycle_ms if rest_ms > 0.0 else 0.0
    ttft_worst, ttft_row, ttft_violation = -math.inf, -1, 0.0
    tbt_worst, tbt_row, tbt_violation = -math.inf, -1, 0.0
    for row in range(s.times.shape[1]):
        if start.times[TTFT, row] == math.inf and s.times[TTFT, row] < math.inf:
            excess_ms = s.times[TTFT, row] + e.ttft_margin_ms - s.times[TTFT_SLO, row]
            ttft_violation += max(0.0, excess_ms) / s.times[TTFT_SLO, row]
            if excess_ms > ttft_worst:
                ttft_worst, ttft_row = excess_ms, row
        if s.times[GAP, row] >= 0.0:
            gap_ms = max(s.times[GAP, row], cycle_ms)
            excess_ms = gap_ms + e.tbt_margin_ms - s.times[TBT_SLO, row]
            tbt_violation += max(0.0, excess_ms) / s.times[TBT_SLO, row]
            if excess_ms > tbt_worst:
                tbt_worst, tbt_row = excess_ms, row
    return Outcome(
        active_j=played.active_j + after.active_w * rest_ms / 1e3,
        idle_j=idle_j + after.idle_w * rest_ms / 1e3,
        settlement_j=settlement_j(p, horizon_ms, played.decodes + after.tokens_per_ms * rest_ms),
        horizon_ms=horizon_ms,
        ttft_excess_ms=ttft_worst,
        ttft_row=ttft_row,
        ttft_violation=ttft_violation,
        tbt_excess_ms=tbt_worst,
        tbt_row=tbt_row,
        tbt_violation=tbt_violation,
        cycle_ms=cycle_ms,
        steps=played.steps,
    )
