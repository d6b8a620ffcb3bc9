"""How the time went over the values of a knob, as columns."""

from collections.abc import Mapping

from beamprof.report.html.number_words import axis_number, axis_percent, percent
from beamprof.report.html.scale import Linear
from beamprof.report.html.svg import LETTER_PX, Plot

HEIGHT_PX = 120
_NARROW_PX = 160  # four beside each other


def columns(shares: Mapping[float, float], css: str, label: str) -> str:
    """One column per value, evenly apart, as SVG.

    Args:
        shares: share of the time, 0 to 1, by value.
        css: colour.
        label: what a screen reader says.
    """
    values = sorted(shares)
    highest = max(shares.values())
    plot = Plot(Linear(0, len(values)), Linear(0, highest), HEIGHT_PX, label)
    plot.y_axis(plot.y.ticks(4), axis_percent)
    longest = max(len(axis_number(value)) for value in values)
    fit = max(1, int(_NARROW_PX / (LETTER_PX * (longest + 1))))
    every = -(-len(values) // fit)
    widest = max(len(percent(share)) for share in shares.values())
    room = len(values) * LETTER_PX * (widest + 1) <= _NARROW_PX
    for at, value in enumerate(values):
        plot.bar(
            at + 0.15, at + 0.85, f"solid {css}",
            from_bottom=0.0, to_top=plot.y.share(shares[value]),
        )  # fmt: skip
        if at % every == 0:
            plot.text(at + 0.5, 0, axis_number(value), "tick mid", dy_px=16)
        if room:
            words = percent(shares[value])
            plot.text(at + 0.5, shares[value], words, "tick mid", dy_px=-4)
    return plot.markup()
