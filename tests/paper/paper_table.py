"""Tables on paper: any cells at any clocks, with costs that a test can reckon with."""

from collections.abc import Callable, Sequence

import numpy as np

from beam_runtime.table.perf_table import PerfTable
from beamprof.tables.table_file import seal_table

# C, its context, B, sum of contexts
Cell = tuple[int, int, int, int]


def paper_table(
    cells: Sequence[Cell],
    clocks_mhz: Sequence[int],
    pass_ms: Callable[[Cell, float], float],
    pass_j: Callable[[Cell, float], float],
    *,
    idle_w: float = 170.0,
    idle_rows: int = 1,
    **metadata: str,
) -> PerfTable:
    """A sealed table: every cell at every clock, and so many idle rows per clock."""
    rows = [("forward", clock, cell) for clock in clocks_mhz for cell in cells]
    rows += [("idle", clock, (0, 0, 0, 0)) for clock in clocks_mhz for _ in range(idle_rows)]
    forward = np.array([kind == "forward" for kind, _, _ in rows])
    shapes = np.array([cell for _, _, cell in rows])
    return seal_table(
        {
            "kind": np.array([kind for kind, _, _ in rows]),
            "clock_mhz": np.array([clock for _, clock, _ in rows]),
            "prefill_tokens": shapes[:, 0],
            "prefill_context_tokens": shapes[:, 1],
            "decode_requests": shapes[:, 2],
            "decode_context_tokens": shapes[:, 3],
            "latency_ms": np.where(forward, [pass_ms(cell, at) for _, at, cell in rows], 1000.0),
            "energy_j": np.where(forward, [pass_j(cell, at) for _, at, cell in rows], idle_w),
            "passes": np.ones(len(rows), dtype=np.int64),
            "source": np.array(["measured"] * len(rows)),
        },
        {
            "model": "small",
            "tp": "2",
            "pp": "4",
            "stage_layers": "4",
            "device": "paper",
            "energy_source": "paper",
            **metadata,
        },
    )
