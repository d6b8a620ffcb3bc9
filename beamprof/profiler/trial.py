"""Run one trial; merge a cell's trials into one row.

    round 1   | lock clock | warm up | window: pass pass pass ... | read counter |  next cell
    round 2   ... the same cell again, minutes later, at another place in the order

The backend does what the drawing shows and decides which windows to reject; this module only
combines. With two or three trials a cell's own scatter says little (Student's factor is 12.7 for
two), so the scatter between trials is pooled over all cells of a sweep.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from beamprof.backends.base import Measurement

Z_95 = 1.96


@dataclass(frozen=True, slots=True)
class Scatter:
    """Standard deviation between trials of the same cell, relative, pooled over a sweep."""

    latency: float
    energy: float


def pooled_scatter(cells: Iterable[Sequence[Measurement]]) -> Scatter:
    """Pool the relative scatter of every cell that has two trials or more; 0 where none has."""
    groups = [trials for trials in cells if len(trials) > 1]
    return Scatter(
        latency=_pooled([[trial.latency_ms for trial in trials] for trials in groups]),
        energy=_pooled([[trial.energy_j for trial in trials] for trials in groups]),
    )


def merge_trials(trials: Sequence[Measurement], scatter: Scatter) -> Measurement:
    """One row from a cell's trials: medians, and 95 % intervals that hold both kinds of scatter.

    The half-width is the larger of what the trials say about themselves (their own half-widths,
    combined as independent) and 1.96 x pooled scatter between trials / sqrt(number of trials).

    Args:
        trials: one or more measurements of the same cell.
        scatter: pooled_scatter of the sweep.

    Raises:
        ValueError: no trials, or trials of several sources.
    """
    if not trials or len({trial.source for trial in trials}) > 1:
        raise ValueError("merge_trials takes one or more trials of one source")
    latency_ms = statistics.median(trial.latency_ms for trial in trials)
    energy_j = statistics.median(trial.energy_j for trial in trials)
    reasons = [reason for trial in trials for reason in trial.throttle.split("|") if reason]
    return Measurement(
        latency_ms=latency_ms,
        energy_j=energy_j,
        source=trials[0].source,
        latency_ci_ms=_half_width(
            [trial.latency_ci_ms for trial in trials], latency_ms * scatter.latency
        ),
        energy_ci_j=_half_width([trial.energy_ci_j for trial in trials], energy_j * scatter.energy),
        clock_reached_mhz=_mean([trial.clock_reached_mhz for trial in trials]),
        temperature_c=max((t.temperature_c for t in trials if t.temperature_c is not None),
                          default=None),
        throttle="|".join(dict.fromkeys(reasons)),
        passes=sum(trial.passes for trial in trials),
    )  # fmt: skip


def _pooled(groups: Sequence[Sequence[float]]) -> float:
    squares, freedom = 0.0, 0
    for values in groups:
        mean = statistics.fmean(values)
        squares += sum((value / mean - 1) ** 2 for value in values)
        freedom += len(values) - 1
    return math.sqrt(squares / freedom) if freedom else 0.0


def _half_width(own: Sequence[float | None], between: float) -> float | None:
    """``own``: half-widths of the trials; ``between``: standard deviation between trials."""
    known = [half for half in own if half is not None]
    within = math.sqrt(sum(half**2 for half in known)) / len(known) if known else None
    if len(own) < 2:
        return within
    return max(within or 0.0, Z_95 * between / math.sqrt(len(own)))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
