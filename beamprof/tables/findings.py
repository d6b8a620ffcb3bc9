"""The questions that `beam table check` puts to a table, each with its limit and its answer.

check.py says why the limits are what they are.
"""

import math
from dataclasses import dataclass

import numpy as np

from beam_runtime.clocks.base import POWER_CAP
from beam_runtime.errors import TableError
from beam_runtime.table.cost_fit import fit_table
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.schema import RowKind
from beam_runtime.table.servable import WAITING_SHARE, drawn_and_waiting_w, unmeasured_kind
from beam_runtime.types import StepShape
from beamprof.tables.falls import Fall
from beamprof.tables.grid import CellGrid, describe_step
from beamprof.tables.leave_one_out import CellError, ClockError, RelativeError, between_clocks
from beamprof.tables.noise import Noise, Outlier, Residuals, Rise, odd_clock
from beamprof.tables.offered_clocks import not_offered, offered_mhz

# A GPU that runs this far below its lock does not run at it.
REACHED_SHARE = 0.99


@dataclass(frozen=True, slots=True)
class Limits:
    """Beyond these a table should not drive a controller. Fractions; check.py has the reasons."""

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
    worst_fall: float = 0.10
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


def judge_clocks(grid: CellGrid) -> Finding:
    """Is there anything to choose between?"""
    clocks = grid.clocks_mhz
    if len(clocks) < 2:
        return Finding(
            "clocks",
            False,
            f"1 clock, {clocks[0]} MHz: nothing to choose between",
            "profile more of them: --clocks all",
        )
    return Finding("clocks", True, f"{len(clocks)} clocks, {clocks[0]} to {clocks[-1]} MHz")


def judge_offered(table: PerfTable) -> Finding:
    """Can its GPUs be locked to its clocks?"""
    name = "clocks on offer"
    if not offered_mhz(table):
        return Finding(name, None, "which clocks its GPUs offer is not known")
    wrong = not_offered(table, table.clocks_mhz)
    if not wrong:
        return Finding(name, True, f"{table.device} offers all of them")
    text = (
        f"{len(wrong)} of {len(table.clocks_mhz)} that {table.device} does not offer: "
        f"{', '.join(map(str, wrong[:4]))}{' ...' if len(wrong) > 4 else ''} MHz"
    )
    return Finding(name, False, text, "is it of other GPUs, or of clocks reached, not locked?")


def judge_kinds(table: PerfTable, grid: CellGrid) -> Finding:
    """Are there both kinds of steps that an engine makes?"""
    name = "kinds of steps"
    missing = unmeasured_kind(table)
    if missing:
        return Finding(name, False, missing, "profile chunks of prompts and decode batches")
    chunks = sum(cell.prefill_tokens > 0 for cell in grid.cells)
    decodes = sum(cell.decode_requests > 0 for cell in grid.cells)
    return Finding(name, True, f"{chunks} with a chunk, {decodes} with decodes")


def judge_waiting(table: PerfTable) -> Finding:
    """Does any pass draw less than the same GPUs do while they wait?"""
    name = "waiting power"
    drawn = drawn_and_waiting_w(table)
    if drawn is None:
        return Finding(name, None, "no idle rows")
    share = drawn[0] / drawn[1]
    worst = int(np.argmin(share))
    count = int((share < WAITING_SHARE).sum())
    text = (
        f"{drawn[0][worst]:.0f} W in the lightest pass, {drawn[1][worst]:.0f} W waiting at the "
        f"same {table.rows(RowKind.FORWARD)['clock_mhz'][worst]} MHz"
    )
    if not count:
        return Finding(name, True, text)
    text = f"{count} of {len(share)} passes draw less than the same GPUs waiting: {text}"
    hint = (
        "energy_j is summed over the stage's tp GPUs, in passes and in idle rows: was one GPU's "
        "meter read for all, or a node's while it waited?"
    )
    return Finding(name, False, text, hint)


def judge_contexts(table: PerfTable, grid: CellGrid) -> Finding:
    """Does the cost of KV context follow from the rows?"""
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
    if not decode or not chunk:
        return Finding("contexts", None, "needs chunks and decode batches")
    if max(map(len, decode.values())) < 2:
        text = "each decode batch stands over one context only: what context costs is unknown"
        return Finding("contexts", False, text, hint)
    if max(map(len, chunk.values())) < 2:
        text = "decode context measured; chunks over earlier context derived, not measured"
        return Finding("contexts", True, text)
    return Finding("contexts", True, "decode batches and chunks both measured over several")


def judge_between_clocks(errors: tuple[ClockError, ...], limits: Limits) -> Finding:
    """How far off is the table expected to be between its clocks?"""
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
        f"left out is predicted to {latency:.1%} and {energy:.1%} (worst energy "
        f"{worst.error.energy_mape:.1%} at {worst.clock_mhz} MHz); limits "
        f"{limits.between_clocks_latency:.0%}, {limits.between_clocks_energy:.0%}"
    )
    return Finding(name, ok, text, "profile more clocks: --clocks all, or some between these")


def judge_odd_clock(
    latency: Residuals, energy: Residuals, grid: CellGrid, limits: Limits
) -> Finding:
    """Does one clock look as if it had not been set?"""
    name = "clock outlier"
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


def judge_by_cell(errors: tuple[CellError, ...], limits: Limits) -> Finding:
    """How well do cells predict each other?"""
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


def judge_held_out(error: RelativeError | None, limits: Limits) -> Finding:
    """How well are the steps of a served batch predicted?"""
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


def judge_noise(latency: Noise, energy: Noise, limits: Limits) -> Finding:
    """How far does a row scatter?"""
    if math.isnan(latency.sigma):
        return Finding("noise", None, "needs three clocks or more")
    ok = latency.sigma <= limits.noise_latency and energy.sigma <= limits.noise_energy
    text = (
        f"latency {latency.sigma:.1%}, energy {energy.sigma:.1%} a row (noisiest energy "
        f"{energy.worst_cell_sigma:.1%}, {describe_step(energy.worst_cell)}); limits "
        f"{limits.noise_latency:.0%}, {limits.noise_energy:.0%}"
    )
    return Finding("noise", ok, text, "measure longer windows, or more trials")


def judge_outliers(found: list[Outlier]) -> Finding:
    """Do neighbours contradict single rows?"""
    if not found:
        return Finding("outliers", True, "none")
    worst = max(found, key=lambda outlier: abs(math.log1p(outlier.off)))
    text = (
        f"{len(found)}; worst {worst.field} {worst.off:+.0%} off its neighbours, "
        f"{describe_step(worst.cell)} at {worst.clock_mhz} MHz"
    )
    return Finding("outliers", False, text, "measure these rows again, and merge --prefer newest")


def judge_rises(found: list[Rise], grid: CellGrid, limits: Limits) -> Finding:
    """Is a higher clock ever slower?"""
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


def judge_falls(found: list[Fall], judged: int, limits: Limits) -> Finding:
    """Is a larger pass ever faster?"""
    name = "latency by tokens"
    if not judged:
        return Finding(name, None, "no cell that holds a smaller one")
    if not found:
        return Finding(name, True, "never falls beyond noise")
    worst = found[0]
    text = (
        f"falls in {len(found)} of {judged} rows; worst {worst.by:+.1%} from "
        f"{describe_step(worst.smaller)} to {describe_step(worst.cell)} at {worst.clock_mhz} MHz; "
        f"limit {limits.worst_fall:.0%}"
    )
    hint = "measure both again: a batch is filled for a gain that may not be there"
    return Finding(name, -worst.by <= limits.worst_fall, text, hint)


def judge_holes(found: list[tuple[StepShape, int]], grid: CellGrid, limits: Limits) -> Finding:
    """Are rows missing that others imply?"""
    if not found:
        return Finding("holes", True, "none")
    share = len(found) / grid.row.size
    cell, clock_mhz = found[0]
    text = (
        f"{len(found)} of {grid.row.size} rows ({share:.1%}), first {describe_step(cell)} at "
        f"{clock_mhz} MHz; limit {limits.holes:.0%}"
    )
    return Finding("holes", share <= limits.holes, text, "run the same beam profile again")


def count_not_reached(table: PerfTable) -> int | None:
    """Rows whose clock fell below the lock, the power cap aside; None where unrecorded."""
    rows = table.rows(RowKind.FORWARD)
    reached = rows["clock_reached_mhz"]
    if not np.isfinite(reached).any():
        return None
    below = reached < REACHED_SHARE * rows["clock_mhz"]
    at_cap = np.char.find(rows["throttle"], POWER_CAP) >= 0
    return int((below & ~at_cap).sum())


def judge_reached(count: int | None, table: PerfTable, limits: Limits) -> Finding:
    """Did the GPU run at the clocks that it was locked to?"""
    if count is None:
        return Finding("clock not reached", None, "not recorded")
    rows = len(table.rows(RowKind.FORWARD)["kind"])
    text = f"{count} of {rows} rows, the power cap aside; limit {limits.not_reached:.0%}"
    hint = "cool the GPU, end what else runs on it, and measure these rows again"
    return Finding("clock not reached", count / rows <= limits.not_reached, text, hint)


def judge_confidence(table: PerfTable, limits: Limits) -> Finding:
    """How sure was each measurement?"""
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
