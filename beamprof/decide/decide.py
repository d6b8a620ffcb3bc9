"""`beam decide`: what the controller would do in a given state, and what else it could have done.

The same search and the same emulator as in serving; besides the decision, every point of the
search space is played, so that the picture is what is, and not what was looked at.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from beam_runtime.search.explain import describe_state
from beam_runtime.search.search import Search
from beam_runtime.search.slowdown import out_of_reach
from beam_runtime.search.stance import stance_for
from beam_runtime.table.idle_power import with_idle_power
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.smoothing import smoothed
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import EngineLimits, Slo, Snapshot
from beamprof.decide.bounds import DEFAULT_CHUNK_TOKENS, check_state, too_long
from beamprof.decide.engine_state import StateSpec
from beamprof.decide.points import (
    Point,
    Space,
    Work,
    cheaper_and_refused,
    compared_j,
    frontier,
    point,
    space,
)
from beamprof.decide.verdict import late_already, verdict
from beamprof.slo import limit_words

_REPEATS = 20


@dataclass(frozen=True, slots=True)
class Answer:
    """What `beam decide` says.

    Attributes:
        table: whose costs: model, tp, pp, device, source.
        state: in words.
        slo: the default one.
        chosen: the decision.
        verdict: of the chosen one: what is kept, or whether any setting could keep it.
        late: requests whose first token is late whatever is decided.
        requests: in the state.
        why: one sentence.
        active_energy_j: passes of all stages within the horizon.
        idle_energy_j: all GPU-time no pass covers.
        horizon_ms: how far the emulator played.
        work: tokens within the horizon and joules for one.
        cheaper: settings of less energy that were refused, the cheapest first, one per clock.
        frontier: settings that keep every SLO and that no other beats both in energy and in slack.
        space: all of it.
        settings: points in the space, of those that limits allow.
        limits: on saving, in words; empty without.
        search_us: median time of the decision.
        notes: what had to be assumed.
    """

    table: str
    state: str
    slo: Slo
    chosen: Point
    verdict: str
    late: tuple[str, ...]
    requests: int
    why: str
    active_energy_j: float
    idle_energy_j: float
    horizon_ms: float
    work: Work
    cheaper: tuple[Point, ...]
    frontier: tuple[Point, ...]
    space: Space
    settings: int
    search_us: float
    notes: tuple[str, ...] = ()
    limits: str = ""

    @property
    def feasible(self) -> bool:
        """Whether every SLO is kept, margins included."""
        return self.chosen.feasible and not self.late


def limits_of(
    table: PerfTable,
    *,
    max_chunk_tokens: int | None = None,
    host_gap_ms: float | None = None,
    max_num_seqs: int = 256,
) -> EngineLimits:
    """The engine that a table was made for.

    Args:
        table: tells the stages and, where it knows, host gap and transfer.
        max_chunk_tokens: the largest step the engine was started for; DEFAULT_CHUNK_TOKENS if None.
        host_gap_ms: over the table's.
        max_num_seqs: requests that may run together.
    """
    return EngineLimits(
        pp=table.pp,
        max_num_seqs=max_num_seqs,
        max_batched_tokens=max_chunk_tokens or DEFAULT_CHUNK_TOKENS,
        host_gap_ms=table.host_gap_ms if host_gap_ms is None else host_gap_ms,
        transfer_ms=table.stage_transfer_ms,
    )


def decide(
    table: PerfTable | str | Path,
    spec: StateSpec,
    *,
    slo: Slo | None = None,
    limits: EngineLimits | None = None,
    idle_power_w: float | None = None,
) -> Answer:
    """Decide for one state, and look at everything else as well.

    Args:
        table: what steps cost.
        spec: the engine's state; its clock is the highest where it does not tell.
        slo: for requests that make no promise of their own.
        limits: of the engine; limits_of(table) by default.
        idle_power_w: a waiting stage's GPUs together, where the table does not say.

    Raises:
        TableError: the table cannot be used.
        StateError: no engine of such a table can be in that state.
    """
    table = PerfTable.of(table)
    slo, limits = slo or Slo(), limits or limits_of(table)
    check_state(table, spec, limits)
    notes = too_long(table, spec)
    fitted = StepCost.from_table(table)
    if idle_power_w is not None and np.isfinite(fitted.idle_power_w).all():
        notes.append("the table says what a waiting GPU draws: --idle-power is not used")
    cost = with_idle_power(smoothed(fitted), idle_power_w, notes.append)
    state = spec.snapshot(limits, slo, int(cost.clocks_mhz[-1]))
    promises = [one.slo for one in (*state.waiting, *state.running)]
    stance = stance_for(cost, limits, slo, promises)
    if floor := out_of_reach(cost, limits, slo):
        notes.append(floor)
    search = Search(cost, limits, rules=stance.rules, policy=stance.policy)
    state = replace(state, correction=stance.floor)
    decision = search(state)
    switch_j = stance.policy.switch_j
    best_j = compared_j(decision.knobs, decision.forecast, state, switch_j)
    late = late_already(state)
    chosen = point(decision.knobs, decision.forecast, state, switch_j, best_j, late)
    survey = search.survey(state)
    points = [point(knobs, one, state, switch_j, best_j, late) for knobs, one in survey]
    return Answer(
        table=f"{table.model} tp{table.tp} pp{table.pp} on {table.device}, "
        f"{' and '.join(table.sources)}",
        state=describe_state(state),
        slo=slo,
        chosen=chosen,
        verdict=verdict(chosen, points, stance.hopeless, late),
        late=tuple(late),
        requests=len(state.running) + len(state.waiting),
        why=decision.why,
        active_energy_j=decision.forecast.active_energy_j,
        idle_energy_j=decision.forecast.idle_energy_j,
        horizon_ms=decision.forecast.horizon_ms,
        work=Work.of(decision.forecast),
        cheaper=cheaper_and_refused(points, chosen),
        frontier=frontier(points),
        space=space(points),
        settings=len(points),
        search_us=_median_us(search, state),
        notes=tuple(notes),
        limits=limit_words(slo),
    )


def _median_us(search: Search, state: Snapshot) -> float:
    times = []
    for _ in range(_REPEATS):
        begin = time.perf_counter()
        search(state)
        times.append(time.perf_counter() - begin)
    return sorted(times)[_REPEATS // 2] * 1e6
