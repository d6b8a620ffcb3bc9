"""The candidates in lines of one entry per clock, and what is expected of each entry.

With prefill pending a line is a chunk size (microbatches and pace are then settled by what
follows the prefill), without it a line is a pair of microbatches and pace. Entries are
estimated from a sketch, or from the steady cycle, which is exact (next_play.py corrects them).
"""

import math
from typing import NamedTuple

from beam_runtime.emulator.compiler import compiled
from beam_runtime.emulator.play import Decoding, decode_phase
from beam_runtime.emulator.setup import Batch, Tables, pass_ms
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
from beam_runtime.search.slowdown import held_ms, seated_slowdown, set_slowdown, slowdown_now
from beam_runtime.types import SAME_MS

# DROPPED may come back where nothing keeps the SLOs, CLOSED (played, or no candidate) does not.
OPEN, DROPPED, CLOSED = range(3)

GRID = record_type(
    "asked_clock "  # the clock asked for last, -1 if it is not a candidate
    "current_clock only_clock "  # the one in effect; the only one to consider, -1 for all
    "chunk_tokens "  # in force
    "most_plays most_work",  # steps x requests to be played
    "effective_ms delay_ms "  # when the clock asked for takes effect; how long a change takes
    "now_ms lookahead_ms switch_j "
    "hurry_j_per_ms hurry_gaps_j_per_ms",  # what makes good a lost millisecond (hurry.py)
)
LINE = record_type(
    "chunk_tokens microbatches pace "  # 0 microbatches: as is best after the prefill
    "played_clock kept_clock",  # the last one; the lowest that kept the SLOs; -1 without
    # Of that play: less the estimates; by how much its miss shrinks per clock, and that miss.
    "energy_shift_j ttft_shift_ms tbt_shift_ms shrinks_ms missed_ms "
    "played_ttft_ms played_tbt_ms kept_ttft_ms kept_tbt_ms "  # excess at these two clocks
    "risk_shift",  # requests lost at one of the fastest clocks, less the estimate
)
ENTRY = record_type(
    "status too_slow",  # too_slow: a limit that people set forbids it
    "energy_j ttft_excess_ms broken tbt_excess_ms slow_ms pace_ms "
    "hurry_j",  # of energy_j, what those to come will need because of it
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
        one.played_clock = one.kept_clock = -1
        one.energy_shift_j = one.ttft_shift_ms = one.tbt_shift_ms = 0.0
        one.shrinks_ms = one.missed_ms = one.risk_shift = 0.0
        for clock in range(room.entries.shape[1]):
            wanted = grid.given.only_clock == -1 or grid.given.only_clock == clock
            room.entries[line, clock].status = OPEN if wanted else CLOSED
            room.entries[line, clock].too_slow = 0
            room.entries[line, clock].hurry_j = 0.0


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
    later = Decoding(
        all_of_them.requests, all_of_them.context_tokens, all_of_them.tbt_ms, setup.pp,
        all_of_them.by_gap,
    )  # fmt: skip
    lead_in_ms = 0.0
    for free_ms in state.stage_free_ms:
        lead_in_ms += max(0.0, free_ms - now_ms)
    first_ms = max(0.0, state.stage_free_ms[0] - now_ms)
    clocks = len(tables.idle_w)
    by_people = set_slowdown(state, prices.fastest_ms, setup)
    by_seats = seated_slowdown(state, prices.fastest_ms, setup)
    limit_ms = min(by_people, by_seats) * prices.fastest_ms
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
        meanwhile = Decoding(
            riders, context_tokens, all_of_them.tbt_ms, setup.pp, all_of_them.by_gap
        )
        for clock in range(clocks):
            found = estimate(
                sketch, clock, lead_in_ms, first_ms, meanwhile, room.after[clock],
                grid.given.lookahead_ms, prices, paper, setup, tables,
            )  # fmt: skip
            note_estimate(line, clock, found, grid, room)
    close_slow(len(grid.chunks), by_people, room)
    close_slow_clocks(len(grid.chunks), by_seats, room)
    cut_like_others(len(grid.chunks), room)
    return len(grid.chunks)


@compiled
def cut_like_others(lines: int, room: Room) -> None:
    """A chunk that is cut costs no more than one that need not be: the composer cuts to that.

    A cut chunk is as late as is allowed (sketch.estimate), lines go from small chunks to large.
    """
    for clock in range(room.entries.shape[1]):
        least_j = math.inf
        for line in range(lines):
            entry = room.entries[line, clock]
            if entry.status != OPEN:
                continue
            if entry.tbt_excess_ms < -SAME_MS:
                least_j = min(least_j, entry.energy_j)
            elif entry.tbt_excess_ms <= SAME_MS:
                entry.energy_j = min(entry.energy_j, least_j)


@compiled
def close(line: int, room: Room) -> None:
    """No entry of this line is a candidate."""
    for clock in range(room.entries.shape[1]):
        room.entries[line, clock].status = CLOSED


@compiled
def close_slow(lines: int, slowdown: float, room: Room) -> None:
    """Entries slower than a limit allows: so many times the fastest of those in time."""
    if slowdown == math.inf:
        return
    fastest_ms = in_time_ms = math.inf
    for line in range(lines):
        for clock in range(room.entries.shape[1]):
            entry = room.entries[line, clock]
            if entry.status == OPEN:
                fastest_ms = min(fastest_ms, entry.slow_ms)
                if entry.tbt_excess_ms <= SAME_MS:
                    in_time_ms = min(in_time_ms, entry.slow_ms)
    limit_ms = slowdown * (fastest_ms if in_time_ms == math.inf else in_time_ms)
    for line in range(lines):
        for clock in range(room.entries.shape[1]):
            entry = room.entries[line, clock]
            if entry.slow_ms > limit_ms + SAME_MS:
                entry.status, entry.too_slow = CLOSED, 1


@compiled
def close_slow_clocks(lines: int, slowdown: float, room: Room) -> None:
    """Entries so many times as slow as their line's fastest: where seats are short.

    That a longer chunk is through sooner gives no seat back, so it may be any chunk.
    """
    for line in range(lines):
        fastest_ms = math.inf
        for clock in range(room.entries.shape[1]):
            entry = room.entries[line, clock]
            if entry.status == OPEN:
                fastest_ms = min(fastest_ms, entry.slow_ms)
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
    for microbatches in range(1, setup.most_microbatches + 1):
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
                allowed_ms = min(decoding.tbt_ms - setup.tbt_margin_ms, limit_ms)
                late_ms = max(0.0, cycle.cycle_ms - allowed_ms - SAME_MS)
                cycle_w = net_w(cycle, prices.token_j)
                if late_ms < best.late_ms or (late_ms == best.late_ms and cycle_w < best.net_w):
                    best.microbatches, best.pace, best.pace_ms = microbatches, pace, pace_ms
                    best.late_ms, best.net_w = late_ms, cycle_w
                    best.power_w = cycle.active_w + cycle.idle_w
                    best.tokens_per_ms = cycle.tokens_per_ms


@compiled
def hurry_j(
    batch: Batch, by_gap: bool, clock: int, grid: Grid, setup: Records, tables: Tables
) -> float:
    """What those who come within the horizon will need because decodes go at this clock.

    A prompt waits for the pass that has begun, and its own first pass starts before the clock has
    changed. The time lost against the fastest clock is made good by faster, dearer passes of the
    prefill. A play does not show that: nobody in it comes.
    """
    pass_now_ms = pass_ms(clock, batch, setup, tables)
    fastest_ms = pass_ms(len(tables.idle_w) - 1, batch, setup, tables)
    slower = max(0.0, 1.0 - fastest_ms / pass_now_ms)
    lost_ms = slower * (pass_now_ms + grid.given.delay_ms)
    arrivals = setup.arrivals_per_s * grid.given.lookahead_ms / 1e3
    j_per_ms = grid.given.hurry_gaps_j_per_ms if by_gap else grid.given.hurry_j_per_ms
    joules: float = arrivals * lost_ms * j_per_ms
    return joules


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
    for microbatches in range(1, setup.most_microbatches + 1):
        passes, batch = split(decoding, max(microbatches, decoding.groups))
        fewer, larger = split(decoding, microbatches)
        for clock in range(len(tables.idle_w)):
            apart = round_of(passes, batch, clock, setup, tables)
            together = round_of(fewer, larger, clock, setup, tables)
            # A pace never makes late by itself, so what counts is the cycle without it.
            slow_ms = apart.cycle_ms
            excess_ms = slow_ms + setup.tbt_margin_ms - decoding.tbt_ms
            if limit_ms < pace_tbt_ms:  # a limit holds for what they merge into as well
                slow_ms = max(slow_ms, together.cycle_ms)
            newcomers_j = hurry_j(batch, decoding.by_gap, clock, grid, setup, tables)
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
                entry.hurry_j = newcomers_j
                energy_j += newcomers_j
                found = Estimate(energy_j, -math.inf, 0.0, excess_ms, slow_ms)
                note_estimate(line, clock, found, grid, room)
                # A longer pace that the SLO cuts to the same cycle is the same setting, and so
                # are more microbatches than requests.
                same = pace > 0 and room.entries[line - 1, clock].energy_j == entry.energy_j
                if same or microbatches > max(1, decoding.requests):
                    entry.status = CLOSED
    lines: int = setup.most_microbatches * paces
    close_slow(lines, slowdown, room)
    return lines
