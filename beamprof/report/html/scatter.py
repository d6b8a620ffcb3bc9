"""Predicted against observed: on the diagonal a forecast was right, above it things came late."""

import numpy as np
from numpy.typing import NDArray

from beamprof.report.html.number_words import axis_ms
from beamprof.report.html.scale import Log
from beamprof.report.html.svg import Plot

HEIGHT_PX = 320
MOST_DOTS = 1500


def predicted_and_observed(
    predicted_ms: NDArray[np.float64],
    seen_ms: NDArray[np.float64],
    slo_ms: float | None,
    label: str,
) -> str:
    """A dot per pair on two equal logarithmic axes, as SVG; empty without pairs.

    Args:
        predicted_ms: (n,) one of each pair; of very many pairs every so-manieth is drawn.
        seen_ms: (n,) the other.
        slo_ms: where all pairs have one.
        label: what a screen reader says.
    """
    if not len(seen_ms):
        return ""
    every = -(-len(seen_ms) // MOST_DOTS)
    predicted_ms, seen_ms = predicted_ms[::every], seen_ms[::every]
    both = np.concatenate([predicted_ms, seen_ms])
    low, high = float(np.percentile(both, 0.5)), float(both.max())
    axis = Log(max(0.1, min(low, high / 4)) / 1.1, high * 1.1)
    plot = Plot(axis, axis, HEIGHT_PX, label)
    plot.x_axis(6, axis_ms)
    plot.y_axis(axis.ticks(6), axis_ms)
    plot.curve([(axis.low, axis.low), (axis.high, axis.high)], "line thin c0")
    for predicted, seen in zip(predicted_ms.tolist(), seen_ms.tolist(), strict=True):
        late = slo_ms is not None and seen > slo_ms
        plot.dot(predicted, seen, "late faint" if late else "c4 faint", 2.4)
    if slo_ms is not None and axis.low < slo_ms < axis.high:
        plot.level(slo_ms, "slo", f"SLO {axis_ms(slo_ms)}")
    return plot.markup()
