"""A table smoothed along the clock: the truth of a simulated server, without noise to exploit.

Measured points scatter from clock to clock (2.7 % on the 70B table, 10 % at worst). A policy that
picks the cheapest of many noisy points, and is paid with the same points, is paid for the
noise. So every cell's latency becomes a cubic in 1 / f that never rises with the clock, and its
energy a cubic in f, both fitted to relative errors. (a / f + b alone is off by 4 % to either
side at the same clocks in all cells of the 70B table: that is no scatter.)

The controller smooths its own table, too (beam_runtime/table/smoothing.py), by fitted parts
and not by rows: two roads, so that what it believes is not what is true by construction.
"""

import numpy as np
from numpy.typing import NDArray

from beam_runtime.table.cost_fit import SHAPE_FIELDS
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.schema import RowKind
from beamprof.tables.table_file import seal_table

# A cubic through fewer points than this would follow their noise.
_LEAST_CLOCKS = 7

Floats = NDArray[np.float64]


def smoothed(table: PerfTable) -> PerfTable:
    """The same cells at the same clocks; cells at few clocks stay as they are."""
    columns = dict(table.columns)
    latency_ms, energy_j = columns["latency_ms"].copy(), columns["energy_j"].copy()
    forward = np.flatnonzero(columns["kind"] == RowKind.FORWARD)
    cells = np.stack([columns[name][forward] for name in SHAPE_FIELDS], axis=1)
    _, at_cell = np.unique(cells, axis=0, return_inverse=True)
    for cell in range(at_cell.max() + 1):
        rows = forward[at_cell == cell]
        if len(rows) < _LEAST_CLOCKS:
            continue
        rows = rows[np.argsort(columns["clock_mhz"][rows])]
        ghz = columns["clock_mhz"][rows] / 1e3
        latency_ms[rows] = np.minimum.accumulate(_cubic(1.0 / ghz, latency_ms[rows]))
        energy_j[rows] = _cubic(ghz, energy_j[rows])
    return seal_table({**columns, "latency_ms": latency_ms, "energy_j": energy_j}, table.metadata)


def _cubic(at: Floats, values: Floats) -> Floats:
    terms = np.vander(at, 4)
    solution = np.linalg.lstsq(terms / values[:, None], np.ones(len(at)), rcond=None)[0]
    fitted: Floats = terms @ solution
    return fitted
