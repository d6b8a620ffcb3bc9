"""What a row's neighbours along the clock axis say about it: noise, outliers, rising latency.

Time and energy of one pass are smooth in the clock. So each row is compared with the cubic
through its four nearest neighbours (in the logarithm, where errors are relative). What all
cells share at one clock is physics, such as the knee of the voltage curve, and is taken out first.
A whole clock that is wrong for every cell is therefore not seen here: leave_one_out sees it.
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
# Latency rises with the clock beyond noise: three standard deviations of a difference of two.
RISE_SIGMAS = 3.0 * 2**0.5
RISE_AT_LEAST = 0.02


@dataclass(frozen=True, slots=True)
class Noise:
    """Scatter of one quantity along the clock axis, as fractions.

    Attributes:
        sigma: robust standard deviation over all rows; NaN with fewer than three clocks.
        worst_cell_sigma, worst_cell: the noisiest cell.
        worst_row: the largest distance of one row from its neighbours.
    """

    sigma: float
    worst_cell_sigma: float
    worst_cell: StepShape
    worst_row: float


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
    """(N, M) logarithmic distance of each row from its neighbours; NaN where there are too few.

    ``scaled`` is divided by what noise of one unit per row would give; ``off`` is not.
    """

    off: NDArray[np.float64]
    scaled: NDArray[np.float64]

    @property
    def sigma(self) -> float:
        """Robust standard deviation of one row, over the table."""
        return _sigma(self.scaled)

    @property
    def cell_sigma(self) -> NDArray[np.float64]:
        """(N,) the same for each cell, but never below the table's: few clocks tell little."""
        cells = np.array([_sigma(line) for line in self.scaled])
        floored: NDArray[np.float64] = np.fmax(cells, self.sigma)
        return floored


def residuals(values: NDArray[np.float64], clocks_mhz: NDArray[np.int64]) -> Residuals:
    """Distance of each row from the cubic through its nearest clocks.

    Args:
        values: (N, M) cells by clocks, NaN for holes.
        clocks_mhz: (M,) ascending.
    """
    logs = np.log(values)
    off, unit = np.full(values.shape, np.nan), np.full(values.shape, np.nan)
    for line in range(values.shape[0]):
        known = np.flatnonzero(np.isfinite(logs[line]))
        for place in range(1, len(known) - 1):
            near = _nearest(known, place)
            weights = _lagrange(clocks_mhz[near].astype(float), float(clocks_mhz[known[place]]))
            off[line, known[place]] = logs[line, known[place]] - weights @ logs[line, near]
            unit[line, known[place]] = np.sqrt(1 + weights @ weights)
    if values.shape[0] >= CELLS_TO_SHARE:
        judged = np.isfinite(off).sum(axis=0) >= CELLS_TO_SHARE
        off[:, judged] -= np.nanmedian(off[:, judged], axis=0)
    return Residuals(off=off, scaled=off / unit)


def noise(cells: tuple[StepShape, ...], found: Residuals) -> Noise:
    """Sum up residuals."""
    if not np.isfinite(found.off).any():
        return Noise(float("nan"), float("nan"), cells[0], float("nan"))
    by_cell = np.array([_sigma(line) for line in found.scaled])
    worst = int(np.nanargmax(by_cell))
    return Noise(
        sigma=found.sigma,
        worst_cell_sigma=float(by_cell[worst]),
        worst_cell=cells[worst],
        worst_row=float(np.expm1(np.nanmax(np.abs(found.off)))),
    )


def outliers(grid: CellGrid, field: str, found: Residuals, at_least: float) -> list[Outlier]:
    """Rows beyond ``at_least`` (a fraction) and OUTLIER_SIGMAS, the worst first.

    One bad row pulls its neighbours' residuals along, so of adjacent suspects only the worst
    stands.
    """
    limit = np.fmax(np.log1p(at_least), OUTLIER_SIGMAS * found.cell_sigma)[:, None]
    suspects = np.argwhere(np.abs(np.nan_to_num(found.off)) > limit).tolist()
    suspects.sort(key=lambda at: -abs(found.off[at[0], at[1]]))
    taken: list[tuple[int, int]] = []
    for line, column in suspects:
        if all(line != other or abs(column - place) > NEIGHBOURS // 2 for other, place in taken):
            taken.append((line, column))
    return [
        Outlier(
            grid.cells[line],
            int(grid.clocks_mhz[column]),
            field,
            float(np.expm1(found.off[line, column])),
        )
        for line, column in taken
    ]


def rises(grid: CellGrid, found: Residuals) -> list[Rise]:
    """Neighbouring clocks between which latency grows beyond noise, the worst first."""
    sigma = np.nan_to_num(found.cell_sigma)
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
    """Up to four neighbours of known[place], the nearest by position, at least one a side."""
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
