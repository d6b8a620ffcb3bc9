"""What one step costs, by the table: at one clock or at all, and how the answer was reached."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beam_runtime.errors import CoverageError
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.schema import RowKind
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import Origin, StepShape
from beamprof.tables.grid import forward_steps
from beamprof.tables.offered_clocks import check_offered


@dataclass(frozen=True, slots=True)
class LookupRow:
    """The step at one clock.

    Attributes:
        latency_ms, energy_j: StepCost's answer, which a controller acts on.
        measured_latency_ms, measured_energy_j: the table's own row for this very pass, if any.
        origin: measured (such a row exists), interpolated or extrapolated.
        clocks_below_above_mhz: the measured clocks that the answer lies on or between.
        power_w: mean over the pass, the stage's tp GPUs together.
    """

    clock_mhz: int
    latency_ms: float
    energy_j: float
    power_w: float
    origin: Origin
    clocks_below_above_mhz: tuple[int, int]
    measured_latency_ms: float | None = None
    measured_energy_j: float | None = None


@dataclass(frozen=True, slots=True)
class Lookup:
    """A step over clocks.

    Attributes:
        step: what was asked.
        rows: one per clock, ascending.
        best_clock_mhz: the row of least energy.
        edges_tokens: the measured token counts that the linear part lies on or between; one value
            twice where the step is beyond them.
        outside: why the step is outside the table, in words; empty when it is inside.
    """

    step: StepShape
    rows: tuple[LookupRow, ...]
    best_clock_mhz: int
    edges_tokens: tuple[int, int]
    outside: str


def lookup_step(
    table: PerfTable | str | Path,
    step: StepShape,
    *,
    clock_mhz: int | None = None,
    extrapolate: bool = False,
) -> Lookup:
    """Ask a table for a step's latency and energy.

    Args:
        table: what to ask.
        step: at least one token.
        clock_mhz: one clock, measured or between measured ones; None = all measured ones.
        extrapolate: answer outside what the table covers too, marked as such. Clocks are never
            extrapolated: the voltage curve beyond them is unknown.

    Raises:
        CoverageError: no tokens, or outside the table without ``extrapolate``.
        ClockUnavailableError: a clock that the table's GPUs do not offer.
        TableError: a table too small to fit.
    """
    table = PerfTable.of(table)
    if step.tokens == 0:
        raise CoverageError(
            "a step without tokens costs nothing: nothing to look up",
            hint="name a chunk or decodes: --prefill 256, --decode 32 --decode-context 40000",
        )
    if clock_mhz is not None and table.clocks_mhz[0] <= clock_mhz <= table.clocks_mhz[-1]:
        check_offered(table, clock_mhz)
    cost = StepCost.from_table(table, None if clock_mhz is None else [clock_mhz])
    outside = cost.fit.outside(step)
    if outside and not extrapolate:
        raise CoverageError(
            f"the table does not cover this step: {outside}",
            hint="ask nearer to what was measured (beam table inspect shows it), profile larger "
            "steps, or take a guess with --extrapolate",
        )
    measured = _measured(table, step)
    latency_ms, energy_j = cost.latency_ms(step), cost.energy_j(step)
    rows = []
    for clock, latency, energy in zip(
        cost.clocks_mhz.tolist(), latency_ms.tolist(), energy_j.tolist(), strict=True
    ):
        own = measured.get(clock)
        origin = Origin.EXTRAPOLATED if outside else Origin.INTERPOLATED
        rows.append(
            LookupRow(
                clock_mhz=clock,
                latency_ms=latency,
                energy_j=energy,
                power_w=energy / latency * 1e3,
                origin=Origin.MEASURED if own else origin,
                clocks_below_above_mhz=_around(cost.fit.clocks_mhz, clock),
                measured_latency_ms=own[0] if own else None,
                measured_energy_j=own[1] if own else None,
            )
        )
    best = min(rows, key=lambda row: row.energy_j)
    edges = _around(cost.fit.measured_tokens, step.tokens)
    return Lookup(step, tuple(rows), best.clock_mhz, edges, outside)


def _measured(table: PerfTable, step: StepShape) -> dict[int, tuple[float, float]]:
    rows = table.rows(RowKind.FORWARD)
    return {
        int(rows["clock_mhz"][row]): (
            float(rows["latency_ms"][row]),
            float(rows["energy_j"][row]),
        )
        for row, cell in enumerate(forward_steps(rows))
        if cell == step
    }


def _around(known: NDArray[Any], asked: int) -> tuple[int, int]:
    """The nearest known values at or below and at or above; the rim twice where beyond it."""
    right = int(np.clip(np.searchsorted(known, asked), 0, len(known) - 1))
    if known[right] <= asked or right == 0:
        return int(known[right]), int(known[right])
    return int(known[right - 1]), int(known[right])
