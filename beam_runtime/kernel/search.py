"""The search over clock x chunk x microbatches x pace, in one compiled call.

Candidates stand in lines of one entry per clock: with prefill pending a line is a chunk size
(microbatches and pace are then settled by what follows the prefill), without it a line is a
pair of microbatches and pace. Every entry gets an estimate: from a sketch, or from the steady
cycle, which is exact. Then the entries are played in the order of their estimated energy:

1. play the cheapest entry that is estimated to keep every SLO;
2. its play corrects the estimates of its line; if it breaks an SLO, so will lower clocks of
   that line, and they are dropped;
3. stop when nothing left is estimated to be cheaper than the best that was played.

Nothing is dropped on monotony in chunk, which energy does not have. Where nothing keeps the
SLOs, lines are played at the highest clock in the order of estimated violation, and the clock
of the least one goes down as far as the violation does not grow.
"""

import math
from typing import NamedTuple

from beam_runtime.kernel.composer import classify, prefill_pending
from beam_runtime.kernel.emulator import Outcome, decode_phase, forecast
from beam_runtime.kernel.jit import compiled, entry, inlined
from beam_runtime.kernel.sketch import Estimate, Paper, draw, estimate, line_up
from beam_runtime.kernel.state import (
    COMPUTED,
    KIND,
    N_DECODING,
    N_RUNNING,
    OTHER,
    PREFILL,
    RUNNING,
    STAGE_FREE,
    TTFT_SLO,
    Engine,
    Floats,
    Ints,
    Setting,
    State,
    Tables,
)
from beam_runtime.kernel.state import TTFT as TTFT_NOTED
from beam_runtime.kernel.steady import Decoding, Prices, equal_work, everyone, net_w, steady
from beam_runtime.types import SAME_MS

# How wrong an estimate may be before its line was played, and after.
UNTRIED, TRIED = 0.02, 0.0005
# Room in an estimated TTFT or TBT that is not yet proven to break its SLO: shares of the SLO.
ROOM_UNTRIED, ROOM_TRIED = 0.08, 0.01
# Violations closer than this (in shares of one SLO) are the same.
SAME_VIOLATION = 2e-3


class Grid(NamedTuple):
    """The candidates, and how a clock change comes about."""

    chunks: Ints
    pace_shares: Floats
    asked: int  # the clock asked for last, -1 if it is not a candidate
    current: int  # the clock in effect
    effective_ms: float  # when the one asked for takes effect
    delay_ms: float
    only: int  # the one clock to consider, -1 for all
    switch_j: float
    ttft_weight: float
    tbt_weight: float
    most_plays: int
    most_work: int  # steps x requests to be played


class Room(NamedTuple):
    """Everything a search writes to; made once.

    Attributes:
        estimate: (4, lines, M) energy, TTFT excess, TTFT violation, TBT excess.
        state: (lines, M) OPEN, DROPPED or PLAYED.
        line: (4, lines) chunk, microbatches, pace share's index, whether it was played.
        shift: (3, lines) play less estimate of the last play: energy, TTFT, TBT.
        steady: (M, 2) microbatches and pace share's index that are best after the prefill.
        log: (plays, 8) clock, chunk, microbatches, share's index, energy, TTFT excess, TBT
            excess, request that misses.
    """

    estimate: Floats
    state: Ints
    line: Ints
    shift: Floats
    steady: Ints
    log: Floats


OPEN, DROPPED, PLAYED = range(3)
# What the search is doing: 1 and 2 of the docstring; then its last paragraph.
CHEAPEST, LEAST_LATE, LOWEST = range(3)
ENERGY, TTFT, TTFT_SUM, TBT = range(4)


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
    lookahead_ms: float,
    tbt_ms: float, p: Prices, g: Grid, w: Room, e: Engine, t: Tables,
) -> Choice:  # fmt: skip
    """Play one entry, log it, and correct its line's estimates."""
    chunk, m, share = w.line[0, line], w.line[1, line], w.line[2, line]
    if m == 0:
        m, share = w.steady[c, 0], w.steady[c, 1]
    k = setting_of(c, chunk, m, g.pace_shares[share] * tbt_ms, now_ms, g)
    o = forecast(s, start, k, now_ms, lookahead_ms, p, e, t)
    energy_j, violation = energy_of(o, c, g), violation_of(o, g)
    w.state[line, c] = PLAYED
    w.line[3, line] = 1
    w.shift[0, line] = energy_j - w.estimate[ENERGY, line, c]
    w.shift[1, line] = o.ttft_excess_ms - w.estimate[TTFT, line, c] if o.ttft_row >= 0 else 0.0
    w.shift[2, line] = o.tbt_excess_ms - w.estimate[TBT, line, c] if o.tbt_row >= 0 else 0.0
    entry = w.log[plays]
    entry[0], entry[1], entry[2], entry[3] = c, chunk, m, share
    entry[4], entry[5], entry[6] = energy_j, o.ttft_excess_ms, o.tbt_excess_ms
    entry[7] = o.tbt_row if o.tbt_excess_ms > SAME_MS else o.ttft_row
    return Choice(
        c, chunk, m, share, energy_j, violation, violation == 0.0, plays + 1, room, line, o
    )  # fmt: skip


@compiled
def prepare_prefill(
    s: State, g: Grid, now_ms: float, lookahead_ms: float, p: Prices, w: Room, x: Paper,
    e: Engine, t: Tables,
) -> int:  # fmt: skip
    """One line per chunk size, estimated from its sketch."""
    context = 0
    for i in range(s.at[N_RUNNING]):
        row = s.requests[RUNNING, i]
        if s.requests[KIND, row] != PREFILL and s.requests[KIND, row] != OTHER:
            context += s.requests[COMPUTED, row]
    d = everyone(s, e)
    now = Decoding(s.at[N_DECODING], context, d.tbt_ms, e.pp)
    later = Decoding(d.requests, d.context_tokens, d.tbt_ms, e.pp)
    choose_steady(later, p, g, w, e, t)
    lead_in_ms = 0.0
    for stage in range(e.pp):
        lead_in_ms += max(0.0, s.clock[STAGE_FREE + stage] - now_ms)
    first_ms = max(0.0, s.clock[STAGE_FREE] - now_ms)
    prompts = line_up(s, x, e)
    clocks = len(t.idle_w)
    for line in range(len(g.chunks)):
        chunk = legal_chunk(s, g.chunks[line], e)
        k = draw(s, prompts, chunk, clocks // 2, now_ms, x, e, t)
        w.line[0, line], w.line[1, line], w.line[2, line] = chunk, 0, 0
        twin = line > 0 and w.line[0, line - 1] == chunk
        for c in range(clocks):
            if twin or not k.done:
                w.state[line, c] = DROPPED
                continue
            m, share = w.steady[c, 0], w.steady[c, 1]
            after = steady(later, c, m, g.pace_shares[share] * d.tbt_ms, e, t)
            found = estimate(k, c, lead_in_ms, first_ms, now, after, lookahead_ms, p, x, e, t)
            note_estimate(line, c, found, g, w)
    return len(g.chunks)


@compiled
def legal_chunk(s: State, chunk: int, e: Engine) -> int:
    """Never under running decodes + minimum chunk, nor over what the engine was started for."""
    return min(max(chunk, s.at[N_DECODING] + e.min_chunk), e.max_batched)


@compiled
def note_estimate(line: int, c: int, found: Estimate, g: Grid, w: Room) -> None:
    w.estimate[ENERGY, line, c] = found.energy_j + (g.switch_j if c != g.asked else 0.0)
    w.estimate[TTFT, line, c] = found.ttft_excess_ms
    w.estimate[TTFT_SUM, line, c] = found.ttft_violation
    w.estimate[TBT, line, c] = found.tbt_excess_ms


@compiled
def choose_steady(d: Decoding, p: Prices, g: Grid, w: Room, e: Engine, t: Tables) -> None:
    """Per clock the microbatches and the pace that are cheapest and in time after the prefill."""
    for c in range(len(t.idle_w)):
        best_w, best_ms = math.inf, math.inf
        w.steady[c, 0], w.steady[c, 1] = 1, 0
        for m in range(1, e.pp + 1):
            for share in range(len(g.pace_shares)):
                one = steady(d, c, m, g.pace_shares[share] * d.tbt_ms, e, t)
                late_ms = max(0.0, one.cycle_ms + e.tbt_margin_ms - d.tbt_ms - SAME_MS)
                one_w = net_w(one, p.token_j)
                if late_ms < best_ms or (late_ms == best_ms and one_w < best_w):
                    w.steady[c, 0], w.steady[c, 1] = m, share
                    best_w, best_ms = one_w, late_ms


@compiled
def prepare_decode(
    s: State, chunk: int, g: Grid, lookahead_ms: float, p: Prices, w: Room, e: Engine, t: Tables
) -> int:
    """One line per microbatches and pace; the steady cycle is what a play would charge."""
    requests, context, tbt_ms, groups = decode_phase(s, e)
    d = Decoding(requests, context, tbt_ms, groups)
    pace_tbt_ms = everyone(s, e).tbt_ms
    shares = len(g.pace_shares)
    for c in range(len(t.idle_w)):
        for m in range(1, e.pp + 1):
            for share in range(shares):
                line = (m - 1) * shares + share
                w.line[0, line], w.line[1, line], w.line[2, line] = chunk, m, share
                one = steady(d, c, m, g.pace_shares[share] * pace_tbt_ms, e, t)
                energy_j = (one.active_w + one.idle_w) * lookahead_ms / 1e3
                owed = (p.tokens_per_ms - one.tokens_per_ms) * lookahead_ms
                energy_j += p.standing_w * (p.window_ms - lookahead_ms) / 1e3 + p.token_j * owed
                excess_ms = one.cycle_ms + e.tbt_margin_ms - tbt_ms
                note_estimate(line, c, Estimate(energy_j, -math.inf, 0.0, excess_ms, 0.0), g, w)
    return e.pp * shares


@compiled
def cheapest(
    lines: int, best_j: float, tbt_ms: float, ttft_ms: float, found: bool, w: Room
) -> tuple[int, int]:
    """The open entry to play next, (-1, -1) if none could beat ``best_j``, once one is found."""
    at_line, at_clock, least_j = -1, -1, best_j if found else math.inf
    for line in range(lines):
        tried = w.line[3, line] == 1
        doubt = TRIED if tried else UNTRIED
        room = ROOM_TRIED if tried else ROOM_UNTRIED
        for c in range(w.state.shape[1]):
            if w.state[line, c] != OPEN:
                continue
            if w.estimate[TTFT, line, c] + w.shift[1, line] > room * ttft_ms:
                continue
            if w.estimate[TBT, line, c] + w.shift[2, line] > room * tbt_ms:
                continue
            energy_j = w.estimate[ENERGY, line, c] + w.shift[0, line]
            energy_j -= doubt * abs(energy_j)
            if energy_j < least_j:
                at_line, at_clock, least_j = line, c, energy_j
    return at_line, at_clock


@compiled
def least_late(
    lines: int, c: int, limit: float, requests: int, tbt_ms: float, g: Grid, w: Room
) -> int:
    """The line not yet played at clock ``c`` with the least estimated violation, under a limit."""
    at, least = -1, limit
    for line in range(lines):
        if w.state[line, c] != OPEN:
            continue
        late = g.ttft_weight * w.estimate[TTFT_SUM, line, c]
        late += g.tbt_weight * requests * max(0.0, w.estimate[TBT, line, c]) / max(tbt_ms, 1.0)
        if late < least:
            at, least = line, late
    return at


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
    else:
        lines = prepare_decode(start, legal_chunk(start, chunk, e), g, lookahead_ms, p, w, e, t)
    tbt_ms = everyone(start, e).tbt_ms
    ttft_ms = tightest_ttft_ms(start)
    top = g.only if g.only >= 0 else len(t.idle_w) - 1
    requests = start.times.shape[1]
    best = untried()
    phase, plays, work = CHEAPEST, 0, 0
    low, high = -1, 0  # LOWEST: a clock too low, and the lowest that is not
    while plays < g.most_plays:
        if phase == CHEAPEST:
            line, c = cheapest(lines, best.energy_j, tbt_ms, ttft_ms, best.feasible, w)
            if line < 0 or work > g.most_work:
                if best.feasible:
                    break
                phase = LEAST_LATE
        if phase == LEAST_LATE:
            limit = best.violation * 1.5 + 1e-9
            line, c = least_late(lines, top, limit, start.at[N_RUNNING], tbt_ms, g, w), top
            if line < 0 or (work > g.most_work and best.clock >= 0):
                phase, high = LOWEST, best.clock
        if phase == LOWEST:
            line, c = best.line, (low + high) // 2
            if g.only >= 0 or high - low < 2 or work > 2 * g.most_work:
                break

        room = 1 - best.room
        s = a if room == 0 else b
        one = play_one(s, start, c, line, room, plays, now_ms, lookahead_ms, tbt_ms, p, g, w, e, t)
        plays += 1
        work += one.outcome.steps * (requests + 32)
        if phase == LOWEST:
            if one.violation > best.violation + SAME_VIOLATION:
                low = c
            else:
                high = c
                if one.energy_j < best.energy_j:
                    best = one
            continue
        if better(one, best):
            best = one
        if one.feasible:
            phase = CHEAPEST
        else:
            for lower in range(c):
                w.state[line, lower] = max(w.state[line, lower], DROPPED)
    return with_plays(best, plays)


@compiled
def better(one: Choice, best: Choice) -> bool:
    """Keeping the SLOs first, then the least violation, then the least energy."""
    if one.feasible != best.feasible:
        return one.feasible
    if one.feasible or abs(one.violation - best.violation) <= SAME_VIOLATION:
        return one.energy_j < best.energy_j
    return one.violation < best.violation


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
def clear(g: Grid, w: Room) -> None:
    for line in range(w.state.shape[0]):
        w.line[3, line] = 0
        for i in range(3):
            w.shift[i, line] = 0.0
        for c in range(w.state.shape[1]):
            w.state[line, c] = OPEN if g.only in (-1, c) else DROPPED


@compiled
def tightest_ttft_ms(s: State) -> float:
    least_ms = math.inf
    for row in range(s.times.shape[1]):
        if s.times[TTFT_NOTED, row] == math.inf:
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
    for i in range(chunks):
        w.line[0, 0] = (
            legal_chunk(start, g.chunks[i], e) if prefill else legal_chunk(start, chunk, e)
        )
        for m in range(1, e.pp + 1):
            for share in range(len(g.pace_shares)):
                w.line[1, 0], w.line[2, 0] = m, share
                for c in range(len(t.idle_w)):
                    one = play_one(
                        a, start, c, 0, 0, 0, now_ms, lookahead_ms, tbt_ms, p, g, w, e, t
                    )
                    if better(one, best):
                        best = one
    return best
