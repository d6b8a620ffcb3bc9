"""One plot as inline SVG that is as wide as the page lets it be, without a script.

Everything is placed in percent, so that a phone gets the same text size and line width as a
desk; only curves, which SVG cannot give in percent, lie in a stretched frame of their own. It
is built as a tree: a hostile name is text and cannot become markup. Labels of axes hang over
the plot's edges, where the page leaves room for them.
"""

import math
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from beamprof.report.html.scale import Scale

_FRAME = 1000
# Words are placed for the narrowest plot, a phone's; in a wider one they only move apart.
NARROW_PX = 290
LETTER_PX = 6.8
# A name further from its curve than this has a line to it.
BESIDE_PX = 10


class Plot:
    """A drawing under way.

    Args:
        x: scale from left to right.
        y: scale from bottom to top.
        height_px: of the drawing area.
        label: what a screen reader says.
    """

    def __init__(self, x: Scale, y: Scale, height_px: int, label: str) -> None:
        self.x, self.y, self.height_px = x, y, height_px
        self._svg = ET.Element(
            "svg",
            {"class": "plot", "role": "img", "aria-label": label, "width": "100%",
             "height": str(height_px)},
        )  # fmt: skip
        self._curves: ET.Element | None = None

    def x_axis(self, most: int, words: Callable[[float], str]) -> None:
        """Upright grid lines, each with its value below; as many as have room for their words."""
        for count in range(most, 0, -1):
            ticks = self.x.ticks(count)
            if self._have_room([(self.x.share(tick), words(tick)) for tick in ticks]):
                break
        for tick in ticks:
            self.grid_line(tick)
            at = _percent(self.x.share(tick))
            self._add("text", "tick mid", words(tick), x=at, y="100%", dy="1.35em")

    def grid_line(self, value: float) -> None:
        """An upright grid line without words."""
        at = _percent(self.x.share(value))
        self._add("line", "grid", x1=at, x2=at, y1="0", y2="100%")

    def _have_room(self, labels: Sequence[tuple[float, str]]) -> bool:
        return all(
            (there - here) * NARROW_PX > LETTER_PX * (1 + (len(text) + len(other)) / 2)
            for (here, text), (there, other) in pairwise(labels)
        )

    def y_axis(self, ticks: Iterable[float], words: Callable[[float], str]) -> None:
        """Level grid lines, each with its value to the left."""
        for tick in ticks:
            at = self._up(tick)
            self._add("line", "grid", x1="0", x2="100%", y1=at, y2=at)
            self._add("text", "tick end", words(tick), x="0", dx="-0.5em", y=at, dy="0.32em")

    def upright(self, value: float, css: str, words: str = "") -> None:
        """A line at one x, named at its top."""
        share = self.x.share(value)
        at = _percent(share)
        self._add("line", css, x1=at, x2=at, y1="0", y2="100%")
        if words:
            side = "end" if share > 0.5 else "start"
            dx = "-0.4em" if share > 0.5 else "0.4em"
            self._add("text", f"{css} name {side}", words, x=at, dx=dx, y="0", dy="0.9em")

    def level(self, value: float, css: str, words: str = "") -> None:
        """A line at one y, named at its right end."""
        at = self._up(value)
        self._add("line", css, x1="0", x2="100%", y1=at, y2=at)
        if words:
            self._add("text", f"{css} name end", words, x="100%", y=at, dy="-0.35em")

    def band(self, x_from: float, x_to: float, css: str) -> None:
        """The whole height between two x."""
        self.bar(x_from, x_to, css, from_bottom=0.0, to_top=1.0)

    def bar(
        self, x_from: float, x_to: float, css: str, *, from_bottom: float, to_top: float
    ) -> None:
        """A filled box; heights are shares of the plot's, or values of y by ``y.share``."""
        left, right = self.x.share(x_from), self.x.share(x_to)
        self._add(
            "rect", css,
            x=_percent(left), width=_percent(max(0.0, right - left)),
            y=_percent(1 - to_top), height=_percent(max(0.0, to_top - from_bottom)),
        )  # fmt: skip

    def dot(self, x: float, y: float, css: str, radius_px: float = 2.0) -> None:
        """A point."""
        self._add("circle", css, cx=_percent(self.x.share(x)), cy=self._up(y), r=f"{radius_px:g}")

    def text(
        self, x: float, y: float, words: str, css: str, *, dx_px: float = 0, dy_px: float = 0
    ) -> None:
        """Words at a point, moved by pixels."""
        self._add(
            "text", css, words,
            x=_percent(self.x.share(x)), y=self._up(y), dx=f"{dx_px:g}", dy=f"{dy_px:g}",
        )  # fmt: skip

    def callout(self, x: float, y: float, words: str, css: str, dx_px: float, dy_px: float) -> None:
        """A curve's name, some pixels from a point of it; with a line there where it is far."""
        place = ET.SubElement(
            self._svg, "svg",
            {"class": f"callout {css}", "x": _percent(self.x.share(x)), "y": self._up(y),
             "width": "1", "height": "1"},
        )  # fmt: skip
        side = "start" if dx_px > 0 else "end"
        if abs(dx_px) > BESIDE_PX:
            end = {"x2": f"{dx_px - math.copysign(3, dx_px):g}", "y2": f"{dy_px - 4:g}"}
            ET.SubElement(place, "line", {"x1": "0", "y1": "0", **end})
        text = {"class": f"name {side} {css}", "x": f"{dx_px:g}", "y": f"{dy_px:g}"}
        ET.SubElement(place, "text", text).text = words

    def curve(
        self, points: Sequence[tuple[float, float]], css: str, *, steps: bool = False
    ) -> None:
        """A line through points; with ``steps`` each value holds until the next."""
        if not points:
            return
        places = [(_FRAME * self.x.share(x), _FRAME * (1 - self.y.share(y))) for x, y in points]
        parts = [f"M{_short(places[0][0])} {_short(places[0][1])}"]
        for x, y in places[1:]:
            parts.append(f"H{_short(x)}V{_short(y)}" if steps else f"L{_short(x)} {_short(y)}")
        if self._curves is None:
            self._curves = ET.SubElement(
                self._svg, "svg",
                {"width": "100%", "height": "100%", "viewBox": f"0 0 {_FRAME} {_FRAME}",
                 "preserveAspectRatio": "none", "class": "curves"},
            )  # fmt: skip
        ET.SubElement(self._curves, "path", {"class": css, "d": "".join(parts)})

    def markup(self) -> str:
        """The finished drawing."""
        return ET.tostring(self._svg, encoding="unicode")

    def _up(self, value: float) -> str:
        return _percent(1 - self.y.share(value))

    def _add(self, tag: str, css: str, words: str = "", /, **attributes: str) -> None:
        element = ET.SubElement(self._svg, tag, {"class": css, **attributes})
        element.text = words or None


def _percent(share: float) -> str:
    return f"{100 * share:.5g}%"


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
