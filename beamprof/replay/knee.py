"""The clock that a table recommends to somebody who may lock only one."""

import numpy as np

from beam_runtime.table.cost_fit import SHAPE_FIELDS
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.schema import RowKind


def knee_mhz(table: PerfTable) -> int:
    """The clock whose passes take the least energy, each against its own least, on average.

    Every step that the table measured at all of its clocks counts the same.
    """
    rows = table.rows(RowKind.FORWARD)
    clocks = np.unique(rows["clock_mhz"])
    steps = np.stack([rows[name] for name in SHAPE_FIELDS], axis=1)
    _, at_step = np.unique(steps, axis=0, return_inverse=True)
    energy_j = np.full((at_step.max() + 1, len(clocks)), np.nan)
    energy_j[at_step, np.searchsorted(clocks, rows["clock_mhz"])] = rows["energy_j"]
    whole = energy_j[~np.isnan(energy_j).any(axis=1)]
    if len(whole) == 0:  # a ragged table: what there is
        whole = energy_j
    relative = whole / np.nanmin(whole, axis=1, keepdims=True)
    return int(clocks[np.argmin(np.nanmean(relative, axis=0))])
