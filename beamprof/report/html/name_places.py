"""Where the names of curves stand: beside their own, off the others, off each other.

Places are tried for the narrowest plot; in a wider one everything only moves apart. Where no
room is left beside a curve, its name stands a little away, with a line to it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from beamprof.report.html.svg import BESIDE_PX, NARROW_PX, Plot

_LETTER_PX, _LINE_PX = 7.6, 15  # bold
_TRIED = 90
_BESIDE = tuple((dx, dy) for dx in (7.0, -7.0) for dy in (-4.0, 4.0, 12.0))
_AWAY = tuple((dx, dy) for dx in (20.0, 40.0, -20.0, -40.0) for dy in (-26.0, -14.0, 22.0, 34.0))
# What a place costs: for each few pixels of a line under the name, near it, or crossed on the
# way to it; and for standing away at all.
_OTHER, _OWN, _NEAR, _CROSSED, _ALOOF = 100.0, 40.0, 1.0, 30.0, 40.0

Box = tuple[float, float, float, float]
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Place:
    """A point of the curve, and from there to the name's base line, in pixels."""

    x: float
    y: float
    dx_px: float
    dy_px: float


def name_places(
    names: Sequence[str], curves: Sequence[Points], plot: Plot, walls: Sequence[float]
) -> list[Place]:
    """A place for each name.

    Args:
        names: one for each curve.
        curves: their corners, in the plot's values.
        plot: its scales and height.
        walls: upright lines that no name may lie on, in values of x.
    """
    dots = [_dense(points, plot) for points in curves]
    heights = np.arange(0.0, plot.height_px, 4.0)
    wall = [np.column_stack([np.full(len(heights), NARROW_PX * plot.x.share(one)), heights])
            for one in walls]  # fmt: skip
    taken: list[Box] = []
    places = []
    for at, (name, points) in enumerate(zip(names, curves, strict=True)):
        others = np.concatenate([*(one for i, one in enumerate(dots) if i != at), *wall])
        tried = points[:: max(1, len(points) // _TRIED)]
        best, least = Place(*points[-1], *_BESIDE[0]), math.inf
        for dx, dy in (*_BESIDE, *_AWAY):
            for x, y in tried:
                place = Place(x, y, dx, dy)
                cost = _cost(place, name, plot, dots[at], others, taken, least)
                if cost < least:
                    best, least = place, cost
        taken.append(_box(best, name, plot))
        places.append(best)
    return places


def _at(place: Place, plot: Plot) -> tuple[float, float]:
    return NARROW_PX * plot.x.share(place.x), plot.height_px * (1 - plot.y.share(place.y))


def _box(place: Place, name: str, plot: Plot) -> Box:
    """(left, right, top, bottom)."""
    x, y = _at(place, plot)
    width = _LETTER_PX * len(name)
    left = x + place.dx_px - (width if place.dx_px < 0 else 0.0)
    return left, left + width, y + place.dy_px - _LINE_PX + 3, y + place.dy_px + 3


def _dense(points: Points, plot: Plot) -> NDArray[np.float64]:
    """Pixels on the curve's steps, a few apart."""
    px = [(NARROW_PX * plot.x.share(x), plot.height_px * (1 - plot.y.share(y))) for x, y in points]
    parts = [np.array(px[:1])]
    for (x0, y0), (x1, y1) in pairwise(px):
        for length, line in (
            (abs(x1 - x0), lambda n, x0=x0, x1=x1, y0=y0: (np.linspace(x0, x1, n), np.full(n, y0))),
            (abs(y1 - y0), lambda n, x1=x1, y0=y0, y1=y1: (np.full(n, x1), np.linspace(y0, y1, n))),
        ):
            parts.append(np.column_stack(line(max(1, int(length / 3)))))
    return np.concatenate(parts)


def _cost(
    place: Place,
    name: str,
    plot: Plot,
    own: NDArray[np.float64],
    others: NDArray[np.float64],
    taken: Sequence[Box],
    least: float,
) -> float:
    """What a place costs, or something above ``least``."""
    left, right, top, bottom = box = _box(place, name, plot)
    if left < 2 or right > NARROW_PX - 2 or top < 12 or bottom > plot.height_px - 2:
        return math.inf
    if any(left < r and le < right and top < b and t < bottom for le, r, t, b in taken):
        return math.inf
    away = abs(place.dx_px) > BESIDE_PX
    cost = _ALOOF + math.hypot(place.dx_px, place.dy_px) if away else 0.0
    if cost < least:
        cost += _NEAR * _inside(others, box, 9.0) + _OWN * _inside(own, box, 0.0)
        cost += _OTHER * _inside(others, box, 1.0)
    if away and cost < least:
        x, y = _at(place, plot)
        way = np.linspace(0.25, 1.0, 8)[:, None] * [place.dx_px, place.dy_px] + [x, y]
        gaps = np.abs(way[:, None, :] - others[None, :, :]).max(axis=2).min(axis=1)
        cost += _CROSSED * int((gaps < 2.5).sum())
    return cost


def _inside(dots: NDArray[np.float64], box: Box, slack: float) -> int:
    left, right, top, bottom = box
    x, y = dots[:, 0], dots[:, 1]
    hit = (x > left - slack) & (x < right + slack) & (y > top - slack) & (y < bottom + slack)
    return int(hit.sum())
