"""Results as polars frames, for notebooks: one row for each thing that was compared."""

import dataclasses
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beam_runtime.table.perf_table import PerfTable

if TYPE_CHECKING:
    import polars as pl

# Fields that hold a result's rows, the most telling first.
_ROWS = ("rungs", "cells", "findings", "frontier", "steps", "rows")


def load_table(path: "str | PathLike[str]") -> PerfTable:
    """A perf-energy table from a file. Raises TableError."""
    return PerfTable.load(Path(path))


def frame(result: Any) -> "pl.DataFrame":
    """A result's rows; units are in the columns' names.

    Args:
        result: a PerfTable, a Trace, or a result that holds a tuple of rows: Advice,
            ReplayReport. Nested numbers become columns of their own, as ``ttft.p50_ms``.

    Raises:
        TypeError: it has no rows.
    """
    import polars as pl

    if isinstance(result, PerfTable):
        return pl.DataFrame(dict(result.columns))
    own = getattr(result, "frame", None)
    if isinstance(own, pl.DataFrame):
        return own
    for name in _ROWS:
        rows = getattr(result, name, None)
        if isinstance(rows, tuple) and rows and dataclasses.is_dataclass(rows[0]):
            return pl.DataFrame([_flat(row) for row in rows], infer_schema_length=None)
    raise TypeError(f"a {type(result).__name__} has no rows")


def _flat(row: Any, prefix: str = "") -> dict[str, Any]:
    """A dataclass's fields as columns; counts by value (mappings) are left out."""
    cells: dict[str, Any] = {}
    for field in dataclasses.fields(row):
        value = getattr(row, field.name)
        if dataclasses.is_dataclass(value):
            inner = "" if field.name == "metrics" else f"{prefix}{field.name}."
            cells |= _flat(value, inner)
        elif isinstance(value, tuple):
            cells[prefix + field.name] = "\n".join(map(str, value))
        elif not isinstance(value, Mapping):
            cells[prefix + field.name] = value
    return cells
