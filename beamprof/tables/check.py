"""Should this table drive a controller? Every doubt measured, against a stated limit.

The loader has refused what is broken (damaged, not finite, duplicated, in another unit). Here a
table that loads is judged. The limits and why they are there:

    clocks               2 or more: with one there is nothing to choose.
    contexts             the cost of KV context must follow from the rows: tables with a single
                         context are 6 to 17 % wrong on mixed batches.
    between clocks       latency 3 %, energy 6 %, expected from leaving clocks out (see
                         leave_one_out.between_clocks). Nine measured clocks of an A100 come to
                         0.5-0.8 and 1.3-3.1 %, five to 0.6-1.2 and 1.9-2.8 %, three to 2-2.4 and
                         7.8 %: with three, the minimum of energy lies between them, unseen.
    one clock odd        all cells together off their neighbours by 5 % of latency or 10 % of
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
    holes                5 % of rows: they are filled from the nearest clock.
    clock not reached    1 % of rows, the power cap aside: such a row shows another clock's cost.
    confidence           half-width 5 % of latency, 10 % of energy in the median row.

What this cannot know: whether the GPU that will serve is like the one that was measured.
"""

import math
from dataclasses import dataclass

import numpy as np

from beam_runtime.cost_fit import fit_table
from beam_runtime.errors import TableError
from beam_runtime.schema import RowKind
from beam_runtime.table import PerfTable
from beam_runtime.types import StepShape
from beamprof.tables.grid import CellGrid, describe_step
from beamprof.tables.leave_one_out import (
    CellError,
    ClockError,
    RelativeError,
    between_clocks,
    errors_by_cell,
    errors_by_clock,
    held_out_error,
)
from beamprof.tables.noise import (
    OUTLIER_ENERGY,
    OUTLIER_LATENCY,
    Noise,
    Outlier,
    Residuals,
    Rise,
    noise,
    odd_clock,
    outliers,
    residuals,
    rises,
)

# A GPU that runs this far below its lock does not run at it.
REACHED_SHARE = 0.99


@dataclass(frozen=True, slots=True)
class Limits:
    """Beyond these a table should not drive a controller. Fractions; reasons in the module."""

    between_clocks_latency: float = 0.03
    between_clocks_energy: float = 0.06
    odd_clock_latency: float = 0.05
    odd_clock_energy: float = 0.10
    cell_latency: float = 0.10
    held_out_latency: float = 0.05
    held_out_energy: float = 0.08
    noise_latency: float = 0.03
    noise_energy: float = 0.06
    worst_rise: float = 0.10
    rising_steps: float = 0.02
    holes: float = 0.05
    not_reached: float = 0.01
    confidence_latency: float = 0.05
    confidence_energy: float = 0.10


@dataclass(frozen=True, slots=True)
class Finding:
    """One question to the table.

    Attributes:
        name: what was looked at.
        ok: whether it is within its limit; None where the table cannot say.
        text: what was found, in numbers, and the limit.
        hint: what helps where it is not ok.
    """

    name: str
    ok: bool | None
    text: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class TableCheck:
    """Everything that was found, and the verdict.

    Attributes:
        by_clock, by_cell, held_out: forecasts of rows that were left out (leave_one_out).
        latency_noise, energy_noise: scatter along the clock axis (noise).
        outliers, rises, holes: rows to look at, the worst first.
        not_reached: rows whose clock fell below the lock, the power cap aside; None = unrecorded.
        findings: one per question, in the order of the module's list.
    """

    by_clock: tuple[ClockError, ...]
    by_cell: tuple[CellError, ...]
    held_out: RelativeError | None
    latency_noise: Noise
    energy_noise: Noise
    outliers: tuple[Outlier, ...]
    rises: tuple[Rise, ...]
    holes: tuple[tuple[StepShape, int], ...]
    not_reached: int | None
    findings: tuple[Finding, ...]

    @property
    def drivable(self) -> bool:
        """Whether the table should drive a controller: no finding says no."""
        return all(finding.ok is not False for finding in self.findings)


def check_table(table: PerfTable, limits: Limits | None = None) -> TableCheck:
    """Examine a loaded table.

    Args:
        table: as PerfTable.load returned it.
        limits: what to hold it against.
    """
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
    holes = grid.holes
    not_reached = _not_reached(table)
    findings = (
        _clocks(grid),
        _contexts(table, grid),
        _between_clocks(by_clock, limits),
        _odd_clock(latency, energy, grid, limits),
        _by_cell(by_cell, limits),
        _held_out(held_out, limits),
        _noise(latency_noise, energy_noise, limits),
        _outliers(suspects),
        _rises(rising, grid, limits),
        _holes(holes, grid, limits),
        _reached(not_reached, table, limits),
        _confidence(table, limits),
    )
    return TableCheck(
        by_clock=by_clock,
        by_cell=by_cell,
        held_out=held_out,
        latency_noise=latency_noise,
        energy_noise=energy_noise,
        outliers=tuple(suspects),
        rises=tuple(rising),
        holes=tuple(holes),
        not_reached=not_reached,
        findings=findings,
    )


def _clocks(grid: CellGrid) -> Finding:
    clocks = grid.clocks_mhz
    if len(clocks) < 2:
        return Finding(
            "clocks",
            False,
            f"1 clock, {clocks[0]} MHz: nothing to choose between",
            "profile more of them: --clocks all",
        )
    return Finding("clocks", True, f"{len(clocks)} clocks, {clocks[0]} to {clocks[-1]} MHz")


def _contexts(table: PerfTable, grid: CellGrid) -> Finding:
    hint = "profile decode batches of one size over two contexts or more"
    try:
        fit_table(table)
    except TableError as error:
        return Finding("contexts", False, error.message, error.hint or hint)
    decode: dict[tuple[int, int, int], set[int]] = {}
    chunk: dict[tuple[int, int, int], set[int]] = {}
    for cell in grid.cells:
        if cell.decode_requests:
            batch = (cell.prefill_tokens, cell.prefill_context_tokens, cell.decode_requests)
            decode.setdefault(batch, set()).add(cell.decode_context_tokens)
        if cell.prefill_tokens:
            beside = (cell.prefill_tokens, cell.decode_requests, cell.decode_context_tokens)
            chunk.setdefault(beside, set()).add(cell.prefill_context_tokens)
    if not decode:
        return Finding("contexts", False, "no decode batches at all", hint)
    if max(map(len, decode.values())) < 2:
        text = "each decode batch stands over one context only: what context costs is unknown"
        return Finding("contexts", False, text, hint)
    if not chunk or max(map(len, chunk.values())) < 2:
        text = "decode context measured; chunks over earlier context derived, not measured"
        return Finding("contexts", True, text)
    return Finding("contexts", True, "decode batches and chunks both measured over several")


def _between_clocks(errors: tuple[ClockError, ...], limits: Limits) -> Finding:
    name = "between clocks"
    expected = between_clocks(errors)
    if expected is None:
        return Finding(name, None, "needs three clocks or more")
    latency = float(np.mean([fold.error.latency_mape for fold in errors]))
    energy = float(np.mean([fold.error.energy_mape for fold in errors]))
    worst = max(errors, key=lambda fold: fold.error.energy_mape)
    ok = (
        expected.latency <= limits.between_clocks_latency
        and expected.energy <= limits.between_clocks_energy
    )
    text = (
        f"expected error: latency {expected.latency:.1%}, energy {expected.energy:.1%}; a clock "
        f"left out is foretold to {latency:.1%} and {energy:.1%} (worst energy "
        f"{worst.error.energy_mape:.1%} at {worst.clock_mhz} MHz); limits "
        f"{limits.between_clocks_latency:.0%}, {limits.between_clocks_energy:.0%}"
    )
    return Finding(name, ok, text, "profile more clocks: --clocks all, or some between these")


def _odd_clock(latency: Residuals, energy: Residuals, grid: CellGrid, limits: Limits) -> Finding:
    name = "one clock odd"
    latency_mhz, latency_off = odd_clock(latency, grid.clocks_mhz)
    energy_mhz, energy_off = odd_clock(energy, grid.clocks_mhz)
    if math.isnan(latency_off) or math.isnan(energy_off):
        return Finding(name, None, "needs six clocks or more")
    ok = abs(latency_off) <= limits.odd_clock_latency and abs(energy_off) <= limits.odd_clock_energy
    text = (
        f"all cells off their neighbours: latency {latency_off:+.1%} at {latency_mhz} MHz, energy "
        f"{energy_off:+.1%} at {energy_mhz} MHz; limits {limits.odd_clock_latency:.0%}, "
        f"{limits.odd_clock_energy:.0%}"
    )
    return Finding(name, ok, text, "measure that clock again, with the clock read back")


def _by_cell(errors: tuple[CellError, ...], limits: Limits) -> Finding:
    name = "between cells"
    if not errors:
        return Finding(name, None, "no cell that others enclose")
    latency = float(np.median([fold.error.latency_mape for fold in errors]))
    energy = float(np.median([fold.error.energy_mape for fold in errors]))
    worst = max(errors, key=lambda fold: fold.error.latency_mape)
    text = (
        f"median cell left out: latency {latency:.1%}, energy {energy:.1%}; worst latency "
        f"{worst.error.latency_mape:.1%}, {describe_step(worst.cell)}; limit "
        f"{limits.cell_latency:.0%} in the median"
    )
    return Finding(
        name, latency <= limits.cell_latency, text, "profile more token counts and contexts"
    )


def _held_out(error: RelativeError | None, limits: Limits) -> Finding:
    name = "held-out mixed cells"
    if error is None:
        return Finding(name, None, "none kept out of the fit")
    ok = (
        error.latency_mape <= limits.held_out_latency
        and error.energy_mape <= limits.held_out_energy
    )
    text = (
        f"{error.rows} rows: latency {error.latency_mape:.1%}, energy {error.energy_mape:.1%}; "
        f"limits {limits.held_out_latency:.0%}, {limits.held_out_energy:.0%}"
    )
    return Finding(name, ok, text, "profile more contexts, or look at the cells beside them")


def _noise(latency: Noise, energy: Noise, limits: Limits) -> Finding:
    if math.isnan(latency.sigma):
        return Finding("noise", None, "needs three clocks or more")
    ok = latency.sigma <= limits.noise_latency and energy.sigma <= limits.noise_energy
    text = (
        f"latency {latency.sigma:.1%}, energy {energy.sigma:.1%} a row (noisiest energy "
        f"{energy.worst_cell_sigma:.1%}, {describe_step(energy.worst_cell)}); limits "
        f"{limits.noise_latency:.0%}, {limits.noise_energy:.0%}"
    )
    return Finding("noise", ok, text, "measure longer windows, or more trials")


def _outliers(found: list[Outlier]) -> Finding:
    if not found:
        return Finding("outliers", True, "none")
    worst = max(found, key=lambda outlier: abs(math.log1p(outlier.off)))
    text = (
        f"{len(found)}; worst {worst.field} {worst.off:+.0%} off its neighbours, "
        f"{describe_step(worst.cell)} at {worst.clock_mhz} MHz"
    )
    return Finding("outliers", False, text, "measure these rows again, and merge --prefer newest")


def _rises(found: list[Rise], grid: CellGrid, limits: Limits) -> Finding:
    steps = max(1, int(np.isfinite(grid.latency_ms).sum()) - len(grid.cells))
    if not found:
        return Finding("rising latency", True, "none beyond noise")
    worst = found[0]
    ok = worst.by <= limits.worst_rise and len(found) / steps <= limits.rising_steps
    text = (
        f"{len(found)} of {steps} steps up in clock; worst {worst.by:+.1%} from {worst.from_mhz} "
        f"to {worst.to_mhz} MHz, {describe_step(worst.cell)}; limits {limits.worst_rise:.0%}, "
        f"{limits.rising_steps:.0%} of steps"
    )
    return Finding("rising latency", ok, text, "measure these rows again, with the clock read back")


def _holes(found: list[tuple[StepShape, int]], grid: CellGrid, limits: Limits) -> Finding:
    if not found:
        return Finding("holes", True, "none")
    share = len(found) / grid.row.size
    cell, clock_mhz = found[0]
    text = (
        f"{len(found)} of {grid.row.size} rows ({share:.1%}), first {describe_step(cell)} at "
        f"{clock_mhz} MHz; limit {limits.holes:.0%}"
    )
    return Finding("holes", share <= limits.holes, text, "run the same beam profile again")


def _not_reached(table: PerfTable) -> int | None:
    rows = table.rows(RowKind.FORWARD)
    reached = rows["clock_reached_mhz"]
    if not np.isfinite(reached).any():
        return None
    below = reached < REACHED_SHARE * rows["clock_mhz"]
    at_cap = np.char.find(np.char.lower(rows["throttle"]), "power_cap") >= 0
    return int((below & ~at_cap).sum())


def _reached(count: int | None, table: PerfTable, limits: Limits) -> Finding:
    if count is None:
        return Finding("clock not reached", None, "not recorded")
    rows = len(table.rows(RowKind.FORWARD)["kind"])
    text = f"{count} of {rows} rows, the power cap aside; limit {limits.not_reached:.0%}"
    hint = "cool the GPU, end what else runs on it, and measure these rows again"
    return Finding("clock not reached", count / rows <= limits.not_reached, text, hint)


def _confidence(table: PerfTable, limits: Limits) -> Finding:
    rows = table.rows(RowKind.FORWARD)
    relative = [
        rows[ci][np.isfinite(rows[ci])] / rows[value][np.isfinite(rows[ci])]
        for ci, value in (("latency_ci_ms", "latency_ms"), ("energy_ci_j", "energy_j"))
    ]
    if not all(half_widths.size for half_widths in relative):
        return Finding("confidence", None, "no intervals recorded")
    latency, energy = (float(np.median(half_widths)) for half_widths in relative)
    ok = latency <= limits.confidence_latency and energy <= limits.confidence_energy
    text = (
        f"median half-width: latency {latency:.1%} (worst {relative[0].max():.1%}), energy "
        f"{energy:.1%} (worst {relative[1].max():.1%}); limits {limits.confidence_latency:.0%}, "
        f"{limits.confidence_energy:.0%}"
    )
    return Finding("confidence", ok, text, "measure longer windows, or more trials")
