"""Write a perf-energy table: checked, sorted, sealed with a checksum, in one rename."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.schema import (
    COLUMN,
    COLUMNS,
    KEY_COLUMNS,
    METADATA_PREFIX,
    SCHEMA_VERSION,
    Column,
    rows_sha256,
)
from beamprof.files import written_whole


def seal_table(columns: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> PerfTable:
    """Sort the rows by key, add schema version and checksum, and check them as a loader would.

    Args:
        columns: columns of schema.COLUMNS by name, 1-d, equal lengths; nullable ones may be left
            out or hold NaN.
        metadata: schema.METADATA_KEYS without prefix; schema_version and rows_sha256 are set here.

    Raises:
        TableError: rows or metadata that no loader would accept.
    """
    rows = len(columns["kind"])
    full = {
        column.name: columns.get(
            column.name, np.full(rows, "" if column.dtype == "string" else np.nan)
        )
        for column in COLUMNS
    }
    order = np.lexsort([np.asarray(full[name]) for name in reversed(KEY_COLUMNS)])
    ordered = {
        name: np.asarray(
            values, dtype=str if COLUMN[name].dtype == "string" else COLUMN[name].dtype
        )[order]
        for name, values in full.items()
    }
    sealed = {
        **metadata,
        "schema_version": SCHEMA_VERSION,
        "rows_sha256": rows_sha256(ordered),
    }
    return PerfTable.from_columns(ordered, sealed)


def write_table(
    columns: Mapping[str, NDArray[Any]],
    metadata: Mapping[str, str],
    path: Path,
    *,
    force: bool = False,
) -> PerfTable:
    """Seal the rows and write them to ``path``.

    Raises:
        TableError: rows or metadata that no loader would accept.
        OutputError: the file exists without force, or cannot be written.
    """
    table = seal_table(columns, metadata)
    schema = pa.schema(
        [
            pa.field(
                column.name,
                _arrow_type(column),
                nullable=column.nullable,
                metadata={"unit": column.unit, "doc": column.doc},
            )
            for column in COLUMNS
        ],
        metadata={f"{METADATA_PREFIX}{key}": value for key, value in table.metadata.items()},
    )
    arrays = [
        pa.array(table.columns[column.name], from_pandas=column.nullable) for column in COLUMNS
    ]
    with written_whole(Path(path), force=force) as temporary:
        pq.write_table(pa.Table.from_arrays(arrays, schema=schema), temporary, compression="zstd")
    return table


def _arrow_type(column: Column) -> pa.DataType:
    if column.dtype == "string":
        return pa.string()
    return pa.from_numpy_dtype(np.dtype(column.dtype))
