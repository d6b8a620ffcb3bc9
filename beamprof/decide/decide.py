"""`beam decide`: what the controller would do in a given state, and what else it could have done.

The same search and the same emulator as in serving; besides the decision, every point of the
search space is played, so that the picture is what is, and not what was looked at.
"""

import math
import time
from dataclasses import dataclass, replace
from typing import Self

from beam_runtime.search.explain import describe_state
from beam_runtime.search.search import Search
from beam_runtime.search.slowdown import out_of_reach
from beam_runtime.search.stance import stance_for
from beam_runtime.table.idle_power import with_idle_power
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.smoothing import smoothed
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import SAME_MS, EngineLimits, Forecast, Knobs, Slo, Snapshot, StreamKind
from beamprof.decide.bounds import DEFAULT_CHUNK_TOKENS
from beamprof.decide.engine_state import StateSpec
from beamprof.slo import limit_words
from beamprof.units import format_ms

_REPEATS = 20
_SAME_SHARE = 1e-3


@dataclass(frozen=True, slots=True)
class Point:
    """One setting of the knobs, played.

    Attributes:
        knobs: the setting.
        energy_j: of the replica over equal work: what settings are compared by.
        over_best: energy over the chosen one's, as a share of it.
        ttft_ms: the worst predicted TTFT among the waiting; None where nobody waits or a
            request is blocked.
        tbt_ms: the worst predicted gap among the running; None where there is none.
        ttft_excess_ms: TTFT + margin - SLO of whom it is worst for; None likewise.
        tbt_excess_ms: the same for TBT.
        slo_used: the larger share of TTFT and TBT SLO that is used, margin included.
        lost: requests that would miss their SLO, margins not counted.
        verdict: empty where every SLO is kept with its margin, else which is not, by how much
            and whose.
    """

    knobs: Knobs
    energy_j: float
    over_best: float
    ttft_ms: float | None
    tbt_ms: float | None
    ttft_excess_ms: float | None
    tbt_excess_ms: float | None
    slo_used: float
    lost: int
    verdict: str

    @property
    def feasible(self) -> bool:
        """Whether every SLO is kept, margins included."""
        return not self.verdict


@dataclass(frozen=True, slots=True)
class Space:
    """The search space, clock against chunk.

    Attributes:
        clocks_mhz: ascending.
        chunks: ascending, tokens.
        best: for each clock and chunk (clocks first) the best of all microbatches and paces;
            None where limits leave none.
    """

    clocks_mhz: tuple[int, ...]
    chunks: tuple[int, ...]
    best: tuple[tuple[Point | None, ...], ...]


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens computed within a forecast's horizon, and the joules for one.

    Attributes:
        prompt_tokens: of prompts.
        output_tokens: of answers.
        energy_per_token_j: all energy of the horizon, idle power included, over both; None
            where no token is computed.
    """

    prompt_tokens: float
    output_tokens: float
    energy_per_token_j: float | None

    @classmethod
    def of(cls, forecast: Forecast) -> Self:
        """The part of a forecast."""
        return cls(forecast.prompt_tokens, forecast.output_tokens, forecast.energy_per_token_j)


@dataclass(frozen=True, slots=True)
class Answer:
    """What `beam decide` says.

    Attributes:
        table: whose costs: model, tp, pp, device, source.
        state: in words.
        slo: the default one.
        chosen: the decision.
        verdict: of the chosen one: what is kept, or whether any setting could keep it.
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
    table: PerfTable,
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
    """
    slo, limits = slo or Slo(), limits or limits_of(table)
    notes: list[str] = []
    cost = with_idle_power(smoothed(StepCost.from_table(table)), idle_power_w, notes.append)
    state = spec.snapshot(limits, slo, int(cost.clocks_mhz[-1]))
    promises = [one.slo for one in (*state.waiting, *state.running)]
    stance = stance_for(cost, limits, slo, promises)
    if floor := out_of_reach(cost, limits, slo):
        notes.append(floor)
    search = Search(cost, limits, rules=stance.rules, policy=stance.policy)
    state = replace(state, correction=stance.floor)
    decision = search(state)
    switch_j = stance.policy.switch_j
    best_j = _compared_j(decision.knobs, decision.forecast, state, switch_j)
    chosen = _point(decision.knobs, decision.forecast, state, switch_j, best_j)
    points = [_point(knobs, one, state, switch_j, best_j) for knobs, one in search.survey(state)]
    return Answer(
        table=f"{table.model} tp{table.tp} pp{table.pp} on {table.device}, "
        f"{' and '.join(table.sources)}",
        state=describe_state(state),
        slo=slo,
        chosen=chosen,
        verdict=verdict(chosen, points, stance.hopeless),
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


def cheaper_and_refused(points: list[Point], chosen: Point) -> tuple[Point, ...]:
    """Of each clock the cheapest setting that costs less and misses an SLO."""
    cheapest: dict[int, Point] = {}
    for point in sorted(points, key=lambda one: one.energy_j):
        if not point.feasible and point.energy_j < chosen.energy_j:
            cheapest.setdefault(point.knobs.clock_mhz, point)
    return tuple(cheapest.values())


def frontier(points: list[Point]) -> tuple[Point, ...]:
    """Feasible settings, cheapest first, each using less of the SLOs than all before it."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda one: (one.energy_j, one.slo_used)):
        if point.feasible and (not kept or point.slo_used < kept[-1].slo_used - _SAME_SHARE):
            kept.append(point)
    return tuple(kept)


def space(points: list[Point]) -> Space:
    """The best point of each clock and chunk: feasible before not, then least energy."""
    best: dict[tuple[int, int], Point] = {}
    for point in points:
        key = (point.knobs.clock_mhz, point.knobs.chunk_tokens)
        if key not in best or _order(point) < _order(best[key]):
            best[key] = point
    clocks = tuple(sorted({clock for clock, _ in best}))
    chunks = tuple(sorted({chunk for _, chunk in best}))
    return Space(
        clocks,
        chunks,
        tuple(tuple(best.get((clock, chunk)) for chunk in chunks) for clock in clocks),
    )


def _order(point: Point) -> tuple[bool, float]:
    return (not point.feasible, point.energy_j if point.feasible else point.slo_used)


def _compared_j(knobs: Knobs, forecast: Forecast, state: Snapshot, switch_j: float) -> float:
    """What the search compares by: the same work, and what a clock change has to save."""
    changes = knobs.clock_mhz != state.knobs.clock_mhz
    return forecast.energy_j + (switch_j if changes else 0.0)


def _point(
    knobs: Knobs, forecast: Forecast, state: Snapshot, switch_j: float, best_j: float
) -> Point:
    slos = {r.request_id: r.slo for r in (*state.running, *state.waiting)}
    # A request whose first token lies beyond the horizon has no gap yet.
    gaps = {name: gap for name, gap in forecast.worst_tbt_ms.items() if gap > 0.0}
    tbt_ms = max(gaps.values(), default=None)
    ttft_excess_ms = _known(forecast.ttft_excess_ms)
    tbt_excess_ms = None if tbt_ms is None else _known(forecast.tbt_excess_ms)
    used = []
    if ttft_excess_ms is not None and forecast.ttft_worst is not None:
        used.append(1.0 + ttft_excess_ms / slos[forecast.ttft_worst].ttft_ms)
    if tbt_excess_ms is not None and forecast.tbt_worst is not None:
        used.append(1.0 + tbt_excess_ms / slos[forecast.tbt_worst].token_ms)
    energy_j = _compared_j(knobs, forecast, state, switch_j)
    return Point(
        knobs=knobs,
        energy_j=energy_j,
        over_best=(energy_j - best_j) / abs(best_j) if best_j else 0.0,
        ttft_ms=_known(max(forecast.ttft_ms.values(), default=math.inf)),
        tbt_ms=tbt_ms,
        ttft_excess_ms=ttft_excess_ms,
        tbt_excess_ms=tbt_excess_ms,
        slo_used=max(used, default=0.0),
        lost=_lost(forecast, state),
        verdict=_verdict(forecast, state),
    )


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def verdict(chosen: Point, points: list[Point], hopeless: str = "") -> str:
    """What is kept, from what was played: the chosen point and all others.

    Args:
        chosen: the decision.
        points: every setting.
        hopeless: why the SLO is out of reach in any state; empty where it is not.
    """
    if chosen.feasible:
        return "keeps every SLO"
    keeping = [point for point in points if point.feasible]
    if keeping:  # the search looks at a part of them
        least = min(keeping, key=lambda one: one.energy_j)
        return (
            f"misses {chosen.verdict}, though {len(keeping):,} of {len(points):,} settings keep "
            f"every SLO, first {least.knobs.clock_mhz} MHz, chunk {least.knobs.chunk_tokens:,}"
        )
    if hopeless:
        return f"no setting keeps this SLO: {hopeless}"
    if chosen.lost == 0:
        return (
            f"keeps every SLO, but no setting of {len(points):,} keeps the margins too: "
            f"{chosen.verdict}"
        )
    one = f"{chosen.lost} request{'s' if chosen.lost > 1 else ''}"
    return (
        f"no setting of {len(points):,} keeps every SLO in this state; this one loses {one}: "
        f"{chosen.verdict}"
    )


def _lost(forecast: Forecast, state: Snapshot) -> int:
    """Requests late by the forecast itself, margins not counted.

    Of promises that are none of gaps a forecast names the worst alone.
    """
    if forecast.feasible:
        return 0
    slos = {one.request_id: one.slo for one in (*state.running, *state.waiting)}
    late = {name for name, ms in forecast.ttft_ms.items() if ms > slos[name].ttft_ms + SAME_MS}
    late |= {
        name
        for name, ms in forecast.worst_tbt_ms.items()
        if slos[name].kind is StreamKind.GAP and ms > slos[name].token_ms + SAME_MS
    }
    worst = forecast.tbt_worst
    if worst is not None and slos[worst].kind is not StreamKind.GAP:
        late |= {worst} if _over_ms(forecast, state)["TBT"] > SAME_MS else set()
    return len(late)


def _over_ms(forecast: Forecast, state: Snapshot) -> dict[str, float]:
    """How far TTFT and TBT are over their SLOs at worst, margins not counted."""
    margin = state.correction
    slos = {one.request_id: one.slo.ttft_ms for one in (*state.waiting, *state.running)}
    worst_ms = slos.get(forecast.ttft_worst or "", math.inf)
    return {
        "TTFT": forecast.ttft_excess_ms - margin.first_margin_ms(worst_ms),
        "TBT": forecast.tbt_excess_ms - margin.tbt_margin_ms,
    }


def _verdict(forecast: Forecast, state: Snapshot) -> str:
    slos = {one.request_id: one.slo for one in (*state.running, *state.waiting)}
    over_ms = _over_ms(forecast, state)
    missed = []
    for name, excess_ms, whose in (
        ("TTFT", forecast.ttft_excess_ms, forecast.ttft_worst),
        ("TBT", forecast.tbt_excess_ms, forecast.tbt_worst),
    ):
        if excess_ms <= SAME_MS or whose is None:
            continue
        kind = slos[whose].kind
        said = name if name == "TTFT" or kind is StreamKind.GAP else kind.upper()
        if not math.isfinite(excess_ms):
            missed.append(f"{said} not before another request ends ({whose})")
        elif over_ms[name] > SAME_MS:
            missed.append(f"{said} {format_ms(over_ms[name])} over ({whose})")
        else:
            missed.append(f"{said} {format_ms(excess_ms)} into its margin ({whose})")
    return ", ".join(missed)


def _median_us(search: Search, state: Snapshot) -> float:
    times = []
    for _ in range(_REPEATS):
        begin = time.perf_counter()
        search(state)
        times.append(time.perf_counter() - begin)
    return sorted(times)[_REPEATS // 2] * 1e6
