"""From a snapshot to knobs: the one joint search over clock, chunk, microbatches and pace.

``Search(cost, limits).decide(snapshot)`` is pure: the same snapshot gives the same decision.
The work is done by best.py in one compiled call.

Which point wins, in this order:
1. the most requests keep every promise they still have, margins included (goodput);
2. the least energy over equal work. A promise that is broken already, or that no point keeps,
   buys nothing.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np

from beam_runtime.emulator.moment import Moment
from beam_runtime.emulator.steady import PACE_SHARES
from beam_runtime.search.chunks import chunk_candidates
from beam_runtime.search.policy import Policy
from beam_runtime.search.reasons import Found, decision
from beam_runtime.search.searcher import BacklogError, Searcher
from beam_runtime.table.idle_power import with_idle_power
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import (
    Decision,
    EngineLimits,
    Forecast,
    Knobs,
    RequestState,
    Rules,
    Snapshot,
    StepShape,
)


class Search:
    """Finds knobs for one engine with one table; one thread at a time.

    Args:
        cost: step costs; their clocks are the candidates.
        limits: of the engine.
        rules: the composer's rules, all of them by default. With ``ride_along`` off microbatches
            matter during a prefill, too; they are still chosen by what follows it.
        policy: horizon, dwell, weights.
        idle_power_w: a waiting stage's GPUs together, where the table does not know it.
    """

    def __init__(
        self,
        cost: StepCost,
        limits: EngineLimits,
        *,
        rules: Rules | None = None,
        policy: Policy | None = None,
        idle_power_w: float | None = None,
    ) -> None:
        self.cost = with_idle_power(cost, idle_power_w)
        self.limits = limits
        self.rules = rules or Rules()
        self.policy = policy or Policy()
        self.chunks = self.policy.chunk_tokens or chunk_candidates(
            cost, limits, self.rules, self.policy.most_chunks
        )
        self._searcher = Searcher(
            self.cost,
            limits,
            self.rules,
            self.chunks,
            PACE_SHARES,
            self.policy.lookahead_ms,
            self.policy.switch_j,
            self.policy.first_token_ms,
        )
        # Compiled here, so that no request ever waits for it.
        self._searcher.search(warm_up(limits, self.chunks[-1], int(cost.clocks_mhz[-1])))

    def __call__(self, state: Snapshot | Moment) -> Decision:
        """The knobs to use from now on, with a forecast and the reasons."""
        moment = state if isinstance(state, Moment) else Moment.of(state)
        if not moment.requests:
            return self._rest(moment)
        try:
            return self._decide(moment)
        except BacklogError as error:
            return self._fastest(moment, error)

    decide = __call__

    def best_of_all(self, state: Snapshot | Moment) -> Found:
        """The best of every candidate, each of them played: what a search is measured by."""
        return self._searcher.best_of_all(state if isinstance(state, Moment) else Moment.of(state))

    def _decide(self, moment: Moment) -> Decision:
        asked_mhz = moment.knobs.clock_mhz
        dwelling = moment.now_ms - moment.clock_since_ms < self.policy.dwell_ms
        if dwelling and asked_mhz in self.cost.clocks_mhz:
            found = self._searcher.search(moment, asked_mhz)
            if found.violation == 0.0:
                note = "; its clock has not dwelt long enough to change"
                return decision(found, moment.now_ms, note=note)
        found = self._searcher.search(moment)
        return decision(found, moment.now_ms)

    def _fastest(self, moment: Moment, error: BacklogError) -> Decision:
        """Nothing can be foreseen of a backlog so long but that all of it is late."""
        given = moment.state.requests["generated_tokens"][: len(moment.names)]
        waiting = [name for name, tokens in zip(moment.names, given, strict=True) if tokens == 0]
        late = Forecast(
            ttft_ms=dict.fromkeys(waiting, math.inf),
            worst_tbt_ms={},
            ttft_excess_ms=math.inf,
            tbt_excess_ms=-math.inf,
            ttft_worst=waiting[0] if waiting else None,
            tbt_worst=None,
            broken=float(len(waiting)),
            horizon_ms=self.policy.lookahead_ms,
            active_energy_j=0.0,
            idle_energy_j=0.0,
        )
        knobs = Knobs(int(self.cost.clocks_mhz[-1]), self.chunks[-1])
        return Decision(knobs, late, f"{error.cause}: as fast as it goes", (), moment.now_ms)

    def _rest(self, moment: Moment) -> Decision:
        """Nobody is there: the clock that idles cheapest among those a prompt could start at.

        It can be left in time if a whole chunk, started at it while the clock changes, leaves
        room in ``Policy.first_token_ms``.
        """
        chunk = StepShape(prefill_tokens=self.chunks[-1])
        first_ms = self.limits.clock_delay_ms + self.limits.pp * (
            self.cost.latency_ms(chunk) * moment.correction.scale(chunk.prefill_tokens, 0)
            + self.limits.host_gap_ms
        )
        promised_ms = self.policy.first_token_ms
        in_time = first_ms <= promised_ms - moment.correction.first_margin_ms(promised_ms)
        in_time[-1] = True
        watts = np.where(in_time, self.cost.idle_power_w, np.inf)
        clock = int(np.argmin(watts))
        idle_j = float(watts[clock]) * self.limits.pp * self.policy.lookahead_ms / 1e3
        knobs = replace(moment.knobs, clock_mhz=int(self.cost.clocks_mhz[clock]))
        rest = Forecast(
            ttft_ms={},
            worst_tbt_ms={},
            ttft_excess_ms=-math.inf,
            tbt_excess_ms=-math.inf,
            ttft_worst=None,
            tbt_worst=None,
            broken=0.0,
            horizon_ms=self.policy.lookahead_ms,
            active_energy_j=0.0,
            idle_energy_j=idle_j,
        )
        why = (
            f"no requests: {knobs.clock_mhz} MHz idles at {watts[clock]:.0f} W per stage, the least"
        )
        return Decision(knobs, rest, why, (), moment.now_ms)

    def survey(self, state: Snapshot) -> Iterator[tuple[Knobs, Forecast]]:
        """Every candidate that limits allow, with its forecast: for pictures, not for serving."""
        moment = Moment.of(state)
        if moment.requests:
            self._searcher.search(moment)
        microbatches = range(1, self.limits.pp + 1 if self.rules.microbatches else 2)
        for clock, chunk, groups, pace in product(
            range(len(self.cost.clocks_mhz)), range(len(self.chunks)), microbatches,
            range(len(PACE_SHARES)),
        ):  # fmt: skip
            pace_ms = self._searcher.held_ms(moment, clock, chunk, groups, pace)
            if pace_ms is not None:
                clock_mhz = int(self.cost.clocks_mhz[clock])
                knobs = Knobs(clock_mhz, self.chunks[chunk], groups, pace_ms)
                yield knobs, self._searcher.forecast(moment, knobs)

    def forecast(self, state: Snapshot | Moment, knobs: Knobs) -> Forecast:
        """What to expect of these knobs."""
        moment = state if isinstance(state, Moment) else Moment.of(state)
        return self._searcher.forecast(moment, knobs)


def warm_up(limits: EngineLimits, chunk_tokens: int, clock_mhz: int) -> Moment:
    """A small state that makes the compiler see everything once."""
    prompt = RequestState("waiting", 8, 0.0)
    decode = RequestState("running", 8, 0.0, computed_tokens=8, generated_tokens=1)
    return Moment.of(Snapshot(0.0, limits, Knobs(clock_mhz, chunk_tokens), (decode,), (prompt,)))
