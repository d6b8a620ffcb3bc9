"""Should this table drive a controller? Every ground for doubt measured, against a stated limit.

The loader has refused what is broken (damaged, not finite, duplicated, in another unit). Here a
table that loads is judged. The limits and why they are there:

    clocks               2 or more: with one there is nothing to choose.
    clocks on offer      all of them: a clock that no GPU can be locked to was none that a pass ran
                         at, and a controller would ask for it in vain.
    kinds of steps       chunks and decodes: what was never measured costs nothing in a forecast.
    contexts             the cost of KV context must follow from the rows: tables with a single
                         context are 6 to 17 % wrong on mixed batches.
    between clocks       latency 3 %, energy 6 %, expected from leaving clocks out (see
                         leave_one_out.between_clocks). Nine measured clocks of an A100 come to
                         0.5-0.8 and 1.3-3.1 %, five to 0.6-1.2 and 1.9-2.8 %, three to 2-2.4 and
                         7.8 %: with three, the minimum of energy lies between them, unseen.
    clock outlier        all cells together off their neighbours by 5 % of latency or 10 % of
                         energy at one clock: it was not set. Real ones reach 3.5 % where the
                         memory system changes gear (660-690 MHz on the A100).
    between cells        latency 10 % in the median cell left out. The worst cells may be far
                         worse: they are edges of the tile staircase, which is why they were
                         measured.
    held-out mixed cells latency 5 %, energy 8 %: what a served batch looks like.
    noise                latency 3 %, energy 6 % (one standard deviation of a row): of that order
                         are the gains that a controller hunts.
    outliers             none: a single fast row at a slow clock draws every decision to it.
    rising latency       none above 10 %, and at most 2 % of steps: a higher clock that is slower
                         is a measuring fault, but at the power cap a few per cent happen.
    latency by tokens    none falls by more than 10 % with more tokens: kernels that fill their
                         waves better gain 8.5 % at most in measured tables (see falls).
    holes                5 % of rows: they are filled from the nearest clock.
    clock not reached    1 % of rows, the power cap aside: such a row shows another clock's cost.
    confidence           half-width 5 % of latency, 10 % of energy in the median row.
    waiting power        no pass draws less than 95 % of what the same GPUs draw waiting at that
                         clock. The lightest passes of shipped and imported tables draw 1.5 to 2
                         times as much, so noise does not come near: it is one GPU's meter read for
                         several, or a node's for one.

A controller itself refuses the kinds of steps and the waiting power (beam_runtime.table.servable)
and contexts that its fit cannot tell: with these every decision would be wrong. It goes by a table
that only falls short of the other limits: that costs some of the gain, and margins that widen with
what steps really take bear the rest.

What this cannot know: whether the GPU that will serve is like the one that was measured.
"""

from dataclasses import dataclass
from pathlib import Path

from beam_runtime.table.perf_table import PerfTable
from beam_runtime.types import StepShape
from beamprof.tables.doubts import compared
from beamprof.tables.falls import Fall, falls
from beamprof.tables.findings import (
    Finding,
    Limits,
    count_not_reached,
    judge_between_clocks,
    judge_by_cell,
    judge_clocks,
    judge_confidence,
    judge_contexts,
    judge_falls,
    judge_held_out,
    judge_holes,
    judge_kinds,
    judge_noise,
    judge_odd_clock,
    judge_offered,
    judge_outliers,
    judge_reached,
    judge_rises,
    judge_waiting,
)
from beamprof.tables.grid import CellGrid
from beamprof.tables.leave_one_out import (
    CellError,
    ClockError,
    RelativeError,
    errors_by_cell,
    errors_by_clock,
    held_out_error,
)
from beamprof.tables.noise import (
    OUTLIER_ENERGY,
    OUTLIER_LATENCY,
    Noise,
    Outlier,
    Rise,
    noise,
    outliers,
    residuals,
    rises,
)


@dataclass(frozen=True, slots=True)
class TableCheck:
    """Everything that was found, and the verdict.

    Attributes:
        by_clock, by_cell, held_out: forecasts of rows that were left out (leave_one_out).
        latency_noise, energy_noise: scatter along the clock axis (noise).
        outliers, rises, falls, holes: rows to look at, the worst first.
        not_reached: rows whose clock fell below the lock, the power cap aside; None = unrecorded.
        findings: one per question, in the order of the module's list.
        compared: whether its numbers, or the model that made them, were held against hardware.
        modelled: some of its numbers were not measured.
    """

    by_clock: tuple[ClockError, ...]
    by_cell: tuple[CellError, ...]
    held_out: RelativeError | None
    latency_noise: Noise
    energy_noise: Noise
    outliers: tuple[Outlier, ...]
    rises: tuple[Rise, ...]
    falls: tuple[Fall, ...]
    holes: tuple[tuple[StepShape, int], ...]
    not_reached: int | None
    findings: tuple[Finding, ...]
    compared: bool = True
    modelled: bool = False

    @property
    def drivable(self) -> bool:
        """Whether the table should drive a controller: no finding says no."""
        return all(finding.ok is not False for finding in self.findings)


def check_table(table: PerfTable | str | Path, limits: Limits | None = None) -> TableCheck:
    """Examine a loaded table.

    Args:
        table: as PerfTable.load returned it.
        limits: what to hold it against.
    """
    table = PerfTable.of(table)
    limits = limits or Limits()
    grid = CellGrid.of(table)
    latency, energy = (
        residuals(values, grid.clocks_mhz) for values in (grid.latency_ms, grid.energy_j)
    )
    suspects = [
        *outliers(grid, "latency_ms", grid.latency_ms, latency, OUTLIER_LATENCY),
        *outliers(grid, "energy_j", grid.energy_j, energy, OUTLIER_ENERGY),
    ]
    by_clock, by_cell, held_out = (
        errors_by_clock(table),
        errors_by_cell(table),
        held_out_error(table),
    )
    latency_noise, energy_noise = noise(grid.cells, latency), noise(grid.cells, energy)
    rising = rises(grid, latency)
    falling, judged = falls(grid, latency)
    holes = grid.holes
    not_reached = count_not_reached(table)
    findings = (
        judge_clocks(grid),
        judge_offered(table),
        judge_kinds(table, grid),
        judge_contexts(table, grid),
        judge_between_clocks(by_clock, limits),
        judge_odd_clock(latency, energy, grid, limits),
        judge_by_cell(by_cell, limits),
        judge_held_out(held_out, limits),
        judge_noise(latency_noise, energy_noise, limits),
        judge_outliers(suspects),
        judge_rises(rising, grid, limits),
        judge_falls(falling, judged, limits),
        judge_holes(holes, grid, limits),
        judge_reached(not_reached, table, limits),
        judge_confidence(table, limits),
        judge_waiting(table),
    )
    return TableCheck(
        by_clock=by_clock,
        by_cell=by_cell,
        held_out=held_out,
        latency_noise=latency_noise,
        energy_noise=energy_noise,
        outliers=tuple(suspects),
        rises=tuple(rising),
        falls=tuple(falling),
        holes=tuple(holes),
        not_reached=not_reached,
        findings=findings,
        compared=compared(table),
        modelled="modelled" in table.sources,
    )
