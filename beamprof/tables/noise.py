"""What a row's neighbours along the clock axis say about it: noise, outliers, rising latency.

Time and energy of one pass are smooth in the clock. So each row is compared with the cubic
through its four nearest neighbours (in the logarithm, where errors are relative). What all
cells share at one clock is physics, such as the knee of the voltage curve, and is taken out first.
A whole clock that is wrong for every cell is not an outlier, then: it stands out in what is
shared.
With fewer than five clocks the cubic is a parabola or a line, and curvature passes for noise.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from beam_runtime.types import StepShape
from beamprof.tables.grid import CellGrid

# Median |x| of a normal distribution, times this, is its standard deviation.
MAD_TO_SIGMA = 1.4826
NEIGHBOURS = 4
# With fewer cells than this, what they share at a clock cannot be told from their noise.
CELLS_TO_SHARE = 5
# An outlier stands this many standard deviations off its neighbours, and at least so far.
OUTLIER_SIGMAS = 6.0
OUTLIER_LATENCY = 0.10
OUTLIER_ENERGY = 0.20
# Rows of so many other cells, off to the same side at the same clock and at least half as far, make
# it physics: memory-bound passes share a knee in the clock that the median over all cells, most of
# them compute-bound, does not show.
COMPANY = 3
COMPANY_SHARE = 0.5
# Latency rises with the clock beyond noise: three standard deviations of a difference of two.
RISE_SIGMAS = 3.0 * 2**0.5
RISE_AT_LEAST = 0.02


@dataclass(frozen=True, slots=True)
class Noise:
    """Scatter of one quantity along the clock axis, as fractions.

    Attributes:
        sigma: robust standard deviation over all rows; NaN with fewer than three clocks.
        worst_cell_sigma, worst_cell: the noisiest cell.
    """

    sigma: float
    worst_cell_sigma: float
    worst_cell: StepShape


@dataclass(frozen=True, slots=True)
class Outlier:
    """A row that its neighbours along the clock axis contradict. ``off``: fraction, signed."""

    cell: StepShape
    clock_mhz: int
    field: str
    off: float


@dataclass(frozen=True, slots=True)
class Rise:
    """Latency that grows from one clock to the next higher one. ``by``: fraction."""

    cell: StepShape
    from_mhz: int
    to_mhz: int
    by: float


@dataclass(frozen=True, slots=True, eq=False)
class Residuals:
    """Logarithmic distance of each row from its neighbours; NaN where there are too few.

    Attributes:
        off: (N, M), after what all cells share at a clock is taken out.
        gain: (N, M) standard deviation of ``off`` per unit of noise in a row: large at the first
            and last clock, whose neighbours lie on one side only.
        shared: (M,) what was taken out.
    """

    off: NDArray[np.float64]
    gain: NDArray[np.float64]
    shared: NDArray[np.float64]

    @property
    def sigma(self) -> float:
        """Robust standard deviation of one row, over the table."""
        return _sigma(self.off / self.gain)

    @property
    def cell_sigma(self) -> NDArray[np.float64]:
        """(N,) the same for each cell."""
        return np.array([_sigma(line) for line in self.off / self.gain])


def odd_clock(found: Residuals, clocks_mhz: NDArray[np.int64]) -> tuple[int, float]:
    """The clock (MHz) at which all cells stand off their neighbours most, and how far.

    A fraction, signed, in units of what one row's noise would give; NaN with five clocks or fewer:
    then one clock's fault cannot be told from another's curvature.
    """
    told = np.isfinite(found.gain).any(axis=0)
    if told.sum() <= NEIGHBOURS + 1:
        return int(clocks_mhz[0]), float("nan")
    scaled = found.shared[told] / np.nanmedian(found.gain[:, told], axis=0)
    worst = int(np.argmax(np.abs(scaled)))
    return int(clocks_mhz[told][worst]), float(np.expm1(scaled[worst]))


def residuals(values: NDArray[np.float64], clocks_mhz: NDArray[np.int64]) -> Residuals:
    """Distance of each row from the cubic through its nearest clocks.

    Args:
        values: (N, M) cells by clocks, NaN for holes.
        clocks_mhz: (M,) ascending.
    """
    lines = [_against_neighbours(line, clocks_mhz) for line in np.log(values)]
    off = np.array([line[0] for line in lines])
    shared = np.zeros(len(clocks_mhz))
    judged = np.isfinite(off).sum(axis=0) >= CELLS_TO_SHARE
    shared[judged] = np.nanmedian(off[:, judged], axis=0)
    return Residuals(off=off - shared, gain=np.array([line[1] for line in lines]), shared=shared)


def _against_neighbours(
    logs: NDArray[np.float64], clocks_mhz: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    off, gain = np.full(len(logs), np.nan), np.full(len(logs), np.nan)
    known = np.flatnonzero(np.isfinite(logs))
    if len(known) < 3:
        return off, gain
    for place, column in enumerate(known.tolist()):
        near = _nearest(known, place)
        weights = _lagrange(clocks_mhz[near].astype(float), float(clocks_mhz[column]))
        off[column] = logs[column] - weights @ logs[near]
        gain[column] = np.sqrt(1 + weights @ weights)
    return off, gain


def noise(cells: tuple[StepShape, ...], found: Residuals) -> Noise:
    """Sum up residuals."""
    by_cell = found.cell_sigma
    if not np.isfinite(by_cell).any():
        return Noise(float("nan"), float("nan"), cells[0])
    worst = int(np.nanargmax(by_cell))
    return Noise(found.sigma, float(by_cell[worst]), cells[worst])


def outliers(
    grid: CellGrid, field: str, values: NDArray[np.float64], found: Residuals, at_least: float
) -> list[Outlier]:
    """Rows beyond ``at_least`` (a fraction) and OUTLIER_SIGMAS, the worst first.

    A bad row pulls its neighbours' residuals along. So the suspect of a cell is the row without
    which the others agree best, and its measure is their noise, not its own.
    """
    taken = []
    for line, cell in enumerate(grid.cells):
        logs = np.log(values[line])
        while np.isfinite(logs).sum() > NEIGHBOURS:
            off, gain = _against_neighbours(logs, grid.clocks_mhz)
            off -= found.shared
            if np.nanmax(np.abs(off)) <= np.log1p(at_least):
                break
            column, rest = _suspect(logs, grid.clocks_mhz, found.shared)
            sigma = np.fmax(_sigma(rest), found.sigma)
            if abs(off[column]) <= max(np.log1p(at_least), OUTLIER_SIGMAS * sigma * gain[column]):
                break
            told = abs(_off_the_line(np.log(values[line]), grid.clocks_mhz, column, off[column]))
            alone = not _in_company(off[column], np.delete(found.off[:, column], line))
            if alone and told > np.log1p(at_least):
                clock_mhz = int(grid.clocks_mhz[column])
                taken.append(Outlier(cell, clock_mhz, field, float(np.expm1(off[column]))))
            logs = _set_aside(logs, column)
    return sorted(taken, key=lambda outlier: -abs(np.log1p(outlier.off)))


def _off_the_line(
    logs: NDArray[np.float64], clocks_mhz: NDArray[np.int64], column: int, by_cubic: float
) -> float:
    """How far a row is off the power law through the next clock on either side.

    Where memory begins to limit a pass the curve has a kink, which misleads the cubics beside it,
    not this line. The first and the last clock have one side only: the cubic's word stands.
    """
    known = np.flatnonzero(np.isfinite(logs))
    place = int(np.searchsorted(known, column))
    if place in (0, len(known) - 1):
        return by_cubic
    beside = known[[place - 1, place + 1]]
    line = np.interp(np.log(clocks_mhz[column]), np.log(clocks_mhz[beside]), logs[beside])
    return float(logs[column] - line)


def _in_company(off: float, others: NDArray[np.float64]) -> bool:
    """Whether enough other cells stand off to the same side at this clock."""
    return int(np.sum(others / off >= COMPANY_SHARE)) >= COMPANY


def _suspect(
    logs: NDArray[np.float64], clocks_mhz: NDArray[np.int64], shared: NDArray[np.float64]
) -> tuple[int, NDArray[np.float64]]:
    """The column without which the others agree best, and what they are then off each other."""
    rests = {}
    for column in np.flatnonzero(np.isfinite(logs)).tolist():
        off, gain = _against_neighbours(_set_aside(logs, column), clocks_mhz)
        rests[column] = (off - shared) / gain
    best = min(rests, key=lambda column: float(np.nansum(rests[column] ** 2)))
    return best, rests[best]


def _set_aside(logs: NDArray[np.float64], column: int) -> NDArray[np.float64]:
    rest = logs.copy()
    rest[column] = np.nan
    return rest


def rises(grid: CellGrid, found: Residuals) -> list[Rise]:
    """Neighbouring clocks between which latency grows beyond noise, the worst first."""
    sigma = np.nan_to_num(np.fmax(found.cell_sigma, found.sigma))
    seen = []
    for line, cell in enumerate(grid.cells):
        known = np.flatnonzero(np.isfinite(grid.latency_ms[line]))
        for left, right in pairwise(known.tolist()):
            by = float(grid.latency_ms[line, right] / grid.latency_ms[line, left] - 1)
            if by > max(RISE_AT_LEAST, RISE_SIGMAS * sigma[line]):
                ends = grid.clocks_mhz[[left, right]].tolist()
                seen.append(Rise(cell, ends[0], ends[1], by))
    return sorted(seen, key=lambda rise: -rise.by)


def _nearest(known: NDArray[np.int64], place: int) -> NDArray[np.int64]:
    """Up to four neighbours of known[place], two a side but at the ends."""
    start = min(max(place - NEIGHBOURS // 2, 0), max(len(known) - NEIGHBOURS - 1, 0))
    window = known[start : start + NEIGHBOURS + 1]
    near: NDArray[np.int64] = window[window != known[place]]
    return near


def _lagrange(points: NDArray[np.float64], at: float) -> NDArray[np.float64]:
    """Weights of the polynomial through ``points``, evaluated ``at`` (Lagrange's form)."""
    weights = np.ones(len(points))
    for i, point in enumerate(points):
        others = np.delete(points, i)
        weights[i] = np.prod((at - others) / (point - others))
    return weights


def _sigma(values: NDArray[np.float64]) -> float:
    finite = values[np.isfinite(values)]
    return MAD_TO_SIGMA * float(np.median(np.abs(finite))) if finite.size else float("nan")
