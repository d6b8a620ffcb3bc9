"""How large a share came later than any moment: the distribution, read where promises break.

A cumulative curve hides 99.9 % against 99.5 %; its complement on a logarithmic axis does not.
Where a curve crosses the SLO stands the share that broke it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beamprof.report.html.name_places import name_places
from beamprof.report.html.number_words import axis_ms, axis_percent
from beamprof.report.html.scale import Log
from beamprof.report.html.svg import Plot

HEIGHT_PX = 300
_POINTS = 260
_LEAST_SHARE = 1e-5


@dataclass(frozen=True, slots=True)
class Sample:
    """What one policy did.

    Attributes:
        name: the policy.
        css: the class of its colour.
        values_ms: ascending, distinct or not.
        counts: how often each occurred.
    """

    name: str
    css: str
    values_ms: NDArray[np.float64]
    counts: NDArray[np.int64]


def late_shares(samples: Sequence[Sample], slo_ms: float, label: str) -> str:
    """The plot of all samples that hold a value, as SVG; empty where none does.

    Args:
        samples: one curve each.
        slo_ms: the promise; what lies right of it broke it.
        label: what a screen reader says.
    """
    samples = [sample for sample in samples if sample.counts.sum() > 0]
    if not samples:
        return ""
    low_ms = min(_quantile(sample, 0.005) for sample in samples)
    high_ms = max(float(sample.values_ms[-1]) for sample in samples)
    x = Log(max(1.0, min(low_ms, slo_ms / 2)), max(high_ms, slo_ms * 1.5) * 1.05)
    least = min(1 / float(sample.counts.sum()) for sample in samples)
    y = Log(max(_LEAST_SHARE, 10 ** math.floor(math.log10(min(least, 0.01)))), 1.0)
    plot = Plot(x, y, HEIGHT_PX, label)
    plot.band(slo_ms, x.high, "beyond")
    plot.x_axis(6, axis_ms)
    plot.y_axis(y.ticks(7), axis_percent)
    curves = [_late(sample, y.low) for sample in samples]
    for sample, points in zip(samples, curves, strict=True):
        plot.curve(points, f"line {sample.css}", steps=True)
    plot.upright(slo_ms, "slo")
    places = name_places([sample.name for sample in samples], curves, plot, walls=(slo_ms,))
    for sample, place in zip(samples, places, strict=True):
        plot.callout(place.x, place.y, sample.name, sample.css, place.dx_px, place.dy_px)
    plot.text(slo_ms, 1.0, f"SLO {axis_ms(slo_ms)}", "slo name mid", dy_px=-5)
    return plot.markup()


def _quantile(sample: Sample, share: float) -> float:
    reached = np.cumsum(sample.counts)
    return float(sample.values_ms[np.searchsorted(reached, share * reached[-1])])


def _late(sample: Sample, least: float) -> list[tuple[float, float]]:
    """(ms, share that came later), at about _POINTS shares evenly apart on the plot."""
    total = int(sample.counts.sum())
    later = 1.0 - np.cumsum(sample.counts) / total
    wanted = np.geomspace(1.0, max(least, 1 / total), _POINTS)
    # later descends: the first value whose share is at or under the wanted one.
    last = len(later) - 1
    at = np.unique(np.append(np.searchsorted(-later, -wanted).clip(0, last), last))
    at = at[: 1 + int(np.argmax(later[at] <= least))]  # the last is 0: there is one
    points = zip(sample.values_ms[at].tolist(), later[at].tolist(), strict=True)
    return [(float(sample.values_ms[0]), 1.0), *points]
