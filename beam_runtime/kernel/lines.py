"""The candidates in lines of one entry per clock, and what is expected of each entry.

With prefill pending a line is a chunk size (microbatches and pace are then settled by what
follows the prefill), without it a line is a pair of microbatches and pace. Entries are
estimated from a sketch, or from the steady cycle, which is exact; plays correct their lines.
"""

import math
from typing import NamedTuple

from beam_runtime.kernel.emulator import Outcome, decode_phase
from beam_runtime.kernel.jit import compiled
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
    Engine,
    Floats,
    Ints,
    State,
    Tables,
)
from beam_runtime.kernel.steady import (
    Decoding,
    Prices,
    everyone,
    net_w,
    round_of,
    settlement_j,
    split,
    steady_of,
)
from beam_runtime.types import SAME_MS

# How far an estimated energy may be off before its line was played, and after: shares.
UNTRIED, TRIED = 0.02, 0.0005
# The same for TTFT and TBT, in shares of their SLO; a sketch knows little about TBT.
TTFT_DOUBT, TBT_DOUBT, TRIED_DOUBT = 0.15, 0.4, 0.01
# The fastest entries of a line: those whose time is within this factor.
ABOUT = 1.015
# A miss may shrink faster from clock to clock than it did so far, by this factor.
STEEPER = 3.0
# A measured table is monotone in the clock but for this.
NOISE = 1.003


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
    least_microbatches: int
    most_plays: int
    most_work: int  # steps x requests to be played


class Room(NamedTuple):
    """Everything a search writes to; made once.

    Attributes:
        estimate: (5, lines, M) energy, TTFT excess, TTFT violation, TBT excess, and the time
            that a clock is slower by than another.
        state: (lines, M) OPEN, DROPPED or CLOSED (played, or no candidate).
        line: (4, lines) chunk, microbatches, pace share's index, clock of the last play.
        shift: (5, lines) of the last play: energy, TTFT and TBT less their estimates; by how
            much a miss shrinks from one clock to the next, and that miss.
        steady: (M, 2) microbatches and pace share's index that are best after the prefill,
        after: (M, 4) and what they come to: lateness, net power, power, tokens.
        log: (plays, 8) clock, chunk, microbatches, share's index, energy, TTFT excess, TBT
            excess, request that misses.
    """

    estimate: Floats
    state: Ints
    line: Ints
    shift: Floats
    steady: Ints
    after: Floats
    log: Floats


LATE_MS, NET_W, POWER_W, TOKENS_PER_MS = range(4)
# DROPPED may come back where nothing keeps the SLOs, CLOSED does not.
OPEN, DROPPED, CLOSED = range(3)
ENERGY, TTFT, TTFT_SUM, TBT, SLOW = range(5)


@compiled
def clear(g: Grid, w: Room) -> None:
    for line in range(w.state.shape[0]):
        w.line[3, line] = -1
        for i in range(5):
            w.shift[i, line] = 0.0
        for c in range(w.state.shape[1]):
            w.state[line, c] = OPEN if g.only in (-1, c) else CLOSED


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
    later = Decoding(d.requests, d.context_tokens, d.tbt_ms, e.pp)
    choose_steady(later, p, g, w, e, t)
    lead_in_ms = 0.0
    for stage in range(e.pp):
        lead_in_ms += max(0.0, s.clock[STAGE_FREE + stage] - now_ms)
    first_ms = max(0.0, s.clock[STAGE_FREE] - now_ms)
    prompts = line_up(s, x, e)
    clocks = len(t.idle_w)
    before, pending = 0, 0
    for i in range(prompts):
        pending += x.prompt[1, i]
    for line in range(len(g.chunks)):
        chunk = legal_chunk(s, g.chunks[line], e)
        w.line[0, line], w.line[1, line], w.line[2, line] = chunk, 0, 0
        # A chunk that changes nothing is left out: too small to be legal, or larger than needed.
        twin = chunk == before or pending + s.at[N_DECODING] <= before
        before = chunk
        if twin:
            close(line, w)
            continue
        k = draw(s, prompts, chunk, clocks // 2, now_ms, x, e, t)
        if not k.done:
            close(line, w)
            continue
        # Prompts that are done decode while others are not, if that takes long enough.
        riders = s.at[N_DECODING]
        if riders == 0 and k.steps > 2 * e.pp:
            riders = prompts - 1
        now = Decoding(riders, context, d.tbt_ms, e.pp)
        for c in range(clocks):
            found = estimate(
                k, c, lead_in_ms, first_ms, now, w.after[c, POWER_W], w.after[c, TOKENS_PER_MS],
                lookahead_ms, p, x, e, t,
            )  # fmt: skip
            note_estimate(line, c, found, g, w)
    return len(g.chunks)


@compiled
def close(line: int, w: Room) -> None:
    for c in range(w.state.shape[1]):
        w.state[line, c] = CLOSED


@compiled
def legal_chunk(s: State, chunk: int, e: Engine) -> int:
    """Never under running decodes + minimum chunk, nor over what the engine was started for."""
    legal: int = min(max(chunk, s.at[N_DECODING] + e.min_chunk), e.max_batched)
    return legal


@compiled
def note_estimate(line: int, c: int, found: Estimate, g: Grid, w: Room) -> None:
    w.estimate[ENERGY, line, c] = found.energy_j + (g.switch_j if c != g.asked else 0.0)
    w.estimate[TTFT, line, c] = found.ttft_excess_ms
    w.estimate[TTFT_SUM, line, c] = found.ttft_violation
    w.estimate[TBT, line, c] = found.tbt_excess_ms
    w.estimate[SLOW, line, c] = found.slow_ms


@compiled
def choose_steady(d: Decoding, p: Prices, g: Grid, w: Room, e: Engine, t: Tables) -> None:
    """Per clock the microbatches and the pace that are cheapest and in time after the prefill."""
    for c in range(len(t.idle_w)):
        w.after[c, LATE_MS], w.after[c, NET_W] = math.inf, math.inf
    for m in range(g.least_microbatches, e.pp + 1):
        passes, b = split(d, max(m, d.groups))
        fewer, larger = split(d, m)
        for c in range(len(t.idle_w)):
            apart = round_of(passes, b, c, e, t)
            together = round_of(fewer, larger, c, e, t)
            for share in range(len(g.pace_shares)):
                one = steady_of(d, c, m, g.pace_shares[share] * d.tbt_ms, apart, together, e, t)
                late_ms = max(0.0, one.cycle_ms + e.tbt_margin_ms - d.tbt_ms - SAME_MS)
                one_w = net_w(one, p.token_j)
                least_ms = w.after[c, LATE_MS]
                if late_ms < least_ms or (late_ms == least_ms and one_w < w.after[c, NET_W]):
                    w.steady[c, 0], w.steady[c, 1] = m, share
                    w.after[c, LATE_MS], w.after[c, NET_W] = late_ms, one_w
                    w.after[c, POWER_W] = one.active_w + one.idle_w
                    w.after[c, TOKENS_PER_MS] = one.tokens_per_ms


@compiled
def prepare_decode(
    s: State, chunk: int, g: Grid, lookahead_ms: float, p: Prices, w: Room, e: Engine, t: Tables
) -> int:
    """One line per microbatches and pace; the steady cycle is what a play would charge."""
    requests, context, tbt_ms, groups = decode_phase(s, e)
    d = Decoding(requests, context, tbt_ms, groups)
    pace_tbt_ms = everyone(s, e).tbt_ms
    shares = len(g.pace_shares)
    for m in range(1, e.pp + 1):
        passes, b = split(d, max(m, d.groups))
        fewer, larger = split(d, m)
        for c in range(len(t.idle_w)):
            apart = round_of(passes, b, c, e, t)
            together = round_of(fewer, larger, c, e, t)
            # A pace never makes late by itself, so what counts is the cycle without it.
            slow_ms = apart[0]
            for share in range(shares):
                line = (m - 1) * shares + share
                w.line[0, line], w.line[1, line], w.line[2, line] = chunk, m, share
                pace_ms = g.pace_shares[share] * pace_tbt_ms
                one = steady_of(d, c, m, pace_ms, apart, together, e, t)
                energy_j = (one.active_w + one.idle_w) * lookahead_ms / 1e3
                energy_j += settlement_j(p, lookahead_ms, one.tokens_per_ms * lookahead_ms)
                excess_ms = slow_ms + e.tbt_margin_ms - tbt_ms
                note_estimate(line, c, Estimate(energy_j, -math.inf, 0.0, excess_ms, slow_ms), g, w)
                # A longer pace that the SLO cuts to the same cycle is the same setting.
                twin = share > 0 and w.estimate[ENERGY, line - 1, c] == w.estimate[ENERGY, line, c]
                if twin or m < g.least_microbatches:
                    w.state[line, c] = CLOSED
    return e.pp * shares


@compiled
def cheapest(
    lines: int, best_j: float, late_ms: float, gap_ms: float, ttft_ms: float, tbt_ms: float,
    slow_ms: float, trust: float, w: Room,
) -> tuple[int, int]:  # fmt: skip
    """The open entry to play next, expected below ``best_j`` and these excesses; else (-1, -1).

    What a play taught about a line counts in full for lower clocks. For higher ones bad news
    counts by ``trust`` and dearer not at all: being late, which made it dear, may be over there.
    """
    at_line, at_clock, least_j = -1, -1, best_j
    for line in range(lines):
        played = w.line[3, line]
        doubt = UNTRIED if played < 0 else TRIED
        for c in range(w.state.shape[1]):
            if w.state[line, c] != OPEN or w.estimate[SLOW, line, c] > slow_ms:
                continue
            energy_j = w.estimate[ENERGY, line, c]
            late, gap = w.estimate[TTFT, line, c], w.estimate[TBT, line, c]
            if played < 0:
                late -= TTFT_DOUBT * ttft_ms
                gap -= TBT_DOUBT * tbt_ms
            else:
                higher = c > played
                shrinks_ms = STEEPER * w.shift[3, line] * (c - played)
                if higher and shrinks_ms > 0.0 and w.shift[4, line] > shrinks_ms:
                    continue
                energy_j += min(w.shift[0, line], 0.0) if higher else w.shift[0, line]
                late += w.shift[1, line] * (trust if higher and w.shift[1, line] > 0.0 else 1.0)
                gap += w.shift[2, line] * (trust if higher and w.shift[2, line] > 0.0 else 1.0)
                late -= TRIED_DOUBT * ttft_ms
                gap -= TRIED_DOUBT * tbt_ms
            energy_j -= doubt * abs(energy_j)
            if energy_j < least_j and late <= late_ms and gap <= gap_ms:
                at_line, at_clock, least_j = line, c, energy_j
    return at_line, at_clock


@compiled
def least_late(
    lines: int, limit: float, requests: int, tbt_ms: float, g: Grid, w: Room
) -> tuple[int, int]:
    """Of the entries that are about as fast as their line can be, the least late, by estimate."""
    at_line, at_clock, least = -1, -1, limit
    for line in range(lines):
        fastest_ms = math.inf
        for c in range(w.state.shape[1]):
            if g.only in (-1, c) and w.estimate[SLOW, line, c] > 0.0:
                fastest_ms = min(fastest_ms, w.estimate[SLOW, line, c])
        for c in range(w.state.shape[1]):
            if w.state[line, c] == CLOSED or w.estimate[SLOW, line, c] > fastest_ms * ABOUT:
                continue
            late = g.ttft_weight * w.estimate[TTFT_SUM, line, c]
            late += g.tbt_weight * requests * max(0.0, w.estimate[TBT, line, c]) / tbt_ms
            # Of equals a line not tried at such a clock yet, the shortest pace, the fastest.
            played = w.line[3, line]
            if played >= 0 and w.estimate[SLOW, line, played] <= fastest_ms * ABOUT:
                late += 1e-3
            late += 1e-6 * w.line[2, line] + 1e-9 * w.estimate[SLOW, line, c]
            if late < least:
                at_line, at_clock, least = line, c, late
    return at_line, at_clock


@compiled
def reopen(w: Room) -> None:
    """Nothing keeps the SLOs: what was dropped for missing them is no worse for that."""
    for line in range(w.state.shape[0]):
        for c in range(w.state.shape[1]):
            if w.state[line, c] == DROPPED:
                w.state[line, c] = OPEN


@compiled
def drop_slower(line: int, c: int, g: Grid, w: Room) -> None:
    """An entry broke an SLO: those of its line that are clearly slower will too.

    The clock in force is spared: it alone needs no change, and so no delay.
    """
    for other in range(w.state.shape[1]):
        slower = w.estimate[SLOW, line, other] > w.estimate[SLOW, line, c] * NOISE
        if slower and other != g.asked and w.state[line, other] == OPEN:
            w.state[line, other] = DROPPED


@compiled
def learn(line: int, c: int, energy_j: float, o: Outcome, w: Room) -> None:
    """Correct a line's estimates by what one of its entries came to."""
    # How fast a miss shrinks from clock to clock, once two of them are known.
    missed_ms, steps = max(o.ttft_excess_ms, o.tbt_excess_ms), c - w.line[3, line]
    if w.line[3, line] >= 0 and steps > 0 and w.shift[4, line] > 0.0:
        w.shift[3, line] = max(w.shift[3, line], (w.shift[4, line] - missed_ms) / steps)
    w.shift[4, line] = max(0.0, missed_ms)
    w.line[3, line] = c
    w.shift[0, line] = energy_j - w.estimate[ENERGY, line, c]
    w.shift[1, line] = learnt(o.ttft_excess_ms, w.estimate[TTFT, line, c])
    w.shift[2, line] = learnt(o.tbt_excess_ms, w.estimate[TBT, line, c])


@compiled
def learnt(played_ms: float, estimated_ms: float) -> float:
    """By how much to shift estimates; a setting in time says nothing bad about others."""
    if played_ms == -math.inf or estimated_ms == -math.inf:
        return 0.0
    shift_ms = played_ms - estimated_ms
    return shift_ms if played_ms > SAME_MS else min(0.0, shift_ms)
