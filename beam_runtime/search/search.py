"""From a snapshot to knobs: the one joint search over clock, chunk, microbatches and pace.

``Search(cost, limits).decide(snapshot)`` is pure: the same snapshot gives the same decision.
The work is done by kernel/search.py in one compiled call. Where numba is missing the readable
emulator is asked about a much smaller grid, and the log says so once.

Which point wins, in this order:
1. it keeps every request's SLO, margins included; if no point does, the least violation (sum
   over requests of what is missing, in shares of the SLO, TBT before TTFT by ``Policy``);
2. the least energy over equal work.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from beam_runtime.emulator.composer import prefill_pending
from beam_runtime.emulator.forecast import LOOKAHEAD_MS, forecast
from beam_runtime.emulator.steady import PACE_SHARES, EqualWork, equal_work, everyone
from beam_runtime.search.reasons import Found, Tried, decision
from beam_runtime.table.idle_power import with_idle_power
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import (
    SAME_MS,
    Decision,
    EngineLimits,
    Forecast,
    Knobs,
    RequestState,
    Rules,
    Snapshot,
    StepShape,
)

if TYPE_CHECKING:
    from beam_runtime.kernel.searcher import Searcher

_LOG = logging.getLogger("beam_runtime")


@dataclass(frozen=True, slots=True)
class Policy:
    """What a user may want otherwise.

    Attributes:
        lookahead_ms: the horizon is at least this long.
        dwell_ms: a clock stays at least this long, unless an SLO needs another one.
        switch_j: what a clock change must save to be worth it.
        ttft_weight: how much a missed TTFT counts where nothing keeps all SLOs.
        tbt_weight: the same for TBT.
        chunk_tokens: the chunk sizes to choose from; the table's staircase edges by default.
        most_chunks: of those edges, how many.
        least_microbatches: decodes are split at least so far, if the pipeline is that deep.
        seats: share of max_num_seqs above which nothing is paced: paced requests stay longer, so
            more of them run at one time (Little's law), and those to come need a seat as well.
        first_token_ms: how soon whoever comes to an empty engine must have a first token.
    """

    lookahead_ms: float = LOOKAHEAD_MS
    dwell_ms: float = 100.0
    switch_j: float = 0.5
    ttft_weight: float = 1.0
    tbt_weight: float = 4.0
    chunk_tokens: tuple[int, ...] = ()
    most_chunks: int = 12
    least_microbatches: int = 1
    seats: float = 0.75
    first_token_ms: float = 1000.0


class Search:
    """Finds knobs for one engine with one table; one thread at a time.

    Args:
        cost: step costs; their clocks are the candidates.
        limits: of the engine.
        rules: the composer's rules, all of them by default. With ``ride_along`` off microbatches
            matter during a prefill, too; they are still chosen by what follows it.
        policy: horizon, dwell, weights.
        idle_power_w: a waiting stage's GPUs together, where the table does not know it.
        compiled: False to use the readable emulator even where numba is there.
    """

    def __init__(
        self,
        cost: StepCost,
        limits: EngineLimits,
        *,
        rules: Rules | None = None,
        policy: Policy | None = None,
        idle_power_w: float | None = None,
        compiled: bool = True,
    ) -> None:
        self.cost = with_idle_power(cost, idle_power_w)
        self.limits = limits
        self.rules = rules or Rules()
        self.policy = policy or Policy()
        self.chunks = self.policy.chunk_tokens or chunk_candidates(
            cost, limits, self.rules, self.policy.most_chunks
        )
        self._least_microbatches = min(self.policy.least_microbatches, limits.pp)
        self._searcher = self._compile() if compiled else None

    def _compile(self) -> "Searcher | None":
        if find_spec("numba") is None:
            _LOG.warning("numba is not installed: the readable emulator searches a smaller grid")
            return None
        from beam_runtime.kernel.searcher import Searcher

        policy = self.policy
        searcher = Searcher(
            self.cost,
            self.limits,
            self.rules,
            self.chunks,
            PACE_SHARES,
            policy.lookahead_ms,
            policy.switch_j,
            (policy.ttft_weight, policy.tbt_weight),
            self._least_microbatches,
        )
        # Compiled here, so that no request ever waits for it.
        searcher.search(warm_up(self.limits, self.chunks[-1], int(self.cost.clocks_mhz[-1])))
        return searcher

    def __call__(self, state: Snapshot) -> Decision:
        """The knobs to use from now on, with a forecast and the reasons."""
        if not state.running and not state.waiting:
            return self._rest(state)
        asked_mhz = state.knobs.clock_mhz
        dwelling = state.now_ms - state.clock_since_ms < self.policy.dwell_ms
        if dwelling and asked_mhz in self.cost.clocks_mhz:
            found = self._find(state, asked_mhz)
            if found.violation == 0.0:
                note = "; its clock has not dwelt long enough to change"
                return decision(self._seated(found, state), state, note=note)
        return decision(self._seated(self._find(state, None), state), state)

    decide = __call__

    def _seated(self, found: Found, state: Snapshot) -> Found:
        """Unpaced, where seats grow few."""
        taken = len(state.running) / self.limits.max_num_seqs
        if taken <= self.policy.seats or not found.knobs.pace_ms:
            return found
        knobs = replace(found.knobs, pace_ms=0.0)
        unpaced = self.forecast(state, knobs)
        return replace(found, knobs=knobs, forecast=unpaced, energy_j=unpaced.energy_j)

    def _find(self, state: Snapshot, only_mhz: int | None) -> Found:
        if self._searcher:
            return self._searcher.search(state, only_mhz)
        return self._read(state, only_mhz)

    def _read(self, state: Snapshot, only_mhz: int | None) -> Found:
        """The smaller search of the readable emulator: a coarse grid, each point played."""
        policy, tbt_ms = self.policy, everyone(state).tbt_ms
        prices = equal_work(state, self.cost, self.rules, policy.lookahead_ms)
        clocks = _thinned(self.cost.clocks_mhz.tolist(), 4) if only_mhz is None else [only_mhz]
        chunks, paces = [state.knobs.chunk_tokens], [0.0, tbt_ms]
        if prefill_pending(state):
            chunks, paces = _thinned(self.chunks, 3), [tbt_ms]
        played, m = [], self._least_microbatches
        for knobs in (Knobs(f, c, m, p) for f in clocks for c in chunks for p in paces):
            one = self.forecast(state, knobs, prices)
            switch_j = policy.switch_j * (knobs.clock_mhz != state.knobs.clock_mhz)
            missed = policy.ttft_weight * one.ttft_violation + policy.tbt_weight * one.tbt_violation
            violation = 0.0 if one.feasible else missed
            played.append((violation, one.energy_j + switch_j, knobs, one))
        violation, energy_j, knobs, best = min(played, key=lambda p: p[:2])
        tried = tuple(
            Tried(
                k, joules, one.ttft_excess_ms, one.tbt_excess_ms,
                one.tbt_worst if one.tbt_excess_ms > SAME_MS else one.ttft_worst,
            )
            for _, joules, k, one in played
        )  # fmt: skip
        return Found(knobs, best, energy_j, violation, tried)

    def _rest(self, state: Snapshot) -> Decision:
        """Nobody is there: the clock that idles cheapest among those a prompt could start at.

        It can be left in time if a whole chunk, started at it while the clock changes, leaves
        room in ``Policy.first_token_ms``.
        """
        chunk = StepShape(prefill_tokens=self.chunks[-1])
        first_ms = self.limits.clock_delay_ms + self.limits.pp * (
            self.cost.latency_ms(chunk) * state.correction.prefill_scale + self.limits.host_gap_ms
        )
        in_time = first_ms <= self.policy.first_token_ms - state.correction.ttft_margin_ms
        in_time[-1] = True
        watts = np.where(in_time, self.cost.idle_power_w, np.inf)
        clock = int(np.argmin(watts))
        idle_j = float(watts[clock]) * self.limits.pp * self.policy.lookahead_ms / 1e3
        knobs = replace(state.knobs, clock_mhz=int(self.cost.clocks_mhz[clock]))
        rest = Forecast(
            ttft_ms={},
            worst_tbt_ms={},
            ttft_excess_ms=-math.inf,
            tbt_excess_ms=-math.inf,
            ttft_worst=None,
            tbt_worst=None,
            ttft_violation=0.0,
            tbt_violation=0.0,
            horizon_ms=self.policy.lookahead_ms,
            active_energy_j=0.0,
            idle_energy_j=idle_j,
        )
        why = (
            f"no requests: {knobs.clock_mhz} MHz idles at {watts[clock]:.0f} W per stage, the least"
        )
        return Decision(knobs, rest, why, (), state.now_ms)

    def survey(self, state: Snapshot) -> Iterator[tuple[Knobs, Forecast]]:
        """Every candidate with its forecast: for pictures and checks, not for serving."""
        prices = None if self._searcher else equal_work(
            state, self.cost, self.rules, self.policy.lookahead_ms
        )  # fmt: skip
        tbt_ms = everyone(state).tbt_ms
        for clock_mhz in self.cost.clocks_mhz.tolist():
            for chunk in self.chunks:
                for microbatches in range(self._least_microbatches, self.limits.pp + 1):
                    for share in PACE_SHARES:
                        knobs = Knobs(clock_mhz, chunk, microbatches, share * tbt_ms)
                        yield knobs, self.forecast(state, knobs, prices)

    def forecast(self, state: Snapshot, knobs: Knobs, prices: EqualWork | None = None) -> Forecast:
        """What to expect of these knobs."""
        if self._searcher:
            return self._searcher.forecast(state, knobs)
        return forecast(
            state, knobs, self.cost, rules=self.rules,
            lookahead_ms=self.policy.lookahead_ms, prices=prices,
        )  # fmt: skip


def chunk_candidates(
    cost: StepCost, limits: EngineLimits, rules: Rules, most: int
) -> tuple[int, ...]:
    """Chunk sizes on the edges of the table's staircase, where a token costs least.

    The edge just behind a step is never worth it: those where a token costs more energy than at
    the edge before are left out, at the middle clock. If too many remain, they are thinned
    evenly.
    """
    largest = limits.max_batched_tokens
    edges = [int(e) for e in cost.edges_tokens if rules.min_chunk_tokens * 2 <= e <= largest]
    middle = len(cost.clocks_mhz) // 2

    def token_j(tokens: int) -> float:
        return float(cost.energy_j(StepShape(prefill_tokens=tokens))[middle]) / tokens

    kept = [e for before, e in pairwise([0, *edges]) if not before or token_j(e) <= token_j(before)]
    if not kept or kept[-1] != largest:
        kept.append(largest)
    return tuple(_thinned(kept, most))


def _thinned(values: Sequence[int], most: int) -> list[int]:
    """At most so many of them, evenly, with the first and the last."""
    if len(values) <= most:
        return list(values)
    return [values[i] for i in np.linspace(0, len(values) - 1, most).round().astype(int)]


def warm_up(limits: EngineLimits, chunk_tokens: int, clock_mhz: int) -> Snapshot:
    """A small state that makes the compiler see everything once."""
    prompt = RequestState("waiting", 8, 0.0)
    decode = RequestState("running", 8, 0.0, computed_tokens=8, generated_tokens=1)
    return Snapshot(0.0, limits, Knobs(clock_mhz, chunk_tokens), (decode,), (prompt,))
