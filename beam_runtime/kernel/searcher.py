"""The compiled search behind a Python face: packs a snapshot, searches, unpacks the choice."""

import math

import numpy as np

from beam_runtime.emulator.pipeline import ClockPlan, clock_index
from beam_runtime.kernel import search as compiled
from beam_runtime.kernel.emulator import Outcome
from beam_runtime.kernel.lines import Grid, Room
from beam_runtime.kernel.pack import blank_like, pack_engine, pack_state, pack_tables
from beam_runtime.kernel.sketch import Paper
from beam_runtime.kernel.state import GAP, TTFT, Engine, Setting, State
from beam_runtime.search.reasons import Found, Tried
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import EngineLimits, Forecast, Knobs, RequestState, Rules, Snapshot

MOST_PLAYS = 48
# Of the plays, how many a decision tells of.
MOST_TOLD = 5
# Steps times requests that one decision may play: about a millisecond.
MOST_WORK = 60_000


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
        weights: of missed TTFT and missed TBT.
        least_microbatches: to choose from, up to the pipeline's stages.
    """

    def __init__(
        self,
        cost: StepCost,
        limits: EngineLimits,
        rules: Rules,
        chunks: tuple[int, ...],
        pace_shares: tuple[float, ...],
        lookahead_ms: float,
        switch_j: float,
        weights: tuple[float, float],
        least_microbatches: int = 1,
    ) -> None:
        self._cost = cost
        self._limits = limits
        self._rules = rules
        self._chunks = np.array(chunks, dtype=np.int64)
        self._pace_shares = np.array(pace_shares, dtype=np.float64)
        self._lookahead_ms = float(lookahead_ms)
        self._switch_j = float(switch_j)
        self._weights = weights
        self._least_microbatches = least_microbatches
        self._clock_mhz: list[int] = cost.clocks_mhz.tolist()
        # A batch twice as large as any is looked up to price a token.
        most_tokens = max(limits.max_batched_tokens, 2 * limits.max_num_seqs)
        self._tables = pack_tables(cost, most_tokens)
        lines = max(len(chunks), limits.pp * len(pace_shares))
        clocks = len(cost.clocks_mhz)
        self._room = Room(
            estimate=np.zeros((5, lines, clocks)),
            state=np.zeros((lines, clocks), dtype=np.int64),
            line=np.zeros((4, lines), dtype=np.int64),
            shift=np.zeros((5, lines)),
            steady=np.zeros((clocks, 2), dtype=np.int64),
            after=np.zeros((clocks, 4)),
            log=np.zeros((MOST_PLAYS, 8)),
        )

    def search(self, state: Snapshot, only_mhz: int | None = None) -> Found:
        """The best knobs; ``only_mhz``: at this clock."""
        start, requests, engine, grid = self._packed(state, only_mhz)
        a, b, paper = blank_like(start), blank_like(start), self._paper(len(requests))
        choice = compiled.search(
            a, b, start, state.knobs.chunk_tokens, float(state.now_ms), self._lookahead_ms,
            grid, self._room, paper, engine, self._tables,
        )  # fmt: skip
        played = a if choice.room == 0 else b
        tbt_ms = self.tightest_tbt_ms(requests)
        return Found(
            knobs=self._knobs(
                choice.clock, choice.chunk, choice.microbatches, choice.share, tbt_ms
            ),
            forecast=unpack(choice.outcome, played, requests, state),
            energy_j=choice.energy_j,
            violation=choice.violation,
            tried=self._tried(choice.plays, requests, tbt_ms),
        )

    def best_of_all(self, state: Snapshot) -> Found:
        """The best of every candidate, each of them played: what ``search`` is measured by."""
        start, requests, engine, grid = self._packed(state, None)
        choice = compiled.exhaustive(
            blank_like(start), start, state.knobs.chunk_tokens, float(state.now_ms),
            self._lookahead_ms, grid, self._room, engine, self._tables,
        )  # fmt: skip
        tbt_ms = self.tightest_tbt_ms(requests)
        knobs = self._knobs(choice.clock, choice.chunk, choice.microbatches, choice.share, tbt_ms)
        return Found(knobs, self.forecast(state, knobs), choice.energy_j, choice.violation, ())

    def forecast(self, state: Snapshot, knobs: Knobs) -> Forecast:
        """emulator.forecast, compiled."""
        start, requests, engine, grid = self._packed(state, None)
        plan = ClockPlan.asking_for(knobs.clock_mhz, state)
        setting = Setting(
            clock=clock_index(self._cost, knobs.clock_mhz),
            clock_before=grid.current,
            switch_ms=float(plan.switch_ms),
            chunk=knobs.chunk_tokens,
            microbatches=knobs.microbatches,
            pace_ms=float(knobs.pace_ms),
        )
        played = blank_like(start)
        outcome = compiled.foretell(
            played, start, setting, float(state.now_ms), self._lookahead_ms, self._pace_shares,
            engine, self._tables,
        )  # fmt: skip
        return unpack(outcome, played, requests, state)

    def _packed(
        self, state: Snapshot, only_mhz: int | None
    ) -> tuple[State, tuple[RequestState, ...], Engine, Grid]:
        start, requests = pack_state(state)
        asked_mhz = state.knobs.clock_mhz
        plan = ClockPlan.asking_for(asked_mhz, state)
        grid = Grid(
            chunks=self._chunks,
            pace_shares=self._pace_shares,
            asked=self._clock_mhz.index(asked_mhz) if asked_mhz in self._clock_mhz else -1,
            current=clock_index(self._cost, plan.before_mhz),
            effective_ms=float(plan.switch_ms),
            delay_ms=float(state.limits.clock_delay_ms),
            only=-1 if only_mhz is None else self._clock_mhz.index(only_mhz),
            switch_j=self._switch_j,
            ttft_weight=float(self._weights[0]),
            tbt_weight=float(self._weights[1]),
            least_microbatches=self._least_microbatches,
            most_plays=MOST_PLAYS,
            most_work=MOST_WORK,
        )
        return start, requests, pack_engine(state, self._rules), grid

    def _paper(self, requests: int) -> Paper:
        return Paper(
            prompt=np.empty((2, requests), dtype=np.int64),
            ring=np.empty((4, self._limits.pp), dtype=np.int64),
            runs=np.empty((2, requests + 4), dtype=np.int64),
            ttft=np.empty((3, requests)),
        )

    def _knobs(
        self, clock: float, chunk: float, microbatches: float, share: float, tbt_ms: float
    ) -> Knobs:
        return Knobs(
            clock_mhz=self._clock_mhz[int(clock)],
            chunk_tokens=int(chunk),
            microbatches=int(microbatches),
            pace_ms=float(self._pace_shares[int(share)]) * tbt_ms,
        )

    def _tried(
        self, plays: int, requests: tuple[RequestState, ...], tbt_ms: float
    ) -> tuple[Tried, ...]:
        """The cheapest that were played."""
        log = self._room.log[:plays]
        tried = []
        for entry in log[np.argsort(log[:, 4])[:MOST_TOLD]].tolist():
            clock, chunk, microbatches, share, energy_j, ttft_ms, tbt_excess_ms, row = entry
            missed = requests[int(row)].request_id if row >= 0 else None
            knobs = self._knobs(clock, chunk, microbatches, share, tbt_ms)
            tried.append(Tried(knobs, energy_j, ttft_ms, tbt_excess_ms, missed))
        return tuple(tried)

    def tightest_tbt_ms(self, requests: tuple[RequestState, ...]) -> float:
        """What pace shares are shares of."""
        seated = requests[: self._limits.max_num_seqs]
        return min([r.slo.tbt_ms for r in seated], default=0.0)


def unpack(
    outcome: Outcome, played: State, requests: tuple[RequestState, ...], state: Snapshot
) -> Forecast:
    """A Forecast from what the compiled code noted per row."""
    names = [r.request_id for r in requests]
    ttft = {r.request_id: math.inf for r in state.waiting if not r.generated_tokens}
    noted_ms, gap_ms = played.times[TTFT], played.times[GAP]
    ttft.update({names[row]: float(noted_ms[row]) for row in np.flatnonzero(noted_ms >= 0.0)})
    gaps_ms = np.where(gap_ms >= 0.0, np.maximum(gap_ms, outcome.cycle_ms), -1.0).tolist()
    return Forecast(
        ttft_ms=ttft,
        worst_tbt_ms={name: ms for name, ms in zip(names, gaps_ms, strict=True) if ms >= 0.0},
        ttft_excess_ms=outcome.ttft_excess_ms,
        tbt_excess_ms=outcome.tbt_excess_ms,
        ttft_worst=names[outcome.ttft_row] if outcome.ttft_row >= 0 else None,
        tbt_worst=names[outcome.tbt_row] if outcome.tbt_row >= 0 else None,
        ttft_violation=outcome.ttft_violation,
        tbt_violation=outcome.tbt_violation,
        horizon_ms=outcome.horizon_ms,
        active_energy_j=outcome.active_j,
        idle_energy_j=outcome.idle_j,
        settlement_j=outcome.settlement_j,
    )
