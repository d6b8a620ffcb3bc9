"""Which entry of the lines to play next, and what a play teaches about the others of its line."""

import math
from typing import NamedTuple

from beam_runtime.emulator.compiler import compiled
from beam_runtime.emulator.forecast import Outcome
from beam_runtime.emulator.state import Records
from beam_runtime.search.lines import CLOSED, DROPPED, OPEN, Grid, Room
from beam_runtime.types import SAME_MS

# How far an estimated energy may be off before its line was played, and after: shares.
UNTRIED, TRIED = 0.02, 0.0005
# The same for TTFT and TBT, in shares of their SLO; a sketch knows little about TBT.
TTFT_DOUBT, TBT_DOUBT, TRIED_DOUBT = 0.15, 0.4, 0.01
# The fastest entries of a line: those whose time is within this factor.
ABOUT = 1.015
# A miss may shrink faster from clock to clock than it did so far, by this factor.
STEEPER = 3.0
# Estimates not tried are raised by as much as every play rose above its own, after so many plays,
# up to the doubt about them. 400 states of the trace: 12.7 plays and 0.013 % regret; without 15.1
# and 0.009; up to 0.05: 10.4 and 0.026, but 1.2 % in a state that had none.
RISE_PLAYS, MOST_RISE = 3, UNTRIED
# How far a play's bad news counts for higher clocks of its line.
TRUST = 0.25
# A measured table is monotone in the clock but for this.
NOISE = 1.003


class Bounds(NamedTuple):
    """What an entry has to be expected to stay below to be worth a play.

    Attributes:
        energy_j: of the best so far.
        ttft_excess_ms: lateness that is accepted.
        tbt_excess_ms: the same for TBT.
        slow_ms: the time that a clock is slower by than another.
        rise: the share that estimates of entries not tried are raised by (shared_rise).
    """

    energy_j: float
    ttft_excess_ms: float
    tbt_excess_ms: float
    slow_ms: float
    rise: float


@compiled
def cheapest(
    lines: int, below: Bounds, ttft_ms: float, tbt_ms: float, room: Room
) -> tuple[int, int]:
    """The open entry to play next, (line, clock); (-1, -1) if none is expected within ``below``.

    What a play taught about a line counts in full for lower clocks. For higher ones bad news
    counts by TRUST and dearer no more than any: being late, which made it dear, may be over there.
    Where one still higher kept the SLOs, what lies in between is known (``between``).
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
                energy_j += (below.rise - UNTRIED) * abs(energy_j)
                late_ms -= TTFT_DOUBT * ttft_ms
                gap_ms -= TBT_DOUBT * tbt_ms
            else:
                higher = clock > played
                if higher and clock < one.kept_clock:
                    late_ms, gap_ms = between(line, clock, room)
                else:
                    shrinks_ms = STEEPER * one.shrinks_ms * (clock - played)
                    if higher and shrinks_ms > 0.0 and one.missed_ms > shrinks_ms:
                        continue
                    late_ms += trusted(one.ttft_shift_ms, higher)
                    gap_ms += trusted(one.tbt_shift_ms, higher)
                if higher and one.energy_shift_j > 0.0:
                    energy_j += (below.rise - UNTRIED) * abs(energy_j)
                else:
                    energy_j += one.energy_shift_j - TRIED * abs(energy_j)
                late_ms -= TRIED_DOUBT * ttft_ms
                gap_ms -= TRIED_DOUBT * tbt_ms
            in_time = late_ms <= below.ttft_excess_ms and gap_ms <= below.tbt_excess_ms
            if energy_j < least_j and in_time:
                at_line, at_clock, least_j = line, clock, energy_j
    return at_line, at_clock


@compiled
def shared_rise(rise: float, plays: int) -> float:
    """By how much of their estimates those not tried will come to more: every play so far did.

    A sketch does not see how what is in flight cuts the first chunks.
    """
    return min(MOST_RISE, max(0.0, rise)) if plays >= RISE_PLAYS else 0.0


@compiled
def trusted(shift_ms: float, higher: bool) -> float:
    """Bad news about a line, at a higher clock."""
    return shift_ms * TRUST if higher and shift_ms > 0.0 else shift_ms


@compiled
def between(line: int, clock: int, room: Room) -> tuple[float, float]:
    """(TTFT, TBT) excess of a clock between the last one played and one that kept the SLOs."""
    one = room.lines[line]
    kept_ms = room.entries[line, one.kept_clock].slow_ms
    played_ms = room.entries[line, one.played_clock].slow_ms
    share = (room.entries[line, clock].slow_ms - kept_ms) / max(played_ms - kept_ms, SAME_MS)
    ttft_ms, tbt_ms = one.kept_ttft_ms, one.kept_tbt_ms
    if ttft_ms > -math.inf:
        ttft_ms += share * (one.played_ttft_ms - ttft_ms)
    if tbt_ms > -math.inf:
        tbt_ms += share * (one.played_tbt_ms - tbt_ms)
    return ttft_ms, tbt_ms


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
            late = at_risk(entry, requests, tbt_ms) + one.risk_shift
            # Of equals a line not tried at such a clock yet, the shortest pace, the fastest.
            late += 1e-3 * tried + 1e-6 * one.pace + 1e-9 * entry.slow_ms
            if late < least:
                at_line, at_clock, least = line, clock, late
    return at_line, at_clock


@compiled
def at_risk(entry: Records, requests: int, tbt_ms: float) -> float:
    """How many requests an entry is expected to lose, before its line was played."""
    risk: float = entry.broken + requests * max(0.0, entry.tbt_excess_ms) / tbt_ms
    return risk


@compiled
def reopen(room: Room) -> None:
    """Nothing keeps the SLOs: what was dropped for missing them is no worse for that."""
    for line in range(len(room.lines)):
        for clock in range(room.entries.shape[1]):
            if room.entries[line, clock].status == DROPPED:
                room.entries[line, clock].status = OPEN


@compiled
def forbidden_below(line: int, room: Room) -> int:
    """The highest clock of this line that a limit forbids, -1 without one."""
    highest = -1
    for clock in range(room.entries.shape[1]):
        if room.entries[line, clock].too_slow == 1:
            highest = clock
    return highest


@compiled
def drop_slower(line: int, clock: int, lines: int, grid: Grid, room: Room) -> None:
    """An entry broke an SLO: those of its line that are clearly slower will too.

    So will those of as many microbatches that are held no shorter: holding makes nothing earlier.
    The clock in force is spared: it alone needs no change, and so no delay.
    """
    one = room.lines[line]
    limit_ms = room.entries[line, clock].slow_ms * NOISE
    for other in range(lines):
        held = room.lines[other]
        decoding = one.microbatches > 0 and held.microbatches == one.microbatches
        if other != line and not (decoding and held.pace > one.pace):
            continue
        for at in range(room.entries.shape[1]):
            entry = room.entries[other, at]
            spared = at == grid.given.asked_clock
            slower = entry.slow_ms > limit_ms or (other != line and at == clock)
            if entry.status == OPEN and slower and not spared:
                entry.status = DROPPED


@compiled
def close_alike(clock: int, chunk_tokens: int, most_tokens: int, lines: int, room: Room) -> None:
    """No step of a play was as long as its chunk: at this clock longer ones play alike.

    So do shorter ones that are longer than its longest step: prompts ended, or were cut to be in
    time, and what they are cut to does not depend on the chunk (composer.with_chunk).
    """
    if most_tokens >= chunk_tokens:
        return
    for line in range(lines):
        if room.lines[line].chunk_tokens > most_tokens:
            room.entries[line, clock].status = CLOSED


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
    one.played_ttft_ms, one.played_tbt_ms = outcome.ttft_excess_ms, outcome.tbt_excess_ms
    if outcome.broken == 0.0 and (one.kept_clock < 0 or clock < one.kept_clock):
        one.kept_clock = clock
        one.kept_ttft_ms, one.kept_tbt_ms = outcome.ttft_excess_ms, outcome.tbt_excess_ms
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
