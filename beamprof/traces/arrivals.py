"""Poisson arrivals with a rate that may change in time.

Unit exponentials are cumulated and mapped through the inverse of the expected count
(time change of a Poisson process; Cinlar 1975). Only uniforms are taken from the generator and
times are whole microseconds, so a seed means one trace on every machine.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beamprof.errors import TraceError

_MICROSECONDS_PER_S = 1_000_000


@dataclass(frozen=True, slots=True)
class RateCurve:
    """Requests per second over time: straight lines between points, jumps allowed.

    Attributes:
        times_s: points in time, ascending from 0, at least two; a repeated time is a jump.
        rates_rps: the rate at each, 0 or more, not all 0.
    """

    times_s: tuple[float, ...]
    rates_rps: tuple[float, ...]

    def __post_init__(self) -> None:
        times, rates = np.asarray(self.times_s), np.asarray(self.rates_rps)
        finite = np.isfinite(times).all() and np.isfinite(rates).all()
        if not finite or len(times) != len(rates) or len(times) < 2 or times[0] != 0:
            raise TraceError(
                "a rate curve is two or more finite points in time from 0, each with its rate",
                cause=f"found times {self.times_s} and rates {self.rates_rps}",
            )
        if (np.diff(times) < 0).any() or times[-1] <= 0 or (rates < 0).any():
            listed = [f"{rate:g} at {at:g} s" for at, rate in zip(times, rates, strict=True)]
            raise TraceError(
                "rates are 0 requests/s or more, at times that ascend from 0",
                cause=f"found {', '.join(listed)}",
            )

    @property
    def duration_s(self) -> float:
        """When the curve ends."""
        return self.times_s[-1]

    @property
    def expected_requests(self) -> float:
        """The area under the curve."""
        return float(self._areas()[-1])

    def arrivals_s(self, generator: np.random.Generator) -> NDArray[np.float64]:
        """Arrivals from 0 to duration_s, ascending, in whole microseconds."""
        expected = self.expected_requests
        # Drawn in blocks: the count is not known beforehand. 6 sigma above the mean suffices
        # nearly always; the loop makes it always.
        block = int(expected + 6 * expected**0.5 + 10)
        counts = np.cumsum(unit_exponentials(generator, block))
        while counts[-1] < expected:
            more = counts[-1] + np.cumsum(unit_exponentials(generator, block))
            counts = np.concatenate([counts, more])
        return whole_microseconds(self._time_at(counts[counts < expected]))

    def _areas(self) -> NDArray[np.float64]:
        """Expected requests until each point."""
        times, rates = np.asarray(self.times_s), np.asarray(self.rates_rps)
        pieces = np.diff(times) * (rates[1:] + rates[:-1]) / 2
        return np.concatenate([[0.0], np.cumsum(pieces)])

    def _time_at(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        """When the expected count reaches each of ``counts``: a quadratic in each piece."""
        times, rates, areas = np.asarray(self.times_s), np.asarray(self.rates_rps), self._areas()
        piece = np.searchsorted(areas, counts, side="right") - 1
        width = times[piece + 1] - times[piece]
        start, slope = rates[piece], (rates[piece + 1] - rates[piece]) / width
        rest = counts - areas[piece]
        # The stable root of slope/2 t^2 + start t = rest; also right where slope is 0.
        root = np.sqrt(np.maximum(start * start + 2 * slope * rest, 0.0))
        both = start + root
        since = np.divide(2 * rest, both, out=np.zeros_like(rest), where=both > 0)
        at: NDArray[np.float64] = np.minimum(times[piece] + since, self.duration_s)
        return at


def poisson_arrivals_s(rate_rps: float, requests: int, seed: int) -> NDArray[np.float64]:
    """``requests`` Poisson arrivals at ``rate_rps``, the first at 0.

    Raises:
        TraceError: a rate that is not above zero.
    """
    if not (rate_rps > 0 and np.isfinite(rate_rps)):
        raise TraceError(f"a rate must be above 0 requests/s, found {rate_rps:g}")
    gaps = unit_exponentials(seeded(seed), requests) / rate_rps
    return whole_microseconds(np.cumsum(gaps) - gaps[:1].sum())


def seeded(seed: int, *path: int) -> np.random.Generator:
    """A generator for one purpose: the seed's child along ``path``.

    PCG64 is named because numpy may change its default.

    Raises:
        TraceError: a negative seed.
    """
    if seed < 0:
        raise TraceError(f"a seed is 0 or more, found {seed}")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=path)))


def unit_exponentials(generator: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Exponential draws of mean 1 by inversion; numpy's own method may change between versions.

    They are multiples of 2^-30: their sums are exact, and a log that differs in its last bit
    (numpy picks it by the CPU) makes no other trace.
    """
    draws: NDArray[np.float64] = np.rint(-np.log1p(-generator.random(count)) * 2**30) / 2**30
    return draws


def whole_microseconds(times_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Seconds rounded to microseconds."""
    rounded: NDArray[np.float64] = np.rint(times_s * _MICROSECONDS_PER_S) / _MICROSECONDS_PER_S
    return rounded
