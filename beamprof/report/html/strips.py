"""Quantities over a stretch of time, each a low strip on the same axis."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from beamprof.report.html.number_words import axis_number
from beamprof.report.html.part import Strip
from beamprof.report.html.scale import Linear, Log, Scale
from beamprof.report.html.svg import Plot

_LOW_PX, _HIGH_PX = 44, 72
_X_TICKS = 7
_STEPS_S = (
    0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 900, 1200, 1800, 3600, 7200, 14400,
)  # fmt: skip
# More columns than this are finer than a screen; more dots are a blot.
_COLUMNS = 800
_DOTS = 3000


def time_words(seconds: float) -> str:
    """A moment: 45, 2:05 or 1:02:05."""
    whole, rest = divmod(round(seconds, 3), 1)
    minutes, second = divmod(int(whole), 60)
    hours, minute = divmod(minutes, 60)
    part = f"{rest:.3f}".rstrip("0")[1:].removesuffix(".") if rest else ""
    if hours:
        return f"{hours}:{minute:02d}:{second:02d}{part}"
    return f"{minute}:{second:02d}{part}"


def columns_strip(
    name: str, edges_s: Sequence[float], heights: Sequence[float], *, last: bool = False
) -> Strip:
    """One column between two neighbouring edges."""
    y = Linear(0.0, max(max(heights, default=0.0), 1e-9))
    plot = _plot(name, edges_s[0], edges_s[-1], y, _LOW_PX, last=last)
    for left, right, height in zip(edges_s[:-1], edges_s[1:], heights, strict=True):
        if height > 0:
            plot.bar(left, right, "load", from_bottom=0.0, to_top=y.share(height))
    _top_label(plot, y)
    return Strip(name, plot.markup())


def steps_strip(
    name: str,
    span_s: tuple[float, float],
    points: Sequence[tuple[float, float]],
    *,
    from_zero: bool = True,
    off_s: Sequence[tuple[float, float]] = (),
    blank_s: Sequence[tuple[float, float]] = (),
    last: bool = False,
) -> Strip:
    """A value that holds until the next; shaded in ``off_s``, unknown in ``blank_s``."""
    values = [value for _, value in points] or [0.0]
    low = 0.0 if from_zero else min(values)
    y = Linear(low, max(*values, low + 1e-9))
    plot = _plot(name, *span_s, y, _LOW_PX, last=last)
    for begin, end in off_s:
        plot.band(max(begin, span_s[0]), min(end, span_s[1]), "off")
    for part_s in _without(blank_s, span_s):
        plot.curve(_changes(points, part_s), "line thin", steps=True)
    if not from_zero and y.high > y.low + 1e-6:
        plot.y_axis((y.low, y.high), axis_number)
    else:
        _top_label(plot, y)
    return Strip(name, plot.markup())


def dots_strip(
    name: str,
    span_s: tuple[float, float],
    points: Sequence[tuple[float, float]],
    limit: float,
    words: Callable[[float], str],
    *,
    last: bool = False,
) -> Strip:
    """Points against a limit, on a logarithmic axis; those over it stand out."""
    values = [max(value, 1e-3) for _, value in points] or [limit]
    y = Log(min(*values, limit / 4) / 1.15, max(*values, limit) * 1.25)
    plot = _plot(name, *span_s, y, _HIGH_PX, last=last)
    plot.y_axis([tick for tick in y.ticks(3) if tick != limit], words)
    plot.level(limit, "slo", f"SLO {words(limit)}")
    late = [point for point in points if point[1] > limit]
    kept = [point for point in points if point[1] <= limit]
    for at_s, value in kept[:: -(-len(kept) // _DOTS) or 1] + late[:: -(-len(late) // _DOTS) or 1]:
        plot.dot(at_s, value, "late" if value > limit else "kept faint", 2.2)
    return Strip(name, plot.markup())


@dataclass(frozen=True, slots=True)
class _Time(Linear):
    """Seconds; its round values are those of a clock, which is not decimal."""

    def ticks(self, most: int) -> tuple[float, ...]:
        for step_s in _STEPS_S:
            first = math.ceil(self.low / step_s - 1e-9)
            last = math.floor(self.high / step_s + 1e-9)
            if last - first < most:
                return tuple(round(n * step_s, 9) for n in range(first, last + 1))
        return Linear.ticks(self, most)


def _plot(name: str, from_s: float, to_s: float, y: Scale, height_px: int, *, last: bool) -> Plot:
    plot = Plot(_Time(from_s, to_s), y, height_px, name)
    if last:
        plot.x_axis(_X_TICKS, time_words)
    else:
        for tick in plot.x.ticks(_X_TICKS):
            plot.grid_line(tick)
    return plot


def _top_label(plot: Plot, y: Linear) -> None:
    plot.level(y.low, "zero")
    highest = max((tick for tick in y.ticks(3) if tick > y.low), default=y.high)
    plot.y_axis((highest,), axis_number)


def _without(
    off_s: Sequence[tuple[float, float]], span_s: tuple[float, float]
) -> list[tuple[float, float]]:
    """The span's parts outside of stretches that ascend."""
    parts, begin = [], span_s[0]
    for off_from, off_to in off_s:
        if begin < off_from:
            parts.append((begin, min(off_from, span_s[1])))
        begin = max(begin, off_to)
    if begin < span_s[1]:
        parts.append((begin, span_s[1]))
    return parts


def _changes(
    points: Sequence[tuple[float, float]], span_s: tuple[float, float]
) -> list[tuple[float, float]]:
    """Only where the value changes, from the span's first moment to its last."""
    before = [point for point in points if point[0] <= span_s[0]]
    kept = [(span_s[0], before[-1][1])] if before else []
    for at_s, value in points:
        if span_s[0] < at_s < span_s[1] and (not kept or value != kept[-1][1]):
            kept.append((at_s, value))
    kept = _extremes(kept, (span_s[1] - span_s[0]) / _COLUMNS)
    if kept:
        kept.append((span_s[1], kept[-1][1]))
    return kept


def _extremes(points: list[tuple[float, float]], every_s: float) -> list[tuple[float, float]]:
    """Of the points of each short while: first, least, largest and last, in order."""
    if len(points) <= 4 * _COLUMNS:
        return points
    kept = []
    for _, group in groupby(points, key=lambda point: int(point[0] / every_s)):
        here = list(group)
        by_value = sorted(here, key=lambda point: point[1])
        kept += sorted({here[0], by_value[0], by_value[-1], here[-1]})
    return kept
