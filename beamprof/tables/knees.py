"""The short answer of a table: what its main steps cost at the top, and at their cheapest clock."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beam_runtime.table.cost_fit import SHAPE_FIELDS
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.schema import RowKind
from beam_runtime.types import StepShape

# Steps that a reader knows from serving: decode batches over context, chunks without.
_DECODES = (1, 32, 64, 128, 256)
_CHUNKS = (128, 256, 512, 1024)


@dataclass(frozen=True, slots=True)
class Knee:
    """One step at the highest clock and at the clock where it takes the least energy.

    Attributes:
        step: a decode batch over context, or a chunk without.
        top_mhz, top_latency_ms, top_energy_j: at the highest clock.
        knee_mhz, knee_latency_ms, knee_energy_j: where energy per pass is least.
    """

    step: StepShape
    top_mhz: int
    top_latency_ms: float
    top_energy_j: float
    knee_mhz: int
    knee_latency_ms: float
    knee_energy_j: float

    @property
    def saved(self) -> float:
        """Share of the energy at the highest clock that the cheapest clock saves."""
        return 1.0 - self.knee_energy_j / self.top_energy_j


def knees(table: PerfTable) -> list[Knee]:
    """Up to nine steps that the table measured at its highest clock; small ones first."""
    rows = table.rows(RowKind.FORWARD)
    chunk, context = rows["prefill_tokens"], rows["prefill_context_tokens"]
    requests, kv = rows["decode_requests"], rows["decode_context_tokens"]
    found = []
    for tokens in _DECODES:
        batch = (requests == tokens) & (chunk == 0)
        if batch.any():
            found.append(_knee(rows, batch & (kv == kv[batch].max())))
    for tokens in _CHUNKS:
        alone = (chunk == tokens) & (context == 0) & (requests == 0)
        if alone.any():
            found.append(_knee(rows, alone))
    return found


def _knee(rows: dict[str, NDArray[Any]], step: NDArray[np.bool_]) -> Knee:
    at = np.flatnonzero(step)
    top = at[np.argmax(rows["clock_mhz"][at])]
    knee = at[np.argmin(rows["energy_j"][at])]
    return Knee(
        step=StepShape(*(int(rows[name][top]) for name in SHAPE_FIELDS)),
        top_mhz=int(rows["clock_mhz"][top]),
        top_latency_ms=float(rows["latency_ms"][top]),
        top_energy_j=float(rows["energy_j"][top]),
        knee_mhz=int(rows["clock_mhz"][knee]),
        knee_latency_ms=float(rows["latency_ms"][knee]),
        knee_energy_j=float(rows["energy_j"][knee]),
    )
