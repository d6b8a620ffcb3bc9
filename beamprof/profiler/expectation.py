"""The error that a plan's table is expected to have, before anything is measured.

Interpolated between errors that were measured on real tables (benchmarks/plan_error.py makes
them again). What it cannot know is how noisy this node is: `beam table check` tells afterwards.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

# (clocks measured, error of latency and of energy at the others): Llama-3.3 70B TP2 PP4 on A100s,
# 31 measured clocks; nine are those of the device file, fewer are evenly spread.
BY_CLOCKS = ((3, 0.022, 0.054), (5, 0.014, 0.026), (7, 0.008, 0.021), (9, 0.009, 0.021))
# (share of the full grid, latency error over all steps): a served trace's batches, composed from
# operators measured on an A100; the worst of chunks of 256, 512 and 1024.
LATENCY_BY_SHARE = (
    (0.49, 0.053),
    (0.59, 0.022),
    (0.68, 0.021),
    (0.78, 0.014),
    (0.88, 0.011),
    (1.0, 0.010),
)
# On a CPU passes of one shape differ by its caches, its other threads and its clock, which nobody
# holds: a user's `beam table check` found 7 to 11 % on held-out mixed cells, and beside other work
# it is several times that.
CPU_LATENCY = 0.09
# NVML's energy counter ticks every 100 ms on an A100: read at any two moments, one second is up to
# 10 % wrong and five are 2 %. The backend reads from edge to edge of the ticks, which leaves how
# late an edge is noticed: a batch of passes, 20 ms, or one pass where it takes longer.
EDGE_NOTICED_S = 0.04
# The first fifth of a window is discarded (TimingRules.within).
COUNTED_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class ExpectedError:
    """Expected relative errors, as fractions.

    Attributes:
        latency_between_clocks, energy_between_clocks: at clocks that were not measured.
        over_steps: latency of steps that were not measured.
        energy_counter: standard deviation of one cell's energy from the counter's ticks.
    """

    latency_between_clocks: float
    energy_between_clocks: float
    over_steps: float
    energy_counter: float

    @property
    def total(self) -> float:
        """One number to rank plans by: latency's and energy's independent errors, added up."""
        latency = math.hypot(self.latency_between_clocks, self.over_steps)
        energy = math.hypot(self.energy_between_clocks, self.over_steps, self.energy_counter)
        return latency + energy

    @property
    def parts(self) -> list[str]:
        """The errors in words, one after the other."""
        parts = [f"{self.over_steps:.1%} over all steps"]
        if self.latency_between_clocks or self.energy_between_clocks:
            parts.append(
                f"{self.latency_between_clocks:.1%} latency and "
                f"{self.energy_between_clocks:.1%} energy between clocks"
            )
        if self.energy_counter:
            parts.append(f"{self.energy_counter:.1%} from the energy counter")
        return [part.replace("%", " %") for part in parts]

    def __str__(self) -> str:
        return ", ".join(self.parts)


def expected_error(
    clocks: int, share: float, counted_s: tuple[int, float] | None, *, cpu: bool = False
) -> ExpectedError:
    """What a plan's table should be wrong by.

    Args:
        clocks: how many clocks over the useful range; with 1 nothing lies between them.
        share: of the full grid's cells, those that are measured at each clock.
        counted_s: trials of each cell and their length in seconds; None where no energy counter
            is read.
        cpu: passes run on one.
    """
    counter = 0.0
    if counted_s is not None:
        trials, window_s = counted_s
        # Two uniform errors, one at each end: 1/sqrt(6) of their range.
        counter = EDGE_NOTICED_S / (COUNTED_SHARE * window_s) / math.sqrt(6 * trials)
    between = (0.0, 0.0)
    if clocks > 1:
        between = (
            _at(clocks, [(count, latency) for count, latency, _ in BY_CLOCKS]),
            _at(clocks, [(count, energy) for count, _, energy in BY_CLOCKS]),
        )
    over_steps = _at(share, LATENCY_BY_SHARE)
    if cpu:
        over_steps = max(over_steps, CPU_LATENCY)
    return ExpectedError(*between, over_steps=over_steps, energy_counter=counter)


def _at(x: float, points: Sequence[tuple[float, float]]) -> float:
    """Piecewise linear, flat beyond both ends."""
    if x <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return points[-1][1]
