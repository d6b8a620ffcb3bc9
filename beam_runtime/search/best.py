"""The search over clock x chunk x microbatches x pace, in one compiled call.

Every candidate has an estimate (lines.py). They are played in the order of estimated energy
(next_play.py):

1. play the cheapest entry that is estimated to keep every SLO;
2. its play corrects the estimates of its line; if it breaks an SLO, so will lower clocks of
   that line, and they are dropped;
3. stop when nothing left is estimated to be cheaper than the best that was played.

Nothing is dropped on monotony in chunk, which energy does not have. Where nothing keeps the
SLOs, the fastest entries are played in the order of estimated violation; then cheaper entries
of the same speed; and the clock of the best goes down as far as the violation does not grow,
and limits allow.
"""

import math
from typing import NamedTuple

from beam_runtime.emulator.compiler import compiled, entry
from beam_runtime.emulator.composer import classify
from beam_runtime.emulator.forecast import Outcome, forecast
from beam_runtime.emulator.places import opened
from beam_runtime.emulator.play import decode_phase
from beam_runtime.emulator.schedule import prefill_pending
from beam_runtime.emulator.setup import Setting, Tables
from beam_runtime.emulator.state import Records, State
from beam_runtime.emulator.steady import Prices, equal_work, everyone, split
from beam_runtime.search.lines import (
    CLOSED,
    Grid,
    Room,
    clear,
    hurry_j,
    prepare_decode,
    prepare_prefill,
)
from beam_runtime.search.next_play import (
    ABOUT,
    Bounds,
    at_risk,
    cheapest,
    close_alike,
    drop_slower,
    forbidden_below,
    learn,
    least_late,
    reopen,
    shared_rise,
)
from beam_runtime.search.sketch import Paper, legal_chunk
from beam_runtime.types import SAME_MS

# After so many plays in vain it is time to see whether anything keeps the SLOs, by so many
# plays of the fastest entries.
MISSES, TRIES = 3, 16
# Of one promise at risk: closer than this is the same.
SAME_VIOLATION = 0.005
# What a step costs a play beside its requests, in requests.
PER_STEP = 32
# What the search is doing: 1 to 3 of the docstring; then its last paragraph.
CHEAPEST, LEAST_LATE, NO_WORSE, LOWER = range(4)


class Choice(NamedTuple):
    """A played candidate.

    Attributes:
        line: of the candidate; -1 for none.
        clock: index of its clock.
        chunk_tokens: of a step.
        microbatches: to split decodes into.
        pace_ms: how long a ready decode batch may be held.
        energy_j: over equal work, with the price of a clock change.
        violation: requests expected to lose a promise; 0 where all margins are kept.
        plays: how many were made.
        first_room: whether it was played on the first of the two states.
        outcome: its forecast.
    """

    line: int
    clock: int
    chunk_tokens: int
    microbatches: int
    pace_ms: float
    energy_j: float
    violation: float
    plays: int
    first_room: bool
    outcome: Outcome


@entry
def search(
    first: State, second: State, start: State, grid: Grid, room: Room, paper: Paper,
    setup: Records, tables: Tables,
) -> Choice:  # fmt: skip
    """The best candidate from ``start``; first or second holds its TTFT and gaps afterwards."""
    at_hand = Grid(grid.given[0], grid.chunks, grid.pace_shares)
    return best_of(
        opened(first), opened(second), opened(start), at_hand, room, paper, setup[0], tables
    )


@compiled
def best_of(
    first: State, second: State, start: State, grid: Grid, room: Room, paper: Paper,
    setup: Records, tables: Tables,
) -> Choice:  # fmt: skip
    """``search`` with the records at hand."""
    given = grid.given
    classify(start, setup)
    prices = equal_work(start, given.lookahead_ms, grid.pace_shares, setup, tables)
    clear(grid, room)
    prefills = prefill_pending(start, setup)
    if prefills:
        lines = prepare_prefill(start, grid, prices, room, paper, setup, tables)
    else:
        lines = prepare_decode(start, grid, prices, room, setup, tables)
    tbt_ms = everyone(start, setup).tbt_ms
    ttft_ms = tightest_ttft_ms(start)
    best = nothing_yet()
    least = math.inf  # the least violation seen
    rise = math.inf  # the least share by which a play came to more than its estimate
    phase, plays, work, misses = CHEAPEST, 0, 0, 0
    low, high = -1, 0  # LOWER: a clock that is too low, and the lowest that is not
    while plays < given.most_plays:
        line, clock = -1, -1
        feasible = best.violation == 0.0
        if phase == CHEAPEST:
            if work <= given.most_work and (misses < MISSES or feasible):
                dearest_j = best.energy_j if feasible else math.inf
                below = Bounds(dearest_j, 0.0, 0.0, math.inf, shared_rise(rise, plays))
                line, clock = cheapest(lines, below, ttft_ms, tbt_ms, room)
            if line < 0:
                if feasible:
                    break
                phase, misses = LEAST_LATE, 0
        if phase == LEAST_LATE:
            if misses < TRIES and (work <= given.most_work or misses == 0):
                limit = least * 1.5 + 0.01 if misses > 0 else math.inf
                line, clock = least_late(lines, limit, start.engine.running, tbt_ms, grid, room)
            if line < 0:
                phase, misses = NO_WORSE, 0
                reopen(room)
        if phase == NO_WORSE:
            if misses < 2 * MISSES and work <= given.most_work:
                below = Bounds(
                    best.energy_j,
                    max(0.0, best.outcome.ttft_excess_ms),
                    max(0.0, best.outcome.tbt_excess_ms),
                    room.entries[best.line, best.clock].slow_ms * ABOUT,
                    shared_rise(rise, plays),
                )
                line, clock = cheapest(lines, below, ttft_ms, tbt_ms, room)
            if line < 0:
                phase, low, high = LOWER, forbidden_below(best.line, room), best.clock
        if phase == LOWER:
            line, clock = best.line, (low + high) // 2
            if given.only_clock >= 0 or high - low < 2 or work > 2 * given.most_work:
                break

        on_first = not best.first_room
        one = play_one(
            first if on_first else second, on_first, start, line, clock, plays, prices, grid,
            room, setup, tables,
        )  # fmt: skip
        plays += 1
        work += one.outcome.steps * (start.engine.rows + PER_STEP)
        least = min(least, one.violation)
        estimated_j = room.entries[line, clock].energy_j
        rise = min(rise, (one.energy_j - estimated_j) / abs(estimated_j))
        kept = one.violation == 0.0
        # A miss at the fastest clocks says less about the slower ones than their own do.
        if phase != LEAST_LATE or kept or room.lines[line].played_clock < 0:
            learn(line, clock, one.energy_j, one.outcome, room)
        if better(one, best, least):
            best = one
        if prefills:
            close_alike(clock, one.chunk_tokens, one.outcome.most_tokens, lines, room)
        if kept:
            phase = CHEAPEST
            continue
        misses += 1
        if phase == LEAST_LATE:
            estimated = at_risk(room.entries[line, clock], start.engine.running, tbt_ms)
            room.lines[line].risk_shift = one.violation - estimated
        if phase in (CHEAPEST, LEAST_LATE):
            drop_slower(line, clock, lines, grid, room)
        if phase == LOWER:
            if one.violation <= least + SAME_VIOLATION:
                high = clock
            else:
                low = clock
    return with_plays(best, plays)


@compiled
def play_one(
    state: State, on_first: bool, start: State, line: int, clock: int, plays: int, prices: Prices,
    grid: Grid, room: Room, setup: Records, tables: Tables,
) -> Choice:  # fmt: skip
    """Play one entry and note it."""
    given = grid.given
    one = room.lines[line]
    microbatches, pace_ms = one.microbatches, room.entries[line, clock].pace_ms
    if microbatches == 0:
        microbatches, pace_ms = room.after[clock].microbatches, room.after[clock].pace_ms
    asked = clock == given.asked_clock
    switch_ms = given.effective_ms if asked else given.now_ms + given.delay_ms
    setting = Setting(
        clock, given.current_clock, switch_ms, one.chunk_tokens, microbatches, pace_ms
    )
    outcome = forecast(
        state, start, setting, given.now_ms, given.lookahead_ms, prices, setup, tables
    )
    energy_j = outcome.active_j + outcome.idle_j + outcome.settlement_j
    energy_j += 0.0 if asked else given.switch_j
    energy_j += room.entries[line, clock].hurry_j
    room.entries[line, clock].status = CLOSED
    noted = room.plays[plays]
    noted.clock, noted.chunk_tokens = clock, one.chunk_tokens
    noted.microbatches, noted.pace_ms = microbatches, pace_ms
    noted.energy_j = energy_j
    noted.ttft_excess_ms = outcome.ttft_excess_ms
    noted.tbt_excess_ms = outcome.tbt_excess_ms
    noted.broken = outcome.broken
    late = outcome.tbt_excess_ms > SAME_MS
    noted.missed_row = outcome.tbt_row if late else outcome.ttft_row
    return Choice(
        line, clock, one.chunk_tokens, microbatches, pace_ms, energy_j, outcome.broken,
        plays + 1, on_first, outcome,
    )  # fmt: skip


@compiled
def better(one: Choice, best: Choice, least: float) -> bool:
    """The least energy among those that violate no more than the least does."""
    if (one.violation <= least + SAME_VIOLATION) != (best.violation <= least + SAME_VIOLATION):
        return one.violation < best.violation
    if (one.violation == 0.0) != (best.violation == 0.0):
        return one.violation == 0.0
    return one.energy_j < best.energy_j


@compiled
def nothing_yet() -> Choice:
    """Worse than anything."""
    outcome = Outcome(0.0, 0.0, 0.0, 0.0, 0.0, -1, 0.0, -1, 0.0, 0.0, 0, 0, 0, 0.0)
    return Choice(-1, -1, 0, 0, 0.0, math.inf, math.inf, 0, True, outcome)


@compiled
def with_plays(best: Choice, plays: int) -> Choice:
    """The same, with how many plays it took."""
    return Choice(
        best.line, best.clock, best.chunk_tokens, best.microbatches, best.pace_ms, best.energy_j,
        best.violation, plays, best.first_room, best.outcome,
    )  # fmt: skip


@compiled
def tightest_ttft_ms(state: State) -> float:
    """Of the requests that wait for their first token; inf without."""
    least_ms = math.inf
    for row in range(state.engine.rows):
        if state.requests[row].ttft_ms == math.inf:
            least_ms = min(least_ms, state.requests[row].ttft_slo_ms)
    return least_ms


@entry
def exhaustive(
    first: State, start: State, grid: Grid, room: Room, setup: Records, tables: Tables
) -> Choice:
    """Play every candidate, limits on saving aside: what ``search`` is measured against."""
    return best_of_all(
        opened(first),
        opened(start),
        Grid(grid.given[0], grid.chunks, grid.pace_shares),
        room,
        setup[0],
        tables,
    )


@compiled
def best_of_all(
    state: State, start: State, grid: Grid, room: Room, setup: Records, tables: Tables
) -> Choice:
    """``exhaustive`` with the records at hand."""
    given = grid.given
    classify(start, setup)
    prices = equal_work(start, given.lookahead_ms, grid.pace_shares, setup, tables)
    clear(grid, room)
    tbt_ms = everyone(start, setup).tbt_ms
    prefill = prefill_pending(start, setup)
    decoding = decode_phase(start)
    best = nothing_yet()
    least = math.inf
    one = room.lines[0]
    for _ in range(2):  # once for the least violation, once for the least energy at it
        for at in range(len(grid.chunks) if prefill else 1):
            wanted = grid.chunks[at] if prefill else given.chunk_tokens
            one.chunk_tokens = legal_chunk(start.engine.decoding, wanted, setup)
            for microbatches in range(1, setup.most_microbatches + 1):
                for pace in range(len(grid.pace_shares)):
                    one.microbatches, one.pace = microbatches, pace
                    for clock in range(len(tables.idle_w)):
                        candidate = room.entries[0, clock]
                        candidate.pace_ms = grid.pace_shares[pace] * tbt_ms
                        if not prefill:
                            _, batch = split(decoding, max(microbatches, decoding.groups))
                            candidate.hurry_j = hurry_j(
                                batch, decoding.by_gap, clock, grid, setup, tables
                            )
                        played = play_one(
                            state, True, start, 0, clock, 0, prices, grid, room, setup, tables
                        )
                        least = min(least, played.violation)
                        if better(played, best, least):
                            best = played
        if least == 0.0:
            break
    return best
