"""What a setting keeps and what it misses, in words and in numbers of requests."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from beam_runtime.types import SAME_MS, Forecast, Snapshot, StreamKind
from beamprof.units import format_ms

if TYPE_CHECKING:
    from beamprof.decide.points import Point

_NONE_LATE: Mapping[str, float] = {}


def late_already(state: Snapshot) -> dict[str, float]:
    """Requests whose first token is late whatever is decided, and by how many ms already."""
    over_ms = {
        one.request_id: state.now_ms - one.arrival_ms - one.slo.ttft_ms for one in state.waiting
    }
    return {name: ms for name, ms in over_ms.items() if ms > SAME_MS}


def verdict(
    chosen: "Point",
    points: Sequence["Point"],
    hopeless: str = "",
    late: Mapping[str, float] = _NONE_LATE,
) -> str:
    """What is kept, from what was played: the chosen point and all others.

    Args:
        chosen: the decision.
        points: every setting.
        hopeless: why the SLO is out of reach in any state; empty where it is not.
        late: requests whose first token is late whatever is decided, and by how many ms.
    """
    every = "every SLO that can still be kept" if late else "every SLO"
    said = _of_the_rest(chosen, points, hopeless, every, chosen.lost - len(late))
    if not late:
        return said
    worst = max(late, key=lambda name: late[name])
    whose = "1 request" if len(late) == 1 else f"{len(late):,} requests"
    return f"{said}; TTFT of {whose} is over already, by {format_ms(late[worst])} ({worst})"


def _of_the_rest(
    chosen: "Point", points: Sequence["Point"], hopeless: str, every: str, losing: int
) -> str:
    if chosen.feasible:
        return f"keeps {every}"
    keeping = [point for point in points if point.feasible]
    if keeping:  # the search looks at a part of them
        least = min(keeping, key=lambda one: one.energy_j)
        return (
            f"misses {chosen.verdict}, though {len(keeping):,} of {len(points):,} settings keep "
            f"{every}, first {least.knobs.clock_mhz} MHz, chunk {least.knobs.chunk_tokens:,}"
        )
    if hopeless:
        return f"no setting keeps this SLO: {hopeless}"
    if losing == 0 and " over (" not in chosen.verdict:
        return (
            f"keeps {every}, but no setting of {len(points):,} keeps the margins too: "
            f"{chosen.verdict}"
        )
    one = "1 request" if losing <= 1 else f"{losing} requests"
    return (
        f"no setting of {len(points):,} keeps {every} in this state; this one loses {one}: "
        f"{chosen.verdict}"
    )


def lost(forecast: Forecast, state: Snapshot) -> int:
    """Requests late by the forecast itself, margins not counted.

    Of promises that are none of gaps a forecast names the worst alone.
    """
    if forecast.feasible:
        return len(late_already(state))
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


def missed(forecast: Forecast, state: Snapshot) -> str:
    """Which SLO is missed, margins included, by how much and whose; empty where none is."""
    slos = {one.request_id: one.slo for one in (*state.running, *state.waiting)}
    over_ms = _over_ms(forecast, state)
    found = []
    for name, excess_ms, whose in (
        ("TTFT", forecast.ttft_excess_ms, forecast.ttft_worst),
        ("TBT", forecast.tbt_excess_ms, forecast.tbt_worst),
    ):
        if excess_ms <= SAME_MS or whose is None:
            continue
        kind = slos[whose].kind
        said = name if name == "TTFT" or kind is StreamKind.GAP else kind.upper()
        if not math.isfinite(excess_ms):
            found.append(f"{said} not before another request ends ({whose})")
        elif over_ms[name] > SAME_MS:
            found.append(f"{said} {format_ms(over_ms[name])} over ({whose})")
        else:
            found.append(f"{said} {format_ms(excess_ms)} into its margin ({whose})")
    return ", ".join(found)
