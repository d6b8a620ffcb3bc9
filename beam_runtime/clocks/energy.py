"""Energy over a window, from counters that tick slowly.

       counter         ____
                  ____|   ^      a sample is (time, counter); an edge is the first sample
             ____|   ^           that shows a new value. From edge to edge the tick itself
                ^    edges       cancels; what stays is when an edge was noticed.

An A100's counter ticks every 100 ms. Read at any two moments, one second is up to 10 %
wrong; read from edge to edge it is wrong by the spacing of the samples. Samples are taken
while the device works on; this file knows no device.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from statistics import stdev
from typing import Protocol

_MIN_EDGES = 3
_UNIFORM_SD = 1 / math.sqrt(12)  # standard deviation of a uniform error, per unit of its range
_Z95 = 1.96
# 97.5 % quantiles of Student's t, by the number of runs that steadiness is judged from.
_T95 = {4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}


class EnergyCounter(Protocol):
    """Counters of energy that only grow, one per device."""

    @property
    def tick_s(self) -> float:
        """How old a value can be: an upper bound of the time between two updates."""
        ...

    def read_energy_j(self) -> tuple[float, ...]:
        """Joules since some fixed moment, one number per device."""
        ...


class WindowVerdict(StrEnum):
    """What came of a window."""

    GOOD = "good"
    TOO_SHORT = "too short"  # a counter ticked fewer than three times: equal reads
    WENT_BACK = "went back"  # a counter was reset or wrapped: measure the window again


@dataclass(frozen=True, slots=True)
class EnergyWindow:
    """Mean power of all devices together; zeros unless the verdict is good.

    Attributes:
        relative_ci: half-width of the power's 95 % interval as a share of it.
        seconds: the shortest device's time between its first and last edge.
    """

    verdict: WindowVerdict
    power_w: float = 0.0
    relative_ci: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Sample:
    at_s: float
    energy_j: float


@dataclass(frozen=True, slots=True)
class _Edge:
    sample: _Sample
    unsure_s: float  # the counter's value is younger than the sample by at most this


class EnergyMeter:
    """Collects samples of a counter and judges them.

    Args:
        counter: NvmlGpus, a RAPL reader, or a fake.
        now_s: the clock on the wall; replaced in tests.
    """

    def __init__(
        self, counter: EnergyCounter, *, now_s: Callable[[], float] = time.perf_counter
    ) -> None:
        self._counter = counter
        self._now_s = now_s
        self._devices: tuple[list[_Sample], ...] = ()

    def restart(self) -> None:
        """Forget all samples: a new window."""
        self._devices = ()

    def sample(self) -> None:
        """Read the counter now.

        Raises:
            BeamError: the counter cannot be read.
        """
        before_s = self._now_s()
        counters_j = self._counter.read_energy_j()
        # Reading takes up to a few milliseconds; the value belongs to the middle of them.
        at_s = (before_s + self._now_s()) / 2
        self._devices = self._devices or tuple([] for _ in counters_j)
        for samples, energy_j in zip(self._devices, counters_j, strict=True):
            samples.append(_Sample(at_s, energy_j))

    def window(self) -> EnergyWindow:
        """What the samples so far amount to. Changes nothing: may be asked after every sample."""
        devices = [_device_window(samples, self._counter.tick_s) for samples in self._devices]
        if not devices:
            return EnergyWindow(WindowVerdict.TOO_SHORT)
        for verdict in (WindowVerdict.WENT_BACK, WindowVerdict.TOO_SHORT):
            if any(window.verdict is verdict for window in devices):
                return EnergyWindow(verdict)
        power_w = sum(window.power_w for window in devices)
        # Devices err independently, each by its own share.
        ci_w = math.hypot(*(window.power_w * window.relative_ci for window in devices))
        return EnergyWindow(
            WindowVerdict.GOOD,
            power_w=power_w,
            relative_ci=ci_w / power_w,
            seconds=min(window.seconds for window in devices),
        )


def _device_window(samples: Sequence[_Sample], tick_s: float) -> EnergyWindow:
    edges = []
    for before, after in pairwise(samples):
        if after.energy_j < before.energy_j:
            return EnergyWindow(WindowVerdict.WENT_BACK)
        if after.energy_j > before.energy_j:
            edges.append(_Edge(after, min(after.at_s - before.at_s, tick_s)))
    if len(edges) < _MIN_EDGES:
        return EnergyWindow(WindowVerdict.TOO_SHORT)
    first, last = edges[0].sample, edges[-1].sample
    return EnergyWindow(
        WindowVerdict.GOOD,
        power_w=(last.energy_j - first.energy_j) / (last.at_s - first.at_s),
        relative_ci=_relative_ci(edges),
        seconds=last.at_s - first.at_s,
    )


def _relative_ci(edges: Sequence[_Edge]) -> float:
    """Two things blur a window: when its two edges fell, and power that was not steady.

    An edge fell somewhere in its ``unsure_s`` (taken as uniform). Steadiness is the scatter
    of the mean over 4 to 8 runs of at least 4 ticks each, where there are that many.
    """
    seconds = edges[-1].sample.at_s - edges[0].sample.at_s
    timing = math.hypot(edges[0].unsure_s, edges[-1].unsure_s) * _UNIFORM_SD / seconds
    runs = min(max(_T95), (len(edges) - 1) // 4)
    if runs < min(_T95):
        return _Z95 * timing
    marks = [edges[round(at * (len(edges) - 1) / runs)].sample for at in range(runs + 1)]
    powers_w = [
        (after.energy_j - before.energy_j) / (after.at_s - before.at_s)
        for before, after in pairwise(marks)
    ]
    steadiness = stdev(powers_w) / math.sqrt(runs) / (sum(powers_w) / runs)
    return math.hypot(_Z95 * timing, _T95[runs] * steadiness)
