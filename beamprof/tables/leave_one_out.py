"""How well StepCost predicts rows that it was not shown.

Leaving out a clock says what interpolation between clocks costs; the first and last clock cannot
be judged, for nothing lies beyond them. Leaving out a cell says what the grid of tokens and
contexts costs. Both make the grid coarser where they look, so both state more than the error of
the whole table, least so where the grid is fine. The edge of a tile staircase is the exception
that proves its worth: without it, its neighbours cannot know about the step.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beam_runtime.errors import TableError
from beam_runtime.table.cost_fit import held_out
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.schema import RowKind
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import Origin, StepShape
from beamprof.tables.grid import CellGrid, forward_steps


@dataclass(frozen=True, slots=True)
class RelativeError:
    """Forecast against row: mean |relative error| (MAPE), mean relative error (bias), rows."""

    latency_mape: float
    energy_mape: float
    latency_bias: float
    energy_bias: float
    rows: int

    @classmethod
    def of(
        cls, latency: NDArray[np.float64], energy: NDArray[np.float64]
    ) -> "RelativeError | None":
        """From relative errors of each row (fractions; NaN = no such row). None without rows."""
        latency, energy = latency[np.isfinite(latency)], energy[np.isfinite(energy)]
        if latency.size == 0:
            return None
        return cls(
            latency_mape=float(np.abs(latency).mean()),
            energy_mape=float(np.abs(energy).mean()),
            latency_bias=float(latency.mean()),
            energy_bias=float(energy.mean()),
            rows=int(latency.size),
        )


@dataclass(frozen=True, slots=True)
class ClockError:
    """One clock predicted from the others."""

    clock_mhz: int
    error: RelativeError


@dataclass(frozen=True, slots=True)
class BetweenClocks:
    """What the whole table is expected to be off between its clocks, as fractions."""

    latency: float
    energy: float


@dataclass(frozen=True, slots=True)
class CellError:
    """One cell predicted, over all clocks, from the other cells."""

    cell: StepShape
    error: RelativeError


def errors_by_clock(table: PerfTable) -> tuple[ClockError, ...]:
    """Leave out each inner clock in turn, refit, and compare with its rows."""
    grid = CellGrid.of(table)
    found = []
    for column in range(1, len(grid.clocks_mhz) - 1):
        clock_mhz = int(grid.clocks_mhz[column])
        cost = _fitted(_without(table, table.columns["clock_mhz"] == clock_mhz), [clock_mhz])
        if cost is None:
            continue
        error = _error_of(
            cost, grid.cells, grid.latency_ms[:, [column]], grid.energy_j[:, [column]]
        )
        if error:
            found.append(ClockError(clock_mhz, error))
    return tuple(found)


def between_clocks(errors: tuple[ClockError, ...]) -> BetweenClocks | None:
    """From leaving clocks out to the error of the table that has them all.

    What all cells are off alike at a clock (the bias) is curvature that straight lines miss. It
    grows with the gap squared, and leaving a clock out doubled the gap: a quarter of it remains.
    The rest is noise, and stays. On three measured A100 tables thinned from 31 to 9, 5 and 3
    clocks, this came out at 0.3 to 1.5 times the true error at the clocks thinned out, most often
    at 0.6 of it.
    """
    if not errors:
        return None

    def remaining(mape: float, bias: float) -> float:
        return mape - 0.75 * abs(bias)

    return BetweenClocks(
        latency=float(
            np.mean([remaining(e.error.latency_mape, e.error.latency_bias) for e in errors])
        ),
        energy=float(
            np.mean([remaining(e.error.energy_mape, e.error.energy_bias) for e in errors])
        ),
    )


def errors_by_cell(table: PerfTable) -> tuple[CellError, ...]:
    """Leave out each cell in turn, refit, and compare with its rows.

    A cell at the rim, which the others do not enclose, is not judged: it would be extrapolated.
    Nor is one that StepCost keeps out of the fit anyway (see held_out_error).
    """
    grid = CellGrid.of(table)
    rows = table.rows(RowKind.FORWARD)
    steps = list(forward_steps(rows))
    unfitted = {
        step for step, kept_out in zip(steps, held_out(rows).tolist(), strict=True) if kept_out
    }
    line_of = {cell: line for line, cell in enumerate(grid.cells)}
    lines = np.full(len(table), -1)
    lines[table.columns["kind"] == str(RowKind.FORWARD)] = [line_of[step] for step in steps]
    found = []
    for line, cell in enumerate(grid.cells):
        if cell in unfitted:
            continue
        cost = _fitted(_without(table, lines == line), table.clocks_mhz)
        if cost is None or cost.predict(cell).origin is Origin.EXTRAPOLATED:
            continue
        error = _error_of(cost, [cell], grid.latency_ms[[line]], grid.energy_j[[line]])
        if error:
            found.append(CellError(cell, error))
    return tuple(found)


def held_out_error(table: PerfTable) -> RelativeError | None:
    """Mixed cells (chunk and decodes together) that StepCost keeps out of its fit for this.

    None where the table has none to spare.
    """
    rows = table.rows(RowKind.FORWARD)
    mask = held_out(rows)
    cost = _fitted(table, table.clocks_mhz) if mask.any() else None
    if cost is None:
        return None
    latency, energy = np.full(len(mask), np.nan), np.full(len(mask), np.nan)
    for row, (step, clock_mhz) in enumerate(
        zip(forward_steps(rows), rows["clock_mhz"].tolist(), strict=True)
    ):
        if mask[row]:
            at = int(np.searchsorted(cost.clocks_mhz, clock_mhz))
            latency[row] = cost.latency_ms(step)[at] / rows["latency_ms"][row] - 1
            energy[row] = cost.energy_j(step)[at] / rows["energy_j"][row] - 1
    return RelativeError.of(latency, energy)


def _fitted(table: PerfTable, clocks_mhz: "tuple[int, ...] | list[int]") -> StepCost | None:
    try:
        return StepCost.from_table(table, clocks_mhz)
    except TableError:  # what is left over is too little to fit, or does not enclose the clock
        return None


def _error_of(
    cost: StepCost,
    cells: "tuple[StepShape, ...] | list[StepShape]",
    latency_ms: NDArray[np.float64],
    energy_j: NDArray[np.float64],
) -> RelativeError | None:
    latency = np.array([cost.latency_ms(cell) for cell in cells]) / latency_ms - 1
    energy = np.array([cost.energy_j(cell) for cell in cells]) / energy_j - 1
    return RelativeError.of(latency, energy)


def _without(table: PerfTable, mask: NDArray[np.bool_]) -> PerfTable:
    # Rows of a checked table stay checked, so the checksum need not be made anew.
    columns = {name: values[~mask] for name, values in table.columns.items()}
    return PerfTable(columns, table.metadata)
