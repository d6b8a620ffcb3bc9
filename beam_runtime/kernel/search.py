"""The search over clock x chunk x microbatches x pace, in one compiled call.

Every candidate has an estimate (lines.py). They are played in the order of estimated energy:

1. play the cheapest entry that is estimated to keep every SLO;
2. its play corrects the estimates of its line; if it breaks an SLO, so will lower clocks of
   that line, and they are dropped;
3. stop when nothing left is estimated to be cheaper than the best that was played.

Nothing is dropped on monotony in chunk, which energy does not have. Where nothing keeps the
SLOs, the fastest entries are played in the order of estimated violation; then cheaper entries
of the same speed; and the clock of the best goes down as far as the violation does not grow.
"""

import math
from typing import NamedTuple

from beam_runtime.kernel.composer import classify
from beam_runtime.kernel.emulator import Outcome, forecast
from beam_runtime.kernel.jit import compiled, entry, inlined
from beam_runtime.kernel.lines import (
    ABOUT,
    CLOSED,
    SLOW,
    Grid,
    Room,
    cheapest,
    clear,
    drop_slower,
    learn,
    least_late,
    legal_chunk,
    prepare_decode,
    prepare_prefill,
    reopen,
)
from beam_runtime.kernel.schedule import prefill_pending
from beam_runtime.kernel.sketch import Paper
from beam_runtime.kernel.state import (
    N_RUNNING,
    TTFT,
    TTFT_SLO,
    Engine,
    Floats,
    Setting,
    State,
    Tables,
)
from beam_runtime.kernel.steady import Prices, equal_work, everyone
from beam_runtime.types import SAME_MS

# After so many plays in vain it is time to see whether anything keeps the SLOs, by so many
# plays of the fastest entries.
MISSES, TRIES = 3, 16
# Violations closer than this (in shares of one SLO) are the same.
SAME_VIOLATION = 0.005
# What the search is doing: 1 to 3 of the docstring; then its last paragraph.
CHEAPEST, LEAST_LATE, NO_WORSE, LOWER = range(4)


class Choice(NamedTuple):
    """A played candidate.

    ``plays`` is the length of the log, ``room`` the state it was played on (0 = a, 1 = b).
    """

    clock: int
    chunk: int
    microbatches: int
    share: int
    energy_j: float
    violation: float
    feasible: bool
    plays: int
    room: int
    line: int
    outcome: Outcome


@compiled
def setting_of(c: int, chunk: int, m: int, pace_ms: float, now_ms: float, g: Grid) -> Setting:
    switch_ms = g.effective_ms if c == g.asked else now_ms + g.delay_ms
    return Setting(c, g.current, switch_ms, chunk, m, pace_ms)


@compiled
def violation_of(o: Outcome, g: Grid) -> float:
    """Weighted sum of what is missing; 0 where everything is kept."""
    if max(o.ttft_excess_ms, o.tbt_excess_ms) <= SAME_MS:
        return 0.0
    return g.ttft_weight * o.ttft_violation + g.tbt_weight * o.tbt_violation


@compiled
def energy_of(o: Outcome, c: int, g: Grid) -> float:
    """What candidates are compared by."""
    energy_j = o.active_j + o.idle_j + o.settlement_j
    return energy_j + (g.switch_j if c != g.asked else 0.0)


@inlined
def play_one(
    s: State, start: State, c: int, line: int, room: int, plays: int, now_ms: float,
    lookahead_ms: float, tbt_ms: float, p: Prices, g: Grid, w: Room, e: Engine, t: Tables,
) -> Choice:  # fmt: skip
    """Play one entry and log it."""
    chunk, m, share = w.line[0, line], w.line[1, line], w.line[2, line]
    if m == 0:
        m, share = w.steady[c, 0], w.steady[c, 1]
    k = setting_of(c, chunk, m, g.pace_shares[share] * tbt_ms, now_ms, g)
    o = forecast(s, start, k, now_ms, lookahead_ms, p, e, t)
    energy_j, violation = energy_of(o, c, g), violation_of(o, g)
    w.state[line, c] = CLOSED
    entry = w.log[plays]
    entry[0], entry[1], entry[2], entry[3] = c, chunk, m, share
    entry[4], entry[5], entry[6] = energy_j, o.ttft_excess_ms, o.tbt_excess_ms
    entry[7] = o.tbt_row if o.tbt_excess_ms > SAME_MS else o.ttft_row
    return Choice(
        c, chunk, m, share, energy_j, violation, violation == 0.0, plays + 1, room, line, o
    )  # fmt: skip


@entry
def search(
    a: State, b: State, start: State, chunk: int, now_ms: float, lookahead_ms: float, g: Grid,
    w: Room, x: Paper, e: Engine, t: Tables,
) -> Choice:  # fmt: skip
    """The best candidate from ``start``; a or b holds its TTFT and GAP (see Choice.room)."""
    classify(start, e)
    p = equal_work(start, lookahead_ms, g.pace_shares, e, t)
    clear(g, w)
    if prefill_pending(start, e):
        lines = prepare_prefill(start, g, now_ms, lookahead_ms, p, w, x, e, t)
        trust = 0.25
    else:
        lines = prepare_decode(start, legal_chunk(start, chunk, e), g, lookahead_ms, p, w, e, t)
        trust = 1.0
    tbt_ms = everyone(start, e).tbt_ms
    ttft_ms = tightest_ttft_ms(start)
    requests = start.times.shape[1]
    best = untried()
    least = math.inf  # the least violation seen
    phase, plays, work, misses = CHEAPEST, 0, 0, 0
    low, high = -1, 0  # LOWER: a clock that is too low, and the lowest that is not
    while plays < g.most_plays:
        line, c = -1, -1
        if phase == CHEAPEST:
            if work <= g.most_work and (misses < MISSES or best.feasible):
                most_j = best.energy_j if best.feasible else math.inf
                line, c = cheapest(lines, most_j, 0.0, 0.0, ttft_ms, tbt_ms, math.inf, trust, w)
            if line < 0:
                if best.feasible:
                    break
                phase, misses = LEAST_LATE, 0
        if phase == LEAST_LATE:
            if misses < TRIES and (work <= g.most_work or misses == 0):
                limit = least * 1.5 + 0.01 if misses > 0 else math.inf
                line, c = least_late(lines, limit, start.at[N_RUNNING], tbt_ms, g, w)
            if line < 0:
                phase, misses = NO_WORSE, 0
                reopen(w)
        if phase == NO_WORSE:
            if misses < 2 * MISSES and work <= g.most_work:
                o = best.outcome
                late_ms, gap_ms = max(0.0, o.ttft_excess_ms), max(0.0, o.tbt_excess_ms)
                slow_ms = w.estimate[SLOW, best.line, best.clock] * ABOUT
                line, c = cheapest(
                    lines, best.energy_j, late_ms, gap_ms, ttft_ms, tbt_ms, slow_ms, trust, w
                )  # fmt: skip
            if line < 0:
                phase, low, high = LOWER, -1, best.clock
        if phase == LOWER:
            line, c = best.line, (low + high) // 2
            if g.only >= 0 or high - low < 2 or work > 2 * g.most_work:
                break

        room = 1 - best.room
        s = a if room == 0 else b
        one = play_one(s, start, c, line, room, plays, now_ms, lookahead_ms, tbt_ms, p, g, w, e, t)
        plays += 1
        work += one.outcome.steps * (requests + 32)
        least = min(least, one.violation)
        # A miss at the fastest clocks says less about the slower ones than their own do.
        if phase != LEAST_LATE or one.feasible or w.line[3, line] < 0:
            learn(line, c, one.energy_j, one.outcome, w)
        if better(one, best, least):
            best = one
        if one.feasible:
            phase = CHEAPEST
            continue
        misses += 1
        if phase == CHEAPEST:
            drop_slower(line, c, g, w)
        if phase == LOWER:
            if one.violation <= least + SAME_VIOLATION:
                high = c
            else:
                low = c
    return with_plays(best, plays)


@compiled
def better(one: Choice, best: Choice, least: float) -> bool:
    """The least energy among those that violate no more than the least does."""
    if (one.violation <= least + SAME_VIOLATION) != (best.violation <= least + SAME_VIOLATION):
        return one.violation < best.violation
    if one.feasible != best.feasible:
        return one.feasible
    return one.energy_j < best.energy_j


@compiled
def untried() -> Choice:
    nothing = Outcome(0.0, 0.0, 0.0, 0.0, 0.0, -1, 0.0, 0.0, -1, 0.0, 0.0, 0)
    return Choice(-1, 0, 0, 0, math.inf, math.inf, False, 0, 0, -1, nothing)


@compiled
def with_plays(c: Choice, plays: int) -> Choice:
    return Choice(
        c.clock, c.chunk, c.microbatches, c.share, c.energy_j, c.violation, c.feasible,
        plays, c.room, c.line, c.outcome,
    )  # fmt: skip


@compiled
def tightest_ttft_ms(s: State) -> float:
    least_ms = math.inf
    for row in range(s.times.shape[1]):
        if s.times[TTFT, row] == math.inf:
            least_ms = min(least_ms, s.times[TTFT_SLO, row])
    return least_ms


@entry
def foretell(
    s: State, start: State, k: Setting, now_ms: float, lookahead_ms: float, pace_shares: Floats,
    e: Engine, t: Tables,
) -> Outcome:  # fmt: skip
    """One candidate's forecast; ``s`` holds its requests' TTFT and GAP afterwards."""
    classify(start, e)
    p = equal_work(start, lookahead_ms, pace_shares, e, t)
    return forecast(s, start, k, now_ms, lookahead_ms, p, e, t)


@entry
def exhaustive(
    a: State, start: State, chunk: int, now_ms: float, lookahead_ms: float, g: Grid, w: Room,
    e: Engine, t: Tables,
) -> Choice:  # fmt: skip
    """Play every candidate: what ``search`` is measured against."""
    classify(start, e)
    p = equal_work(start, lookahead_ms, g.pace_shares, e, t)
    clear(g, w)
    tbt_ms = everyone(start, e).tbt_ms
    prefill = prefill_pending(start, e)
    chunks = len(g.chunks) if prefill else 1
    best = untried()
    least = math.inf
    for _ in range(2):  # once for the least violation, once for the least energy at it
        for i in range(chunks):
            w.line[0, 0] = legal_chunk(start, g.chunks[i] if prefill else chunk, e)
            for m in range(g.least_microbatches, e.pp + 1):
                for share in range(len(g.pace_shares)):
                    w.line[1, 0], w.line[2, 0] = m, share
                    for c in range(len(t.idle_w)):
                        one = play_one(
                            a, start, c, 0, 0, 0, now_ms, lookahead_ms, tbt_ms, p, g, w, e, t
                        )
                        least = min(least, one.violation)
                        if better(one, best, least):
                            best = one
        if least == 0.0:
            break
    return best
