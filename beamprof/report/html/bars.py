"""Numbers as bars on one axis."""

from collections.abc import Sequence
from statistics import median

from beamprof.report.html.part import Bar
from beamprof.report.html.scale import Linear
from beamprof.report.html.svg import Plot

_HEIGHT_PX = 30  # the page's row: lines across run on from bar to bar
_THICK = {"from_bottom": 0.16, "to_top": 0.84}


def bar(
    name: str,
    css: str,
    value: float,
    longest: float,
    *,
    words: Sequence[str],
    marks: Sequence[float] = (),
    bound: bool = False,
) -> Bar:
    """A bar from 0.

    Args:
        name: whose.
        css: its colour.
        value: its length.
        longest: the axis's end.
        words: what it comes to.
        marks: other bars' lengths, as lines across.
        bound: not a policy: drawn hollow.
    """
    plot = _plot(longest, f"{name}: {', '.join(words)}")
    plot.bar(0, value, "bound" if bound else f"solid {css}", **_THICK)
    for mark in marks:
        plot.upright(mark, "mark")
    return Bar(name, css, plot.markup(), tuple((text, "") for text in words))


def parts_bar(
    name: str, css: str, parts: Sequence[tuple[str, str, float]], longest_j: float
) -> Bar:
    """A bar made of ``parts``: (class, its words, joules) from left to right."""
    plot = _plot(longest_j, f"{name}: {', '.join(words for _, words, _ in parts)}")
    at_j = 0.0
    for kind, _, part_j in parts:
        plot.bar(at_j, at_j + part_j, kind, **_THICK)
        at_j += part_j
    return Bar(name, css, plot.markup(), tuple((words, kind) for kind, words, _ in parts))


def spread_bar(name: str, css: str, shares: Sequence[float], *, words: Sequence[str]) -> Bar:
    """Dots from 0 to vanilla's 1, or to the largest; a stroke at their median."""
    plot = _plot(max((1.05, *shares)), f"{name}: {', '.join(word for word in words if word)}")
    plot.level(0.5, "grid")
    plot.upright(1.0, "mark")
    for share in shares:
        plot.dot(share, 0.5, f"{css} faint", 4)
    if shares:
        plot.upright(median(shares), f"stroke {css}")
    return Bar(name, css, plot.markup(), tuple((text, "") for text in words))


def _plot(longest: float, label: str) -> Plot:
    return Plot(Linear(0.0, longest), Linear(0.0, 1.0), _HEIGHT_PX, label)
