"""Settings of the knobs as they were played, and which of them are worth showing."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

from beam_runtime.types import Forecast, Knobs, Snapshot
from beamprof.decide.verdict import lost, missed

SAME_SHARE = 1e-3


@dataclass(frozen=True, slots=True)
class Point:
    """One setting of the knobs, played.

    Attributes:
        knobs: the setting.
        energy_j: of the replica over equal work: what settings are compared by.
        over_best: energy over the chosen one's, as a share of it.
        ttft_ms: the worst predicted TTFT among the waiting, of those alone that are late already
            if all are; None where nobody waits or a request is blocked.
        tbt_ms: the worst predicted gap among the running; None where there is none.
        ttft_excess_ms: TTFT + margin - SLO of whom it is worst for, and who can still be in time;
            None where there is none.
        tbt_excess_ms: the same for TBT.
        slo_used: the larger share of TTFT and TBT SLO that is used, margin included.
        lost: requests that would miss their SLO, margins not counted, late ones included.
        verdict: empty where every SLO that can still be kept is, with its margin; else which is
            not, by how much and whose.
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
        """Whether every SLO that can still be kept is, margins included."""
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
        if point.feasible and (not kept or point.slo_used < kept[-1].slo_used - SAME_SHARE):
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


def compared_j(knobs: Knobs, forecast: Forecast, state: Snapshot, switch_j: float) -> float:
    """What the search compares by: the same work, and what a clock change has to save."""
    changes = knobs.clock_mhz != state.knobs.clock_mhz
    return forecast.energy_j + (switch_j if changes else 0.0)


def point(
    knobs: Knobs,
    forecast: Forecast,
    state: Snapshot,
    switch_j: float,
    best_j: float,
    late: Collection[str] = (),
) -> Point:
    """A setting and what is expected of it.

    Args:
        knobs: the setting.
        forecast: what the emulator expects of it.
        state: from where it was played.
        switch_j: what a clock change has to save.
        best_j: the chosen one's compared_j.
        late: requests whose first token was late before anything was decided.
    """
    slos = {r.request_id: r.slo for r in (*state.running, *state.waiting)}
    # A request whose first token lies beyond the horizon has no gap yet.
    gaps = {name: gap for name, gap in forecast.worst_tbt_ms.items() if gap > 0.0}
    tbt_ms = max(gaps.values(), default=None)
    ttft_excess_ms = _known(forecast.ttft_excess_ms)
    tbt_excess_ms = None if tbt_ms is None else _known(forecast.tbt_excess_ms)
    in_time = {name: ms for name, ms in forecast.ttft_ms.items() if name not in late}
    first = in_time or forecast.ttft_ms
    used = []
    if ttft_excess_ms is not None and forecast.ttft_worst is not None:
        used.append(1.0 + ttft_excess_ms / slos[forecast.ttft_worst].ttft_ms)
    if tbt_excess_ms is not None and forecast.tbt_worst is not None:
        used.append(1.0 + tbt_excess_ms / slos[forecast.tbt_worst].token_ms)
    energy_j = compared_j(knobs, forecast, state, switch_j)
    return Point(
        knobs=knobs,
        energy_j=energy_j,
        over_best=(energy_j - best_j) / abs(best_j) if best_j else 0.0,
        ttft_ms=_known(max(first.values(), default=math.inf)),
        tbt_ms=tbt_ms,
        ttft_excess_ms=ttft_excess_ms,
        tbt_excess_ms=tbt_excess_ms,
        slo_used=max(used, default=0.0),
        lost=lost(forecast, state),
        verdict=missed(forecast, state),
    )


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
