"""What a person needs to see of a table before trusting it with a fleet's clocks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.schema import RowKind
from beam_runtime.types import Source, StepShape
from beamprof.tables.check import TableCheck, check_table
from beamprof.tables.grid import CellGrid

PROVENANCE = (
    "gpu_name",
    "driver",
    "engine",
    "engine_version",
    "energy_source",
    "allreduce",
    "dtype",
    "precision",
    "ep",
    "dp",
    "stage_layers",
    "host_gap_ms",
    "stage_transfer_ms",
    "created",
    "origin",
    "licence",
)
Entry = TypeVar("Entry")

# More lines than this are more than an eye takes in; the rest is in --json and beam table export.
RIDGE_LINES = 16
COVERAGE_LINES = 12
COVERAGE_COLUMNS = 7


@dataclass(frozen=True, slots=True)
class Coverage:
    """Forward rows by size of step.

    Attributes:
        tokens: (from, to) of each line, new tokens of the step.
        context_tokens: (from, to) of each column, KV tokens read by chunk and decodes together.
        rows: (lines, columns) how many rows, over all clocks.
    """

    tokens: tuple[tuple[int, int], ...]
    context_tokens: tuple[tuple[int, int], ...]
    rows: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class RidgePoint:
    """One cell along the clocks.

    Attributes:
        cell: the step.
        latency_ms, energy_j: by clock of the table, NaN for holes.
        best_clock_mhz: the clock of least energy (as measured, noise included).
        energy_saved: fraction of energy that the best clock saves against the highest one.
        slowdown: fraction by which it is slower there.
    """

    cell: StepShape
    latency_ms: tuple[float, ...]
    energy_j: tuple[float, ...]
    best_clock_mhz: int
    energy_saved: float
    slowdown: float


@dataclass(frozen=True, slots=True)
class IdlePower:
    """A waiting stage at a locked clock: median watts of its tp GPUs together."""

    clock_mhz: int
    power_w: float
    modelled: bool


@dataclass(frozen=True, slots=True)
class TableView:
    """A table in one look.

    Attributes:
        provenance: metadata that is there, in the order of PROVENANCE.
        ridge: the energy-optimal clock per step, decode batches and then chunks, by tokens; at
            most RIDGE_LINES steps.
        frontier: a small, a middle and a large step of the ridge, for the picture.
        idle: by clock; empty where the table has no idle rows.
        check: as `beam table check` finds it.
    """

    model: str
    tp: int
    pp: int
    device: str
    sources: tuple[str, ...]
    forward_rows: int
    idle_rows: int
    cells: int
    clocks_mhz: tuple[int, ...]
    provenance: dict[str, str]
    coverage: Coverage
    ridge: tuple[RidgePoint, ...]
    frontier: tuple[RidgePoint, ...]
    idle: tuple[IdlePower, ...]
    check: TableCheck


def inspect_table(table: PerfTable | str | Path) -> TableView:
    """Look at a loaded table from every side."""
    table = PerfTable.of(table)
    grid = CellGrid.of(table)
    ridge = _ridge(grid)
    idle = table.rows(RowKind.IDLE)
    return TableView(
        model=table.model,
        tp=table.tp,
        pp=table.pp,
        device=table.device,
        sources=tuple(str(source) for source in table.sources),
        forward_rows=len(table) - len(idle["kind"]),
        idle_rows=len(idle["kind"]),
        cells=len(grid.cells),
        clocks_mhz=table.clocks_mhz,
        provenance={key: table.metadata[key] for key in PROVENANCE if table.metadata.get(key)},
        coverage=_coverage(grid),
        ridge=ridge,
        frontier=tuple(_spread(ridge, 3)),
        idle=_idle(idle),
        check=check_table(table),
    )


def efficient(latency: Sequence[float], energy: Sequence[float]) -> list[int]:
    """Places of points that no other beats in latency and energy both, by latency."""
    kept: list[int] = []
    for place in sorted(range(len(latency)), key=lambda place: (latency[place], energy[place])):
        if not kept or energy[place] < energy[kept[-1]]:
            kept.append(place)
    return kept


def _ridge(grid: CellGrid) -> tuple[RidgePoint, ...]:
    """Decode batches first, then steps with a chunk; of each size the one with least context."""
    decode: dict[int, int] = {}
    chunk: dict[int, int] = {}
    for line, cell in enumerate(grid.cells):  # ordered by tokens, then context
        (chunk if cell.prefill_tokens else decode).setdefault(cell.tokens, line)
    some = _spread(list(decode.values()), RIDGE_LINES // 2)
    some += _spread(list(chunk.values()), RIDGE_LINES - len(some))
    return tuple(_ridge_point(grid, line) for line in some)


def _ridge_point(grid: CellGrid, line: int) -> RidgePoint:
    latency_ms, energy_j = grid.latency_ms[line], grid.energy_j[line]
    best = int(np.nanargmin(energy_j))
    highest = int(np.flatnonzero(np.isfinite(energy_j))[-1])
    return RidgePoint(
        cell=grid.cells[line],
        latency_ms=tuple(latency_ms.tolist()),
        energy_j=tuple(energy_j.tolist()),
        best_clock_mhz=int(grid.clocks_mhz[best]),
        energy_saved=float(1 - energy_j[best] / energy_j[highest]),
        slowdown=float(latency_ms[best] / latency_ms[highest] - 1),
    )


def _coverage(grid: CellGrid) -> Coverage:
    tokens = np.array([cell.tokens for cell in grid.cells])
    contexts = np.array(
        [cell.prefill_context_tokens + cell.decode_context_tokens for cell in grid.cells]
    )
    rows = (grid.row >= 0).sum(axis=1)
    token_ranges, context_ranges = (
        _ranges(tokens, COVERAGE_LINES),
        _ranges(contexts, COVERAGE_COLUMNS),
    )
    return Coverage(
        tokens=token_ranges,
        context_tokens=context_ranges,
        rows=tuple(
            tuple(
                int(rows[_within(tokens, lines) & _within(contexts, columns)].sum())
                for columns in context_ranges
            )
            for lines in token_ranges
        ),
    )


def _ranges(values: NDArray[np.int64], at_most: int) -> tuple[tuple[int, int], ...]:
    """Ranges of as few octaves as ``at_most`` allows, each narrowed to the values inside."""
    found = np.unique(values)
    if len(found) <= at_most // 2:
        return tuple((value, value) for value in found.tolist())
    # 0 has an octave of its own; 2^k stands at the end of its octave, as batch sizes do.
    octaves = np.ceil(np.log2(np.maximum(found, 0.5))).astype(int)
    width = 1
    while len(np.unique(octaves // width)) > at_most:
        width += 1
    groups = [found[octaves // width == group] for group in np.unique(octaves // width)]
    return tuple((int(some.min()), int(some.max())) for some in groups)


def _within(values: NDArray[np.int64], bounds: tuple[int, int]) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = (values >= bounds[0]) & (values <= bounds[1])
    return inside


def _idle(rows: Mapping[str, NDArray[Any]]) -> tuple[IdlePower, ...]:
    clocks_mhz, power_w = rows["clock_mhz"], rows["energy_j"] / rows["latency_ms"] * 1e3
    modelled = rows["source"] == str(Source.MODELLED)
    return tuple(
        IdlePower(int(clock), float(np.median(power_w[at])), bool(modelled[at].all()))
        for clock in np.unique(clocks_mhz)
        for at in [clocks_mhz == clock]
    )


def _spread(entries: Sequence[Entry], at_most: int) -> list[Entry]:
    """Evenly spread over the entries, both ends included."""
    if len(entries) <= at_most:
        return list(entries)
    places = np.linspace(0, len(entries) - 1, at_most).round().astype(int)
    return [entries[place] for place in np.unique(places).tolist()]
