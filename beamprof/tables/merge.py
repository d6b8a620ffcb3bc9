"""Join tables of one layout: more clocks, more cells, or a newer measurement of some.

What differs in how numbers came to be (source, energy source, engine) is never mixed silently:
such tables are refused. What differs only in circumstance (driver, version) is kept side by side.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beam_runtime.errors import TableError
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.schema import KEY_COLUMNS, RowKind
from beamprof.files import check_writable
from beamprof.tables.table_file import seal_table, write_table

# Tables that differ in one of these describe different things.
SAME = (
    "model",
    "tp",
    "pp",
    "ep",
    "dp",
    "stage_layers",
    "dtype",
    "precision",
    "device",
    "energy_source",
    "engine",
    "allreduce",
)


class Prefer(StrEnum):
    """Which row stands where several tables hold the same pass."""

    NEWEST = "newest"


@dataclass(frozen=True, slots=True)
class Merged:
    """Several tables as one.

    Attributes:
        table: the joined rows, sealed.
        replaced_rows: rows of older tables that a newer one measured again.
        notes: circumstances that differ between the tables.
    """

    table: PerfTable
    replaced_rows: int
    notes: tuple[str, ...]


def merge_files(
    paths: Sequence[str | Path],
    output: str | Path,
    *,
    prefer: Prefer | None = None,
    force: bool = False,
) -> Merged:
    """Load, merge and write. Raises OutputError besides what merge_tables raises."""
    check_writable(Path(output), force=force)
    tables = {str(path): PerfTable.load(path) for path in paths}
    merged = merge_tables(tables, prefer=prefer)
    written = write_table(merged.table.columns, merged.table.metadata, Path(output), force=force)
    return Merged(written, merged.replaced_rows, merged.notes)


def merge_tables(tables: Mapping[str, PerfTable], *, prefer: Prefer | None = None) -> Merged:
    """Join tables of the same model, layout, device, dtype and source.

    Args:
        tables: by the name that errors use; two or more.
        prefer: NEWEST takes a pass that several tables hold from the one created last; without
            it such a pass is an error. Idle rows are measurements of one thing, so all are kept.

    Raises:
        TableError: fewer than two tables, tables of different things or sources, or the same pass
            in two tables.
    """
    if len(tables) < 2:
        raise TableError(
            f"a merge needs two tables or more, found {len(tables)}",
            hint="beam table merge A B --output FILE",
        )
    names = list(tables)
    for name in names[1:]:
        _check_same(names[0], tables[names[0]], name, tables[name])
    # Oldest first: a later table's row then replaces an earlier one's.
    ordered = sorted(names, key=lambda name: tables[name].metadata.get("created", ""))
    if prefer is Prefer.NEWEST:
        _check_dated(tables)
    taken: dict[tuple[int, ...], tuple[str, int]] = {}
    idle: list[tuple[str, int]] = []
    replaced_rows = 0
    for name in ordered:
        columns = tables[name].columns
        keys = np.stack([columns[field] for field in KEY_COLUMNS[1:]], axis=1).tolist()
        for row, (kind, key) in enumerate(zip(columns["kind"].tolist(), keys, strict=True)):
            if kind == str(RowKind.IDLE):
                idle.append((name, row))
                continue
            if tuple(key) in taken:
                if prefer is None:
                    raise _twice(taken[tuple(key)][0], name, key)
                replaced_rows += 1
            taken[tuple(key)] = (name, row)
    columns = _gather(tables, [*taken.values(), *idle])
    metadata, notes = _joined_metadata([tables[name] for name in ordered])
    return Merged(seal_table(columns, metadata), replaced_rows, notes)


def _gather(
    tables: Mapping[str, PerfTable], picks: list[tuple[str, int]]
) -> dict[str, NDArray[Any]]:
    rows_of: dict[str, list[int]] = {}
    for name, row in picks:
        rows_of.setdefault(name, []).append(row)
    fields = next(iter(tables.values())).columns
    return {
        field: np.concatenate([tables[name].columns[field][rows] for name, rows in rows_of.items()])
        for field in fields
    }


def _check_same(first: str, a: PerfTable, second: str, b: PerfTable) -> None:
    for key in SAME:
        mine, other = a.metadata.get(key, ""), b.metadata.get(key, "")
        if mine != other:
            raise TableError(
                f"{first} and {second} are not tables of one thing: {key} differs",
                cause=f"{key} is {mine or 'not said'} in the first and {other or 'not said'} in "
                "the second",
                hint="beam table compare shows how far apart two tables are",
            )
    if a.sources != b.sources:
        raise TableError(
            f"{first} and {second} are of different sources, which are never mixed",
            cause=f"{', '.join(a.sources)} against {', '.join(b.sources)}",
            hint="beam table compare shows how far apart two tables are",
        )


def _check_dated(tables: Mapping[str, PerfTable]) -> None:
    for name, table in tables.items():
        if not table.metadata.get("created"):
            raise TableError(
                f"{name} does not say when it was created, so --prefer newest cannot choose",
                hint="merge without --prefer where no pass is in two tables",
            )


def _twice(first: str, second: str, key: list[int]) -> TableError:
    described = ", ".join(
        f"{field} {value}" for field, value in zip(KEY_COLUMNS[1:], key, strict=True)
    )
    return TableError(
        f"{first} and {second} hold the same pass",
        cause=described,
        hint="take the newer one of each: --prefer newest",
    )


def _joined_metadata(tables: list[PerfTable]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The newest table's metadata; where others differ, all values in order, oldest first."""
    metadata = dict(tables[-1].metadata)
    notes = []
    for key in ("gpu_name", "driver", "engine_version", "origin", "licence"):
        values = list(dict.fromkeys(t.metadata[key] for t in tables if t.metadata.get(key)))
        if len(values) > 1:
            metadata[key] = "; ".join(values)
            notes.append(f"{key} differs: {', '.join(values)}")
    sweeps = [table.metadata["sweep"] for table in tables if table.metadata.get("sweep")]
    if sweeps:
        metadata["sweep"] = json.dumps({"merged": [_as_json(sweep) for sweep in sweeps]})
    metadata["created"] = datetime.now(UTC).isoformat(timespec="seconds")
    return metadata, tuple(notes)


def _as_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
