"""How large a share came later than any moment: the distribution, read where promises break.

A cumulative curve hides 99.9 % against 99.5 %; its complement on a logarithmic axis does not.
Where a curve crosses the SLO stands the share that broke it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from beamprof.report.html.number_words import axis_ms, axis_percent
from beamprof.report.html.scale import Log
from beamprof.report.html.svg import NARROW_PX, Plot

HEIGHT_PX = 300
_POINTS = 260
_LEAST_SHARE = 1e-5
_LETTER_PX, _LINE_PX = 7.6, 15  # bold


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
    for sample, place in zip(samples, _places(samples, curves, plot, slo_ms), strict=True):
        plot.text(
            place.x, place.y, sample.name, f"name {place.side} {sample.css}",
            dx_px=place.dx_px, dy_px=place.dy_px,
        )  # fmt: skip
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
    at = np.unique(np.searchsorted(-later, -wanted).clip(0, len(later) - 1))
    points = zip(sample.values_ms[at].tolist(), later[at].tolist(), strict=True)
    return [(float(sample.values_ms[0]), 1.0), *points]


@dataclass(frozen=True, slots=True)
class _Place:
    x: float
    y: float
    side: str
    dx_px: float
    dy_px: float

    def box(self, plot: Plot, letters: int) -> tuple[float, float, float, float]:
        """(left, right, top, bottom) in pixels of the narrowest plot."""
        x = NARROW_PX * plot.x.share(self.x) + self.dx_px
        y = HEIGHT_PX * (1 - plot.y.share(self.y)) + self.dy_px
        width = _LETTER_PX * letters
        left = x if self.side == "start" else x - width
        return left, left + width, y - _LINE_PX + 3, y + 3


def _places(
    samples: Sequence[Sample],
    curves: Sequence[Sequence[tuple[float, float]]],
    plot: Plot,
    slo_ms: float,
) -> list[_Place]:
    """Where each name stands: beside its own curve, off the others, off names before it."""
    dots = [_dense(points, plot) for points in curves]
    slo_px = NARROW_PX * plot.x.share(slo_ms)
    wall = np.array([(slo_px, float(y)) for y in range(0, HEIGHT_PX, 4)])
    taken: list[tuple[float, float, float, float]] = []
    places = []
    for at, (sample, points) in enumerate(zip(samples, curves, strict=True)):
        best, least = None, math.inf
        own = dots[at]
        others = np.concatenate([*(one for i, one in enumerate(dots) if i != at), wall])
        for x, y in points[:: max(1, len(points) // 90)]:
            for side, dx in (("start", 7.0), ("end", -7.0)):
                for dy in (-4.0, 4.0, 12.0):
                    place = _Place(x, y, side, dx, dy)
                    cost = _cost(place.box(plot, len(sample.name)), own, others, taken)
                    if cost < least:
                        best, least = place, cost
        place_found = best or _Place(*points[-1], "start", 7.0, -4.0)
        taken.append(place_found.box(plot, len(sample.name)))
        places.append(place_found)
    return places


def _dense(points: Sequence[tuple[float, float]], plot: Plot) -> NDArray[np.float64]:
    """Pixels on the curve's steps, a few apart."""
    px = np.array([(NARROW_PX * plot.x.share(x), HEIGHT_PX * (1 - plot.y.share(y)))
                   for x, y in points])  # fmt: skip
    corners = np.empty((2 * len(px) - 1, 2))
    corners[::2] = px
    corners[1::2, 0], corners[1::2, 1] = px[1:, 0], px[:-1, 1]
    parts = []
    for (x0, y0), (x1, y1) in pairwise(corners.tolist()):
        n = max(1, int(max(abs(x1 - x0), abs(y1 - y0)) / 3))
        parts.append(np.column_stack([np.linspace(x0, x1, n), np.linspace(y0, y1, n)]))
    return np.concatenate(parts)


def _cost(
    box: tuple[float, float, float, float],
    own: NDArray[np.float64],
    others: NDArray[np.float64],
    taken: Sequence[tuple[float, float, float, float]],
) -> float:
    left, right, top, bottom = box
    if left < 2 or right > NARROW_PX - 2 or top < 12 or bottom > HEIGHT_PX - 2:
        return math.inf
    if any(left < r and le < right and top < b and t < bottom for le, r, t, b in taken):
        return math.inf

    def inside(dots: NDArray[np.float64], slack: float) -> int:
        x, y = dots[:, 0], dots[:, 1]
        hit = (x > left - slack) & (x < right + slack) & (y > top - slack) & (y < bottom + slack)
        return int(hit.sum())

    # A name may not lie on a line; better than near others is further away from them.
    return 100.0 * inside(others, 1.0) + 40.0 * inside(own, 0.0) + inside(others, 9.0)
