"""A table's forward rows as matrices: one line per cell, one column per clock, NaN for a hole.

Every table tool looks at rows this way: along a line runs the clock, down a column the load.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.schema import RowKind
from beam_runtime.types import StepShape


@dataclass(frozen=True, slots=True, eq=False)
class CellGrid:
    """N cells by M clocks.

    Attributes:
        cells: what each line is a pass of, ordered by tokens, then context.
        clocks_mhz: (M,) ascending.
        latency_ms, energy_j: (N, M), NaN where the table has no such row.
        row: (N, M) index into the table's forward rows, -1 for a hole.
    """

    cells: tuple[StepShape, ...]
    clocks_mhz: NDArray[np.int64]
    latency_ms: NDArray[np.float64]
    energy_j: NDArray[np.float64]
    row: NDArray[np.int64]

    @classmethod
    def of(cls, table: PerfTable) -> "CellGrid":
        """Arrange a table's forward rows."""
        rows = table.rows(RowKind.FORWARD)
        steps = list(forward_steps(rows))
        cells = tuple(sorted(set(steps), key=_order))
        line_of = {cell: line for line, cell in enumerate(cells)}
        lines = np.array([line_of[step] for step in steps])
        clocks_mhz = np.unique(rows["clock_mhz"])
        columns = np.searchsorted(clocks_mhz, rows["clock_mhz"])
        shape = (len(cells), len(clocks_mhz))
        row = np.full(shape, -1)
        row[lines, columns] = np.arange(len(steps))
        latency_ms, energy_j = np.full(shape, np.nan), np.full(shape, np.nan)
        latency_ms[lines, columns] = rows["latency_ms"]
        energy_j[lines, columns] = rows["energy_j"]
        return cls(cells, clocks_mhz, latency_ms, energy_j, row)

    @property
    def holes(self) -> list[tuple[StepShape, int]]:
        """Cells and clocks (MHz) that other rows imply, but that have no row."""
        return [
            (self.cells[line], int(self.clocks_mhz[column]))
            for line, column in np.argwhere(self.row < 0).tolist()
        ]


def forward_steps(rows: "dict[str, NDArray[np.generic]]") -> Iterator[StepShape]:
    """Each forward row as a step."""
    keys = (
        rows["prefill_tokens"].tolist(),
        rows["prefill_context_tokens"].tolist(),
        rows["decode_requests"].tolist(),
        rows["decode_context_tokens"].tolist(),
    )
    for sizes in zip(*keys, strict=True):
        yield StepShape(*sizes)


def describe_step(step: StepShape) -> str:
    """A step in a few words: ``chunk 256 after 1,024 + 32 decodes over 40,000``."""
    parts = []
    if step.prefill_tokens:
        after = f" after {step.prefill_context_tokens:,}" if step.prefill_context_tokens else ""
        parts.append(f"chunk {step.prefill_tokens:,}{after}")
    if step.decode_requests:
        plural = "s" if step.decode_requests > 1 else ""
        parts.append(f"{step.decode_requests:,} decode{plural} over {step.decode_context_tokens:,}")
    return " + ".join(parts) or "nothing"


def _order(step: StepShape) -> tuple[int, ...]:
    return (
        step.tokens,
        step.prefill_context_tokens + step.decode_context_tokens,
        step.prefill_tokens,
        step.decode_requests,
    )
