"""Pictures made of characters: a shaded line and a plot of curves.

Braille and block characters where the terminal's encoding has them, ASCII otherwise. Colour only
repeats what shape says, for NO_COLOR and for eyes that see colours differently.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from rich.text import Text

# Upper bounds of the shades, as fractions over the best, and their colours.
SHADE_BOUNDS = (0.02, 0.05, 0.10, 0.20, math.inf)
SHADE_STYLES = ("bright_green", "green", "yellow", "dark_orange", "red")
SHADES, SHADES_ASCII = "·░▒▓█", ".:+%#"
BEST, BEST_ASCII = "◆", "O"
# Dot of a braille character by (row, column), Unicode 2800.
BRAILLE_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def shaded_line(over_best: Sequence[float], places: int, *, ascii_only: bool) -> Text:
    """One glyph per place: how far each value is over the best, the best marked.

    Args:
        over_best: fractions, 0 at the best, NaN where there is none (a blank).
        places: glyphs to use; neighbours share one where there are more values.
        ascii_only: keep to ASCII.
    """
    shades, best = (SHADES_ASCII, BEST_ASCII) if ascii_only else (SHADES, BEST)
    line = Text()
    for values in _buckets(over_best, places):
        known = [value for value in values if not math.isnan(value)]
        if not known:
            line.append(" ")
        elif min(known) <= 0:
            line.append(best, "bold bright_white")
        else:
            shade = next(i for i, bound in enumerate(SHADE_BOUNDS) if min(known) <= bound)
            line.append(shades[shade], SHADE_STYLES[shade])
    return line


def shade_legend(*, ascii_only: bool) -> Text:
    """What the shades mean."""
    shades, best = (SHADES_ASCII, BEST_ASCII) if ascii_only else (SHADES, BEST)
    legend = Text()
    legend.append(best, "bold bright_white").append(" best   ")
    for glyph, bound, style in zip(shades, SHADE_BOUNDS, SHADE_STYLES, strict=True):
        last = math.isinf(bound)
        legend.append(glyph, style)
        legend.append(" more" if last else f" to +{bound:.0%}   ")
    return legend


def _buckets(values: Sequence[float], places: int) -> list[Sequence[float]]:
    size = max(1, math.ceil(len(values) / max(1, places)))
    return [values[start : start + size] for start in range(0, len(values), size)]


@dataclass(frozen=True, slots=True)
class Curve:
    """Points; those at the places ``joined`` are joined by lines in that order.

    ``label``, one character, stands at the point ``marked``.
    """

    x: Sequence[float]
    y: Sequence[float]
    label: str
    style: str
    joined: Sequence[int]
    marked: int


def plot(
    curves: Sequence[Curve],
    *,
    width: int,
    height: int,
    x_title: str,
    y_title: str,
    ascii_only: bool,
) -> list[Text]:
    """Curves over common axes, as lines of text no wider than ``width``."""
    x_low, x_high = _span([value for curve in curves for value in curve.x])
    y_low, y_high = _span([value for curve in curves for value in curve.y])
    ticks = [f"{y_low + (y_high - y_low) * row / (height - 1):.3g}" for row in range(height)][::-1]
    margin = max(len(tick) for tick in ticks) + 1
    columns = max(8, width - margin - 2)
    dots = [[0] * columns for _ in range(height)]
    styles = [[""] * columns for _ in range(height)]
    letters: dict[tuple[int, int], tuple[str, str]] = {}

    def at(x: float, y: float) -> tuple[int, int]:
        """Dot row and dot column: four by two dots make a character."""
        down = (y_high - y) / (y_high - y_low) * (height * 4 - 1)
        right = (x - x_low) / (x_high - x_low) * (columns * 2 - 1)
        return round(down), round(right)

    for curve in curves:
        points = [at(x, y) for x, y in zip(curve.x, curve.y, strict=True)]
        lines_of_dots = [_line(points[a], points[b]) for a, b in pairwise(curve.joined)]
        for row, column in [*points, *(dot for line in lines_of_dots for dot in line)]:
            dots[row // 4][column // 2] |= BRAILLE_DOTS[row % 4][column % 2]
            styles[row // 4][column // 2] = curve.style
        row, column = points[curve.marked]
        letters[row // 4, column // 2] = (curve.label, f"bold {curve.style}")
    lines = [Text(y_title, "dim")]
    for row in range(height):
        tick = ticks[row] if row in (0, height // 2, height - 1) else ""
        line = Text(f"{tick:>{margin}} |" if ascii_only else f"{tick:>{margin}} │", "dim")
        for column in range(columns):
            if (row, column) in letters:
                line.append(*letters[row, column])
            elif dots[row][column]:
                glyph = "*" if ascii_only else chr(0x2800 + dots[row][column])
                line.append(glyph, styles[row][column])
            else:
                line.append(" ")
        lines.append(line)
    low, high = f"{x_low:.3g}", f"{x_high:.3g}"
    foot = f"{low}{x_title:^{max(0, columns - len(low) - len(high))}}{high}"
    corner, rule = ("+", "-") if ascii_only else ("└", "─")
    lines.append(Text(" " * (margin + 1) + corner + rule * columns, "dim"))
    lines.append(Text(" " * (margin + 2) + foot, "dim"))
    return lines


def _line(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """Dots from start to end."""
    down, right = end[0] - start[0], end[1] - start[1]
    steps = max(abs(down), abs(right), 1)
    return [
        (round(start[0] + down * step / steps), round(start[1] + right * step / steps))
        for step in range(steps + 1)
    ]


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
