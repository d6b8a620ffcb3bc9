"""Twin of beam_runtime.emulator.composer.

What the reference finds by looking over all requests (who is ready, whether prefill is pending,
the earliest due) is kept up to date here by ``set_kind``, and only where a request changes.
"""

import math

from beam_runtime.emulator.composer import CUT_TOKENS
from beam_runtime.kernel.jit import compiled
from beam_runtime.kernel.schedule import fill, prefill_pending, shortened
from beam_runtime.kernel.state import (
    CHUNK_OWED,
    COMPUTED,
    DECODING,
    DUE,
    FLY,
    FLY_COUNT,
    FLY_HEAD,
    GENERATED,
    KEY,
    KIND,
    LAST,
    MS,
    N_DECODING,
    N_FLYING,
    N_PREFILL,
    N_READY,
    N_RUNNING,
    OTHER,
    PREFILL,
    READY,
    READY_SINCE,
    RUNNING,
    SHOWN,
    STAGE_FREE,
    TBT_SLO,
    TOTAL,
    Batch,
    Engine,
    Floats,
    Setting,
    State,
    Tables,
)
from beam_runtime.types import SAME_MS

# What compose answers.
HOLD, STEP = range(2)


@compiled
def step_cost(what: int, c: int, b: Batch, t: Tables) -> float:
    """StepCost of one pass, latency or energy, at clock ``c``."""
    tokens = min(b.chunk + b.decodes, t.step.shape[1] - 1)
    value: float = t.step[what, tokens, c] + t.attention[what, c, 0] * b.pairs
    value += t.attention[what, c, 1] * b.context
    value += t.attention[what, c, 2] * b.decode_context
    value += t.attention[what, c, 3] * b.decodes
    if b.chunk == 0:
        value += t.attention[what, c, 4]
    elif b.decodes > 0:
        value += t.attention[what, c, 5]
    return value


@compiled
def pass_ms(c: int, b: Batch, e: Engine, t: Tables) -> float:
    """One stage's pass at clock ``c``, as calibrated."""
    scale = e.prefill_scale if b.chunk > 0 else e.decode_scale
    return scale * step_cost(MS, c, b, t)


@compiled
def kind_of(total: int, computed: int, generated: int, max_model_len: int) -> int:
    pending = min(total - computed, max_model_len - computed)
    if computed != 0 and generated > 0 and total - computed <= 1:
        return READY if pending > 0 else DECODING
    return PREFILL if pending > 0 else OTHER


@compiled
def set_kind(s: State, row: int, e: Engine) -> None:
    """A running request changed: what can it do now?"""
    r = s.requests
    count(s, r[KIND, row], -1)
    kind = kind_of(r[TOTAL, row], r[COMPUTED, row], r[GENERATED, row], e.max_model_len)
    r[KIND, row] = kind
    count(s, kind, 1)
    if kind == READY:
        s.clock[DUE] = min(s.clock[DUE], s.times[LAST, row] + s.times[TBT_SLO, row])
        s.clock[READY_SINCE] = min(s.clock[READY_SINCE], s.times[LAST, row])


@compiled
def classify(s: State, e: Engine) -> None:
    """Set every KIND of a freshly packed state."""
    for i in range(s.at[N_RUNNING]):
        set_kind(s, s.requests[RUNNING, i], e)


@compiled
def count(s: State, kind: int, by: int) -> None:
    s.at[N_READY] += by * (kind == READY)
    s.at[N_PREFILL] += by * (kind == PREFILL)
    s.at[N_DECODING] += by * (kind == READY or kind == DECODING)


@compiled
def refresh_due(s: State) -> None:
    """Look again for the earliest due, after ready requests were sent off or preempted."""
    s.clock[DUE] = math.inf
    s.clock[READY_SINCE] = math.inf
    if s.at[N_READY] == 0:
        return
    for i in range(s.at[N_RUNNING]):
        row = s.requests[RUNNING, i]
        if s.requests[KIND, row] == READY:
            s.clock[DUE] = min(s.clock[DUE], s.times[LAST, row] + s.times[TBT_SLO, row])
            s.clock[READY_SINCE] = min(s.clock[READY_SINCE], s.times[LAST, row])


@compiled
def finish_ms(s: State, b: Batch, issue_ms: float, k: Setting, e: Engine, t: Tables) -> float:
    """When the step would be back, were it issued then."""
    after_ms = pass_ms(k.clock, b, e, t)
    before_ms = after_ms if k.clock_before == k.clock else pass_ms(k.clock_before, b, e, t)
    ready_ms = issue_ms
    end_ms = issue_ms
    for stage in range(e.pp):
        start_ms = max(ready_ms, s.clock[STAGE_FREE + stage])
        end_ms = start_ms + ((before_ms if start_ms < k.switch_ms else after_ms) + e.gap_ms)
        ready_ms = end_ms + e.transfer_ms
    return end_ms


@compiled
def choose_earliest_due(s: State, size: int) -> None:
    """Show the ``size`` ready decodes that are due first; more than that are ready."""
    n = 0
    for i in range(s.at[N_RUNNING]):
        row = s.requests[RUNNING, i]
        if s.requests[KIND, row] == READY:
            s.times[KEY, n] = s.times[LAST, row] + s.times[TBT_SLO, row]
            n += 1
    limit = smallest(s.times[KEY], n, size)
    ties = size
    for i in range(s.at[N_RUNNING]):
        row = s.requests[RUNNING, i]
        before = s.times[LAST, row] + s.times[TBT_SLO, row] < limit
        s.requests[SHOWN, row] = before
        ties -= before and s.requests[KIND, row] == READY
    for i in range(s.at[N_RUNNING]):
        row = s.requests[RUNNING, i]
        at_limit = s.times[LAST, row] + s.times[TBT_SLO, row] == limit
        if ties > 0 and at_limit and s.requests[KIND, row] == READY:
            s.requests[SHOWN, row] = 1
            ties -= 1


@compiled
def smallest(values: Floats, n: int, rank: int) -> float:
    """The rank-th smallest of the first ``n`` values, which it reorders (Hoare's quickselect)."""
    low, high, want = 0, n - 1, rank - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if want <= j:
            high = j
        elif want >= i:
            low = i
        else:
            break
    found: float = values[want]
    return found


@compiled
def hold_until_ms(s: State, group: int, now_ms: float, k: Setting, e: Engine, t: Tables) -> float:
    context = 0
    for i in range(s.at[N_RUNNING]):
        row = s.requests[RUNNING, i]
        kind = s.requests[KIND, row]
        if kind == READY or kind == DECODING:
            context += s.requests[COMPUTED, row]
    full = Batch(0, 0, 0, 0, 0, 0, 0.0, group, context * group // s.at[N_DECODING])
    further = -(-s.at[N_READY] // group) - 1
    pace_end_ms = s.clock[READY_SINCE] + k.pace_ms
    until_ms = now_ms
    for _ in range(2):
        travel_ms = finish_ms(s, full, until_ms, k, e, t) - until_ms
        latest_ms = s.clock[DUE] - e.tbt_margin_ms - travel_ms - further * travel_ms / e.pp
        until_ms = min(latest_ms, pace_end_ms)
        if until_ms <= now_ms:
            break
    return until_ms


@compiled
def fill_with(s: State, decodes: int, budget: int, prefill: bool, e: Engine) -> Batch:
    """Fill a step with so many of the ready decodes, those that are due first."""
    all_shown = decodes == s.at[N_READY]
    if not all_shown:
        choose_earliest_due(s, decodes)
    return fill(s, budget, all_shown, prefill, e)


@compiled
def give_way(
    s: State, mixed: Batch, budget: int, now_ms: float, k: Setting, e: Engine, t: Tables
) -> tuple[int, Batch]:
    """(how many decodes ride, the step with them)."""
    ready = s.at[N_READY]
    back_ms = finish_ms(s, mixed, now_ms, k, e, t)
    next_ms = back_ms + (back_ms - now_ms) / e.pp
    pressed = 0
    anybody = s.clock[DUE] - e.tbt_margin_ms + SAME_MS < next_ms
    for i in range(s.at[N_RUNNING] if anybody else 0):
        row = s.requests[RUNNING, i]
        if s.requests[KIND, row] == READY:
            due_ms = s.times[LAST, row] + s.times[TBT_SLO, row] - e.tbt_margin_ms
            pressed += due_ms + SAME_MS < next_ms
    riding = min(ready, max(pressed, -(-s.at[N_DECODING] // e.pp)))
    if riding == ready:
        return ready, mixed
    step = fill_with(s, riding, budget, True, e)
    room = budget - step.chunk - step.decodes
    if room > 0:
        riding = min(ready, riding + room)
        step = fill_with(s, riding, budget, True, e)
    return riding, step


@compiled
def ahead_due_ms(s: State, e: Engine) -> float:
    """When the first decode in flight will be late with its next token."""
    due_ms = math.inf
    for i in range(s.at[N_FLYING]):
        slot = (s.at[FLY_HEAD] + i) % e.slots
        back_ms = s.clock[STAGE_FREE + e.pp + slot]
        for j in range(s.at[FLY_COUNT + slot]):
            due_ms = min(due_ms, back_ms + s.times[TBT_SLO, s.requests[FLY + slot, j]])
    return due_ms


@compiled
def kept(
    s: State, step: Batch, riding: int, ahead_ms: float, now_ms: float, k: Setting, e: Engine,
    t: Tables,
) -> bool:  # fmt: skip
    """Whether all decodes can be in time if this step goes now."""
    back_ms = finish_ms(s, step, now_ms, k, e, t)
    if riding > 0 and back_ms > s.clock[DUE] - e.tbt_margin_ms + SAME_MS:
        return False
    return back_ms + (back_ms - now_ms) / e.pp <= ahead_ms


@compiled
def in_time(
    s: State, mixed: Batch, riding: int, now_ms: float, k: Setting, e: Engine, t: Tables
) -> tuple[int, float, Batch, bool]:
    """What compose answers with a chunk that may make nobody late."""
    ahead_ms = ahead_due_ms(s, e) - e.tbt_margin_ms + SAME_MS
    if kept(s, mixed, riding, ahead_ms, now_ms, k, e, t):
        return STEP, now_ms, mixed, False
    all_shown = riding == s.at[N_READY]
    fits, misses = 0, mixed.chunk
    while misses - fits > CUT_TOKENS:
        middle = (fits + misses) // 2
        if mixed.preempted == 0:
            cut = shortened(s, mixed, mixed.chunk - middle)
        else:
            cut = fill(s, mixed.decodes + middle, all_shown, True, e)
        if kept(s, cut, riding, ahead_ms, now_ms, k, e, t):
            fits = middle
        else:
            misses = middle
    if fits > 0:
        cut = fill(s, mixed.decodes + fits, all_shown, True, e)
        return STEP, now_ms, cut, 2 * fits < mixed.chunk
    if riding > 0:
        return STEP, now_ms, fill(s, riding, all_shown, False, e), True
    return HOLD, s.clock[STAGE_FREE + e.pp + s.at[FLY_HEAD]], mixed, False


@compiled
def compose(
    s: State, k: Setting, now_ms: float, e: Engine, t: Tables
) -> tuple[int, float, Batch, bool]:
    """(HOLD, until, -, -) or (STEP, now, the step, whether it leaves a chunk owed)."""
    nothing = Batch(0, 0, 0, 0, 0, 0, 0.0, 0, 0)
    if s.at[N_FLYING] >= e.max_in_flight:
        return HOLD, s.clock[STAGE_FREE + e.pp + s.at[FLY_HEAD]], nothing, False
    first_stage_ms = s.clock[STAGE_FREE] - e.lead_ms
    if e.just_in_time and now_ms < first_stage_ms - SAME_MS:
        return HOLD, first_stage_ms, nothing, False

    ready = s.at[N_READY]
    group = -(-s.at[N_DECODING] // k.microbatches)
    chosen = min(ready, group)
    budget = max(k.chunk, s.at[N_DECODING] + e.min_chunk) if e.min_chunk > 0 else k.chunk
    budget = min(budget, e.max_batched)
    if prefill_pending(s, e):
        riding = ready if e.ride_along else chosen
        mixed = fill_with(s, riding, budget, True, e)
        full = mixed.chunk > 0 and mixed.decodes > 0 and mixed.chunk + mixed.decodes == budget
        if e.give_way and e.ride_along and full:
            riding, mixed = give_way(s, mixed, budget, now_ms, k, e, t)
        if mixed.chunk > 0 and e.late_cuts and s.at[CHUNK_OWED] == 0:
            return in_time(s, mixed, riding, now_ms, k, e, t)
        if mixed.chunk > 0 or mixed.preempted > 0:
            return STEP, now_ms, mixed, False
    if ready == 0:
        return HOLD, math.inf, nothing, False

    if e.pace and k.pace_ms > 0.0:
        until_ms = hold_until_ms(s, group, now_ms, k, e, t)
        if now_ms < until_ms - SAME_MS:
            return HOLD, until_ms, nothing, False
    return STEP, now_ms, fill_with(s, chosen, min(chosen, budget), False, e), False
