"""The compiled search behind a Python face: hands it a moment, and names what it found."""

import math

import numpy as np

from beam_runtime.emulator.forecast import Outcome, forecast_one
from beam_runtime.emulator.moment import Moment
from beam_runtime.emulator.setup import Setting, make_setup, make_tables
from beam_runtime.emulator.state import Records, State, empty_state, records
from beam_runtime.errors import BeamError
from beam_runtime.search import best
from beam_runtime.search.hurry import Hurry
from beam_runtime.search.lines import AFTER, ENTRY, GRID, LINE, PLAY, Grid, Room
from beam_runtime.search.reasons import Found, Tried
from beam_runtime.search.sketch import RIDERS, SHEET, Paper
from beam_runtime.table.step_cost import StepCost, clock_index
from beam_runtime.types import Correction, EngineLimits, Forecast, Knobs, Rules

# Seldom reached: MOST_WORK ends a search of many requests before.
MOST_PLAYS = 96
# Of the plays, how many a decision tells of.
MOST_TOLD = 5
# Steps times requests that one decision may play: about a millisecond.
MOST_WORK = 60_000
# Runs of equal steps in a sketch, beside one per prompt.
MORE_RUNS = 4


class BacklogError(BeamError):
    """More waits than can be played."""


class Searcher:
    """Arrays made once; not for two threads at a time.

    Args:
        cost: step costs.
        limits: of the engine.
        rules: the composer's.
        chunks: the chunk sizes to choose from.
        pace_shares: the paces, in shares of the tightest TBT SLO.
        lookahead_ms: the horizon is at least this long.
        switch_j: what a clock change must save.
        first_token_ms: the tightest TTFT SLO.
    """

    def __init__(
        self,
        cost: StepCost,
        limits: EngineLimits,
        rules: Rules,
        chunks: tuple[int, ...],
        pace_shares: tuple[float, ...],
        lookahead_ms: float,
        switch_j: float = 0.0,
        first_token_ms: float = math.inf,
    ) -> None:
        self._cost = cost
        self._limits = limits
        self._rules = rules
        self._lookahead_ms = float(lookahead_ms)
        self._clock_mhz: list[int] = cost.clocks_mhz.tolist()
        # A batch twice as large as any is looked up to price a token.
        most_tokens = max(limits.max_batched_tokens, 2 * limits.max_num_seqs)
        self._tables = make_tables(cost, most_tokens)
        lines, clocks = max(len(chunks), limits.pp * len(pace_shares)), len(cost.clocks_mhz)
        self._room = Room(
            lines=records(lines, LINE),
            entries=records(lines * clocks, ENTRY).reshape(lines, clocks),
            after=records(clocks, AFTER),
            plays=records(MOST_PLAYS, PLAY),
        )
        given = records(1, GRID)
        given["most_plays"], given["most_work"] = MOST_PLAYS, MOST_WORK
        given["delay_ms"], given["lookahead_ms"] = limits.clock_delay_ms, lookahead_ms
        given["switch_j"] = switch_j
        self._hurry = Hurry(cost, limits, max(chunks, default=1), first_token_ms)
        given["hurry_j_per_ms"] = self._hurry.j_per_ms
        self._grid = Grid(given, np.array(chunks, dtype=np.int64), np.array(pace_shares))
        self._corrected: tuple[Correction, Records] | None = None
        self._make_paper(64, limits.max_steps_in_flight)

    def search(self, moment: Moment, only_mhz: int | None = None) -> Found:
        """The best knobs; ``only_mhz``: at this clock.

        Raises:
            BacklogError: none can be told.
        """
        self._look_at(moment, only_mhz)
        choice = best.search(
            self._first, self._second, moment.state, self._grid, self._room, self._paper,
            self._setup(moment), self._tables,
        )  # fmt: skip
        if choice.line < 0:
            raise BacklogError(
                "no setting could be judged",
                cause="the prompts that wait take more steps than are looked ahead",
            )
        played = self._first if choice.first_room else self._second
        knobs = self._knobs(choice.clock, choice.chunk_tokens, choice.microbatches, choice.pace_ms)
        forecast = unpack(choice.outcome, played, moment)
        tried = self._tried(choice.plays, moment)
        return Found(knobs, forecast, choice.energy_j, choice.violation, tried)

    def best_of_all(self, moment: Moment) -> Found:
        """The best of every candidate, each of them played: what ``search`` is measured by."""
        self._look_at(moment, None)
        choice = best.exhaustive(
            self._first, moment.state, self._grid, self._room, self._setup(moment), self._tables
        )
        knobs = self._knobs(choice.clock, choice.chunk_tokens, choice.microbatches, choice.pace_ms)
        return Found(knobs, self.forecast(moment, knobs), choice.energy_j, choice.violation, ())

    def forecast(self, moment: Moment, knobs: Knobs) -> Forecast:
        """What to expect of these knobs."""
        self._look_at(moment, None)
        plan = moment.clock_plan(knobs.clock_mhz)
        setting = Setting(
            clock_index(self._cost, knobs.clock_mhz),
            clock_index(self._cost, plan.before_mhz),
            float(plan.switch_ms),
            knobs.chunk_tokens,
            knobs.microbatches,
            float(knobs.pace_ms),
        )
        outcome = forecast_one(
            self._first, moment.state, setting, float(moment.now_ms), self._lookahead_ms,
            self._grid.pace_shares, self._setup(moment), self._tables,
        )  # fmt: skip
        return unpack(outcome, self._first, moment)

    def held_ms(
        self, moment: Moment, clock: int, chunk: int, microbatches: int, pace: int
    ) -> float | None:
        """What limits leave of a pace, after a search of this moment; None: it is too slow.

        Args:
            moment: that was searched.
            clock: index of the clock.
            chunk: index of the chunk size.
            microbatches: their number.
            pace: index of the pace's share.
        """
        pace_ms = float(self._grid.pace_shares[pace]) * self.tightest_tbt_ms(moment)
        requests = moment.state.requests[: len(moment.names)]
        limited = requests["max_slowdown"].any() or requests["least_tokens_per_s"].any()
        if not (limited or moment.correction.decode_tokens_per_s):
            return pace_ms
        prefill = self._room.lines["microbatches"][0] == 0
        line = chunk if prefill else (microbatches - 1) * len(self._grid.pace_shares) + pace
        entry = self._room.entries[line, clock]
        if entry["too_slow"]:
            return None
        left_ms = self._room.after[clock]["pace_ms"] if prefill else entry["pace_ms"]
        return min(pace_ms, float(left_ms))

    def tightest_tbt_ms(self, moment: Moment) -> float:
        """What pace shares are shares of."""
        seated = min(len(moment.names), self._limits.max_num_seqs)
        if not seated:
            return 0.0
        records = moment.state.requests[:seated]
        allowed_ms = records["token_slo_ms"]
        holding = records["broken"] == 0
        return float((allowed_ms[holding] if holding.any() else allowed_ms).min())

    def _look_at(self, moment: Moment, only_mhz: int | None) -> None:
        """Room for as many requests as there are, and what the grid says of this moment."""
        rows, slots = moment.state.members.shape[1], len(moment.state.flights)
        if self._first.members.shape[1] != rows or len(self._first.flights) != slots:
            self._make_paper(rows, slots - 1)
        asked_mhz = moment.knobs.clock_mhz
        plan = moment.clock_plan(asked_mhz)
        given = self._grid.given[0]
        given["asked_clock"] = (
            self._clock_mhz.index(asked_mhz) if asked_mhz in self._clock_mhz else -1
        )
        given["current_clock"] = clock_index(self._cost, plan.before_mhz)
        given["only_clock"] = -1 if only_mhz is None else self._clock_mhz.index(only_mhz)
        given["chunk_tokens"] = moment.knobs.chunk_tokens
        given["effective_ms"], given["now_ms"] = plan.switch_ms, moment.now_ms
        given["hurry_gaps_j_per_ms"] = self._hurry.gaps_j_per_ms(moment.correction)

    def _make_paper(self, rows: int, steps: int) -> None:
        pp = self._limits.pp
        self._first, self._second = empty_state(rows, steps, pp), empty_state(rows, steps, pp)
        self._paper = Paper(records(rows + MORE_RUNS, SHEET), records(pp, RIDERS))

    def _setup(self, moment: Moment) -> Records:
        corrected = self._corrected
        if corrected is None or corrected[0] is not moment.correction:
            setup = make_setup(self._limits, self._rules, moment.correction)
            self._corrected = corrected = moment.correction, setup
        return corrected[1]

    def _knobs(self, clock: int, chunk_tokens: int, microbatches: int, pace_ms: float) -> Knobs:
        return Knobs(self._clock_mhz[clock], int(chunk_tokens), int(microbatches), float(pace_ms))

    def _tried(self, plays: int, moment: Moment) -> tuple[Tried, ...]:
        """The cheapest that were played."""
        played = self._room.plays[:plays]
        cheapest = played[np.argsort(played["energy_j"])[:MOST_TOLD]]
        tried = []
        # In the order of PLAY's fields.
        for (
            clock,
            chunk,
            groups,
            row,
            pace_ms,
            energy_j,
            ttft_ms,
            tbt_ms,
            broken,
        ) in cheapest.tolist():
            knobs = self._knobs(clock, chunk, groups, pace_ms)
            name = moment.names[row] if row >= 0 else None
            tried.append(Tried(knobs, energy_j, ttft_ms, tbt_ms, broken, name))
        return tuple(tried)


def unpack(outcome: Outcome, played: State, moment: Moment) -> Forecast:
    """A Forecast from what was noted per row."""
    names, rows = moment.names, len(moment.names)
    noted_ms = played.requests["ttft_ms"][:rows].tolist()
    gaps_ms = played.requests["worst_gap_ms"][:rows].tolist()
    ttft_ms = dict.fromkeys(moment.rejected, math.inf)
    ttft_ms.update((name, ms) for name, ms in zip(names, noted_ms, strict=True) if ms >= 0.0)
    cycle_ms = outcome.cycle_ms
    return Forecast(
        ttft_ms=ttft_ms,
        worst_tbt_ms={
            name: max(ms, cycle_ms) for name, ms in zip(names, gaps_ms, strict=True) if ms >= 0.0
        },
        ttft_excess_ms=outcome.ttft_excess_ms,
        tbt_excess_ms=outcome.tbt_excess_ms,
        ttft_worst=names[outcome.ttft_row] if outcome.ttft_row >= 0 else None,
        tbt_worst=names[outcome.tbt_row] if outcome.tbt_row >= 0 else None,
        broken=outcome.broken,
        horizon_ms=outcome.horizon_ms,
        active_energy_j=outcome.active_j,
        idle_energy_j=outcome.idle_j,
        settlement_j=outcome.settlement_j,
        prompt_tokens=outcome.prompt_tokens,
        output_tokens=outcome.output_tokens,
    )
