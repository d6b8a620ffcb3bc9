"""The candidates in lines of one entry per clock, and what is expected of each entry.

With prefill pending a line is a chunk size (microbatches and pace are then settled by what
follows the prefill), without it a line is a pair of microbatches and pace. Entries are
estimated from a sketch, or from the steady cycle, which is exact; plays correct their lines.
"""

import math
from typing import NamedTuple

from beam_runtime.emulator.compiler import compiled
from beam_runtime.emulator.forecast import Outcome
from beam_runtime.emulator.play import Decoding, decode_phase
from beam_runtime.emulator.setup import Tables
from beam_runtime.emulator.state import DECODING, READY, Floats, Ints, Records, State, record_type
from beam_runtime.emulator.steady import (
    Prices,
    everyone,
    net_w,
    round_of,
    settlement_j,
    split,
    steady_of,
)
from beam_runtime.search.sketch import (
    Estimate,
    Paper,
    draw,
    estimate,
    legal_chunk,
    line_up,
)
from beam_runtime.search.slowdown import held_ms, slowdown_now
from beam_runtime.types import SAME_MS

# How far an estimated energy may be off before its line was played, and after: shares.
UNTRIED, TRIED = 0.02, 0.0005
# The same for TTFT and TBT, in shares of their SLO; a sketch knows little about TBT.
TTFT_DOUBT, TBT_DOUBT, TRIED_DOUBT = 0.15, 0.4, 0.01
# The fastest entries of a line: those whose time is within this factor.
ABOUT = 1.015
# A miss may shrink faster from clock to clock than it did so far, by this factor.
STEEPER = 3.0
# How far a play's bad news counts for higher clocks of its line.
TRUST = 0.25
# A measured table is monotone in the clock but for this.
NOISE = 1.003

# DROPPED may come back where nothing keeps the SLOs, CLOSED (played, or no candidate) does not.
OPEN, DROPPED, CLOSED = range(3)

GRID = record_type(
    "asked_clock "  # the clock asked for last, -1 if it is not a candidate
    "current_clock only_clock "  # the one in effect; the only one to consider, -1 for all
    "chunk_tokens least_microbatches "  # in force; to choose from, up to the pipeline's stages
    "most_plays most_work",  # steps x requests to be played
    "effective_ms delay_ms "  # when the clock asked for takes effect; how long a change takes
    "now_ms lookahead_ms switch_j",
)
LINE = record_type(
    "chunk_tokens microbatches pace "  # 0 microbatches: as is best after the prefill
    "played_clock",  # the last one, -1 without
    # Of that play: less the estimates; by how much its miss shrinks per clock, and that miss.
    "energy_shift_j ttft_shift_ms tbt_shift_ms shrinks_ms missed_ms",
)
ENTRY = record_type(
    "status too_slow",  # too_slow: a limit that people set forbids it
    "energy_j ttft_excess_ms broken tbt_excess_ms slow_ms pace_ms",
)
AFTER = record_type("microbatches pace", "late_ms net_w power_w tokens_per_ms pace_ms")
PLAY = record_type(
    "clock chunk_tokens microbatches missed_row",
    "pace_ms energy_j ttft_excess_ms tbt_excess_ms broken",
)


class Grid(NamedTuple):
    """The candidates, and how a clock change comes about.

    Attributes:
        given: GRID.
        chunks: chunk sizes to choose from.
        pace_shares: paces, in shares of the tightest TBT SLO.
    """

    given: Records
    chunks: Ints
    pace_shares: Floats


class Room(NamedTuple):
    """Everything a search writes to; made once.

    Attributes:
        lines: (lines,) of LINE.
        entries: (lines, clocks) of ENTRY.
        after: (clocks,) of AFTER: the steady setting that is best after the prefill.
        plays: (most plays,) of PLAY.
    """

    lines: Records
    entries: Records
    after: Records
    plays: Records


@compiled
def clear(grid: Grid, room: Room) -> None:
    """Forget the last search."""
    for line in range(len(room.lines)):
        one = room.lines[line]
        one.played_clock = -1
        one.energy_shift_j = one.ttft_shift_ms = one.tbt_shift_ms = 0.0
        one.shrinks_ms = one.missed_ms = 0.0
        for clock in range(room.entries.shape[1]):
            wanted = grid.given.only_clock == -1 or grid.given.only_clock == clock
            room.entries[line, clock].status = OPEN if wanted else CLOSED
            room.entries[line, clock].too_slow = 0


@compiled
def prepare_prefill(
    state: State, grid: Grid, prices: Prices, room: Room, paper: Paper, setup: Records,
    tables: Tables,
) -> int:  # fmt: skip
    """One line per chunk size, estimated from its sketch."""
    now_ms = grid.given.now_ms
    context_tokens = 0
    for at in range(state.engine.running):
        request = state.requests[state.places[at].running]
        if request.kind == READY or request.kind == DECODING:
            context_tokens += request.computed_tokens
    all_of_them = everyone(state, setup)
    later = Decoding(all_of_them.requests, all_of_them.context_tokens, all_of_them.tbt_ms, setup.pp)
    lead_in_ms = 0.0
    for free_ms in state.stage_free_ms:
        lead_in_ms += max(0.0, free_ms - now_ms)
    first_ms = max(0.0, state.stage_free_ms[0] - now_ms)
    clocks = len(tables.idle_w)
    slowdown = slowdown_now(state, prices.fastest_ms, setup)
    limit_ms = slowdown * prices.fastest_ms
    choose_steady(later, limit_ms, prices, grid, room, setup, tables)
    prompts = line_up(state, paper, setup)
    before, pending_tokens = 0, 0
    for number in range(prompts):
        pending_tokens += paper.sheet[number].prompt_tokens
    decoding = state.engine.decoding
    for line in range(len(grid.chunks)):
        chunk_tokens = legal_chunk(decoding, grid.chunks[line], setup)
        one = room.lines[line]
        one.chunk_tokens, one.microbatches, one.pace = chunk_tokens, 0, 0
        # A chunk that changes nothing is left out: too small to be legal, or larger than needed.
        same = chunk_tokens == before or pending_tokens + decoding <= before
        before = chunk_tokens
        if same:
            close(line, room)
            continue
        sketch = draw(state, prompts, chunk_tokens, clocks // 2, now_ms, paper, setup, tables)
        if not sketch.done:
            close(line, room)
            continue
        # Prompts that are done decode while others are not, if that takes long enough.
        riders = decoding
        if riders == 0 and sketch.steps > 2 * setup.pp:
            riders = prompts - 1
        meanwhile = Decoding(riders, context_tokens, all_of_them.tbt_ms, setup.pp)
        for clock in range(clocks):
            found = estimate(
                sketch, clock, lead_in_ms, first_ms, meanwhile, room.after[clock],
                grid.given.lookahead_ms, prices, paper, setup, tables,
            )  # fmt: skip
            note_estimate(line, clock, found, grid, room)
        close_slow(line, line + 1, slowdown, room)
    cut_like_others(len(grid.chunks), room)
    return len(grid.chunks)


@compiled
def cut_like_others(lines: int, room: Room) -> None:
    """A chunk that is cut costs no more than one that need not be: the composer cuts to that."""
    for clock in range(room.entries.shape[1]):
        least_j = math.inf
        for line in range(lines):
            entry = room.entries[line, clock]
            if entry.status != OPEN:
                continue
            if entry.tbt_excess_ms < 0.0:
                least_j = min(least_j, entry.energy_j)
            elif entry.tbt_excess_ms == 0.0:
                entry.energy_j = min(entry.energy_j, least_j)


@compiled
def close(line: int, room: Room) -> None:
    """No entry of this line is a candidate."""
    for clock in range(room.entries.shape[1]):
        room.entries[line, clock].status = CLOSED


@compiled
def close_slow(first: int, end: int, slowdown: float, room: Room) -> None:
    """Of these lines, entries slower than a limit allows: so many times the time of the fastest."""
    fastest_ms = math.inf
    for line in range(first, end):
        for clock in range(room.entries.shape[1]):
            if room.entries[line, clock].status == OPEN:
                fastest_ms = min(fastest_ms, room.entries[line, clock].slow_ms)
    for line in range(first, end):
        for clock in range(room.entries.shape[1]):
            entry = room.entries[line, clock]
            if entry.slow_ms > slowdown * fastest_ms + SAME_MS:
                entry.status, entry.too_slow = CLOSED, 1


@compiled
def note_estimate(line: int, clock: int, found: Estimate, grid: Grid, room: Room) -> None:
    """What is expected of an entry, a clock change included."""
    entry = room.entries[line, clock]
    change_j = grid.given.switch_j if clock != grid.given.asked_clock else 0.0
    entry.energy_j = found.energy_j + change_j
    entry.ttft_excess_ms = found.ttft_excess_ms
    entry.broken = found.broken
    entry.tbt_excess_ms = found.tbt_excess_ms
    entry.slow_ms = found.slow_ms


@compiled
def choose_steady(
    decoding: Decoding, limit_ms: float, prices: Prices, grid: Grid, room: Room, setup: Records,
    tables: Tables,
) -> None:  # fmt: skip
    """Per clock the microbatches and the pace that are cheapest and in time after the prefill."""
    for clock in range(len(tables.idle_w)):
        room.after[clock].late_ms = room.after[clock].net_w = math.inf
    for microbatches in range(grid.given.least_microbatches, setup.pp + 1):
        passes, batch = split(decoding, max(microbatches, decoding.groups))
        fewer, larger = split(decoding, microbatches)
        for clock in range(len(tables.idle_w)):
            best = room.after[clock]
            apart = round_of(passes, batch, clock, setup, tables)
            together = round_of(fewer, larger, clock, setup, tables)
            for pace in range(len(grid.pace_shares)):
                pace_ms = held_ms(
                    grid.pace_shares[pace] * decoding.tbt_ms, decoding.groups, microbatches, apart,
                    together, limit_ms,
                )  # fmt: skip
                cycle = steady_of(
                    decoding, clock, microbatches, pace_ms, apart, together, setup, tables
                )
                over_ms = cycle.cycle_ms + setup.tbt_margin_ms - decoding.tbt_ms - SAME_MS
                late_ms = max(0.0, over_ms)
                cycle_w = net_w(cycle, prices.token_j)
                if late_ms < best.late_ms or (late_ms == best.late_ms and cycle_w < best.net_w):
                    best.microbatches, best.pace, best.pace_ms = microbatches, pace, pace_ms
                    best.late_ms, best.net_w = late_ms, cycle_w
                    best.power_w = cycle.active_w + cycle.idle_w
                    best.tokens_per_ms = cycle.tokens_per_ms


@compiled
def prepare_decode(
    state: State, grid: Grid, prices: Prices, room: Room, setup: Records, tables: Tables
) -> int:
    """One line per microbatches and pace; the steady cycle is what a play would charge."""
    decoding = decode_phase(state)
    lookahead_ms = grid.given.lookahead_ms
    chunk_tokens = legal_chunk(state.engine.decoding, grid.given.chunk_tokens, setup)
    pace_tbt_ms = everyone(state, setup).tbt_ms
    slowdown = slowdown_now(state, prices.fastest_ms, setup)
    limit_ms = slowdown * prices.fastest_ms
    paces = len(grid.pace_shares)
    for microbatches in range(1, setup.pp + 1):
        passes, batch = split(decoding, max(microbatches, decoding.groups))
        fewer, larger = split(decoding, microbatches)
        for clock in range(len(tables.idle_w)):
            apart = round_of(passes, batch, clock, setup, tables)
            together = round_of(fewer, larger, clock, setup, tables)
            # A pace never makes late by itself, so what counts is the cycle without it.
            slow_ms = apart.cycle_ms
            excess_ms = slow_ms + setup.tbt_margin_ms - decoding.tbt_ms
            for pace in range(paces):
                line = (microbatches - 1) * paces + pace
                one, entry = room.lines[line], room.entries[line, clock]
                one.chunk_tokens, one.microbatches, one.pace = chunk_tokens, microbatches, pace
                pace_ms = held_ms(
                    grid.pace_shares[pace] * pace_tbt_ms, decoding.groups, microbatches, apart,
                    together, limit_ms,
                )  # fmt: skip
                entry.pace_ms = pace_ms
                cycle = steady_of(
                    decoding, clock, microbatches, pace_ms, apart, together, setup, tables
                )
                energy_j = (cycle.active_w + cycle.idle_w) * lookahead_ms / 1e3
                tokens = cycle.tokens_per_ms * lookahead_ms
                energy_j += settlement_j(prices, lookahead_ms, tokens)
                found = Estimate(energy_j, -math.inf, 0.0, excess_ms, slow_ms)
                note_estimate(line, clock, found, grid, room)
                # A longer pace that the SLO cuts to the same cycle is the same setting.
                same = pace > 0 and room.entries[line - 1, clock].energy_j == entry.energy_j
                if same or microbatches < grid.given.least_microbatches:
                    entry.status = CLOSED
    lines: int = setup.pp * paces
    close_slow(0, lines, slowdown, room)
    return lines


class Bounds(NamedTuple):
    """What an entry has to be expected to stay below to be worth a play.

    Attributes:
        energy_j: of the best so far.
        ttft_excess_ms: lateness that is accepted.
        tbt_excess_ms: the same for TBT.
        slow_ms: the time that a clock is slower by than another.
    """

    energy_j: float
    ttft_excess_ms: float
    tbt_excess_ms: float
    slow_ms: float


@compiled
def cheapest(
    lines: int, below: Bounds, ttft_ms: float, tbt_ms: float, room: Room
) -> tuple[int, int]:
    """The open entry to play next, (line, clock); (-1, -1) if none is expected within ``below``.

    What a play taught about a line counts in full for lower clocks. For higher ones bad news
    counts by TRUST and dearer not at all: being late, which made it dear, may be over there.
    """
    at_line, at_clock, least_j = -1, -1, below.energy_j
    for line in range(lines):
        one = room.lines[line]
        played = one.played_clock
        for clock in range(room.entries.shape[1]):
            entry = room.entries[line, clock]
            if entry.status != OPEN or entry.slow_ms > below.slow_ms:
                continue
            energy_j = entry.energy_j
            late_ms, gap_ms = entry.ttft_excess_ms, entry.tbt_excess_ms
            if played < 0:
                energy_j -= UNTRIED * abs(energy_j)
                late_ms -= TTFT_DOUBT * ttft_ms
                gap_ms -= TBT_DOUBT * tbt_ms
            else:
                higher = clock > played
                shrinks_ms = STEEPER * one.shrinks_ms * (clock - played)
                if higher and shrinks_ms > 0.0 and one.missed_ms > shrinks_ms:
                    continue
                energy_j += min(one.energy_shift_j, 0.0) if higher else one.energy_shift_j
                energy_j -= TRIED * abs(energy_j)
                late_ms += trusted(one.ttft_shift_ms, higher) - TRIED_DOUBT * ttft_ms
                gap_ms += trusted(one.tbt_shift_ms, higher) - TRIED_DOUBT * tbt_ms
            in_time = late_ms <= below.ttft_excess_ms and gap_ms <= below.tbt_excess_ms
            if energy_j < least_j and in_time:
                at_line, at_clock, least_j = line, clock, energy_j
    return at_line, at_clock


@compiled
def trusted(shift_ms: float, higher: bool) -> float:
    """Bad news about a line, at a higher clock."""
    return shift_ms * TRUST if higher and shift_ms > 0.0 else shift_ms


@compiled
def least_late(
    lines: int, limit: float, requests: int, tbt_ms: float, grid: Grid, room: Room
) -> tuple[int, int]:
    """Of the entries that are about as fast as their line can be, the least late, by estimate."""
    at_line, at_clock, least = -1, -1, limit
    only = grid.given.only_clock
    for line in range(lines):
        one = room.lines[line]
        fastest_ms = math.inf
        for clock in range(room.entries.shape[1]):
            slow_ms = room.entries[line, clock].slow_ms
            if (only == -1 or only == clock) and slow_ms > 0.0:
                fastest_ms = min(fastest_ms, slow_ms)
        fast_ms = fastest_ms * ABOUT
        played = one.played_clock
        tried = played >= 0 and room.entries[line, played].slow_ms <= fast_ms
        for clock in range(room.entries.shape[1]):
            entry = room.entries[line, clock]
            if entry.status == CLOSED or entry.slow_ms > fast_ms:
                continue
            late = entry.broken
            late += requests * max(0.0, entry.tbt_excess_ms) / tbt_ms
            # Of equals a line not tried at such a clock yet, the shortest pace, the fastest.
            late += 1e-3 * tried + 1e-6 * one.pace + 1e-9 * entry.slow_ms
            if late < least:
                at_line, at_clock, least = line, clock, late
    return at_line, at_clock


@compiled
def reopen(room: Room) -> None:
    """Nothing keeps the SLOs: what was dropped for missing them is no worse for that."""
    for line in range(len(room.lines)):
        for clock in range(room.entries.shape[1]):
            if room.entries[line, clock].status == DROPPED:
                room.entries[line, clock].status = OPEN


@compiled
def drop_slower(line: int, clock: int, grid: Grid, room: Room) -> None:
    """An entry broke an SLO: those of its line that are clearly slower will too.

    The clock in force is spared: it alone needs no change, and so no delay.
    """
    limit_ms = room.entries[line, clock].slow_ms * NOISE
    for other in range(room.entries.shape[1]):
        entry = room.entries[line, other]
        spared = other == grid.given.asked_clock
        if entry.status == OPEN and entry.slow_ms > limit_ms and not spared:
            entry.status = DROPPED


@compiled
def learn(line: int, clock: int, energy_j: float, outcome: Outcome, room: Room) -> None:
    """Correct a line's estimates by what one of its entries came to."""
    one, entry = room.lines[line], room.entries[line, clock]
    # How fast a miss shrinks from clock to clock, once two of them are known.
    missed_ms = max(outcome.ttft_excess_ms, outcome.tbt_excess_ms)
    steps = clock - one.played_clock
    if one.played_clock >= 0 and steps > 0 and one.missed_ms > 0.0:
        one.shrinks_ms = max(one.shrinks_ms, (one.missed_ms - missed_ms) / steps)
    one.missed_ms = max(0.0, missed_ms)
    one.played_clock = clock
    one.energy_shift_j = energy_j - entry.energy_j
    one.ttft_shift_ms = learnt(outcome.ttft_excess_ms, entry.ttft_excess_ms)
    one.tbt_shift_ms = learnt(outcome.tbt_excess_ms, entry.tbt_excess_ms)


@compiled
def learnt(played_ms: float, estimated_ms: float) -> float:
    """By how much to shift estimates; a setting in time says nothing bad about others."""
    if played_ms == -math.inf or estimated_ms == -math.inf:
        return 0.0
    shift_ms = played_ms - estimated_ms
    return shift_ms if played_ms > SAME_MS else min(0.0, shift_ms)
