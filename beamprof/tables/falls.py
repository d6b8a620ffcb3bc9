"""Passes that take less time than smaller ones at the same clock.

A pass does what any smaller one does, and more: fewer new tokens, and no more of anything else. So
it takes as long at least, but for what kernels gain by a batch that suits their waves and tiles
better: of measured tables the worst falls are 5 % (A100), 7 % (RTX PRO 6000) and 8.5 % (A6000).
Whoever forecasts by a table that falls fills up batches for a gain that is not there.
"""

from dataclasses import dataclass

import numpy as np

from beam_runtime.types import StepShape
from beamprof.tables.grid import CellGrid
from beamprof.tables.noise import RISE_AT_LEAST, RISE_SIGMAS, Residuals


@dataclass(frozen=True, slots=True)
class Fall:
    """A cell that takes less time than a smaller one. ``by``: fraction, negative."""

    smaller: StepShape
    cell: StepShape
    clock_mhz: int
    by: float


def falls(grid: CellGrid, found: Residuals) -> tuple[list[Fall], int]:
    """Rows faster, beyond noise, than the slowest of smaller cells; and how many rows have such.

    The worst first, one for each cell and clock.
    """
    sizes = np.array([
        (c.prefill_tokens, c.prefill_context_tokens, c.decode_requests, c.decode_context_tokens)
        for c in grid.cells
    ])  # fmt: skip
    tokens = sizes[:, 0] + sizes[:, 2]
    sigma = np.nan_to_num(np.fmax(found.cell_sigma, found.sigma))
    seen, judged = [], 0
    for line, cell in enumerate(grid.cells):
        smaller = np.flatnonzero((sizes <= sizes[line]).all(axis=1) & (tokens < tokens[line]))
        known = np.isfinite(grid.latency_ms[smaller])
        clocks = np.flatnonzero(known.any(axis=0) & np.isfinite(grid.latency_ms[line]))
        judged += clocks.size
        for column in clocks.tolist():
            slowest = int(smaller[np.nanargmax(grid.latency_ms[smaller, column])])
            by = float(grid.latency_ms[line, column] / grid.latency_ms[slowest, column] - 1)
            if -by > max(RISE_AT_LEAST, RISE_SIGMAS * max(sigma[line], sigma[slowest])):
                clock_mhz = int(grid.clocks_mhz[column])
                seen.append(Fall(grid.cells[slowest], cell, clock_mhz, by))
    return sorted(seen, key=lambda fall: fall.by), judged
