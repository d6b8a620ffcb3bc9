"""A perf-energy table's Parquet file as numpy columns, read within bounds.

Whatever the file holds ends in a TableError: before it is unpacked where it is too large.
What the values mean is checked in row_checks.py.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from beam_runtime.errors import TableError
from beam_runtime.table.row_checks import CONTROL, LONGEST_TEXT, REPROFILE
from beam_runtime.table.schema import COLUMNS, METADATA_PREFIX, SCHEMA_VERSION

if TYPE_CHECKING:
    import pyarrow as pa

# Fifty clocks of a thousand cells are 50,000 rows of some 150 bytes, and all reasons to throttle
# together are 120 letters. What is far beyond that is refused before it is unpacked.
MOST_ROWS = 200_000
_LARGEST_FILE_BYTES = 64 << 20
_LARGEST_TEXTS_BYTES = 64 << 20
_LARGEST_METADATA_BYTES = 4 << 20


def read_columns(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Columns of schema.COLUMNS, and the metadata without their prefix.

    Raises:
        TableError: missing, unreadable, too large, another major schema version, a column that
            is missing or of another type, a required cell that is empty.
    """
    arrow, metadata = _read_parquet(path)
    _check_schema_version(metadata, path)
    return _columns(arrow, path), metadata


def _read_parquet(path: Path) -> "tuple[pa.Table, dict[str, str]]":
    try:
        # A name that no file can have is no file, and an error to Path.is_file().
        if not os.path.isfile(path):  # noqa: PTH113
            raise TableError(
                f"no table at {path}",
                hint="make one: beam profile --model MODEL --tp T --pp P --output FILE",
            )
        if path.stat().st_size > _LARGEST_FILE_BYTES:
            raise _too_large(path, f"the file has {path.stat().st_size} bytes")
        with _opened(path) as file:
            _check_size(file.metadata, path)
            names = set(file.schema_arrow.names)
            # File-level metadata: the schema's copy is empty in files that polars wrote.
            metadata = _texts(file.metadata.metadata or {}, path)
        ours = [column for column in COLUMNS if column.name in names]
        # One long text may stand in every row: as a dictionary it is there once.
        texts = [column.name for column in ours if column.dtype == "string"]
        with _opened(path, texts) as file:
            arrow = file.read([column.name for column in ours])
    except TableError:
        raise
    except Exception as error:  # Arrow's readers raise what they find on their way
        raise TableError(
            f"{path} cannot be read as Parquet",
            cause=(str(error).splitlines() or [type(error).__name__])[0][:500],
            hint="the file is truncated, damaged or no Parquet: copy it again, or profile again",
        ) from None
    return arrow, metadata


def _opened(path: Path, dictionaries: Sequence[str] = ()) -> Any:
    """A plain file handle, not a dataset: a table is one file, and its name means nothing."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(
        path,
        thrift_string_size_limit=_LARGEST_METADATA_BYTES,
        thrift_container_size_limit=MOST_ROWS,
        read_dictionary=list(dictionaries),
    )


def _check_size(found: Any, path: Path) -> None:
    """Small files unpack into large ones; the footer says into how large, before anything is read.

    Raises:
        TableError: no table has so many rows, or so many bytes.
    """
    if found.num_rows > MOST_ROWS:
        raise _too_large(path, f"it holds {found.num_rows} rows")
    sizes = [found.row_group(at).total_byte_size for at in range(found.num_row_groups)]
    if sum(map(abs, sizes)) > _LARGEST_FILE_BYTES:
        raise _too_large(path, f"it unpacks into {sum(map(abs, sizes))} bytes")


def _too_large(path: Path, what: str) -> TableError:
    return TableError(
        f"{path} is too large for a table: {what}",
        cause=f"expected at most {MOST_ROWS} rows, {_LARGEST_FILE_BYTES} bytes and "
        f"{_LARGEST_METADATA_BYTES} of metadata",
        hint="a profile has a few thousand rows: is it another file?",
    )


def _texts(raw: Mapping[bytes, bytes], path: Path) -> dict[str, str]:
    """The metadata that are ours. Raises TableError for bytes that are no printable text."""
    if sum(len(key) + len(value) for key, value in raw.items()) > _LARGEST_METADATA_BYTES:
        raise _too_large(path, "its metadata alone are")
    texts: dict[str, str] = {}
    prefix = METADATA_PREFIX.encode()
    for key, value in raw.items():
        if not key.startswith(prefix):
            continue
        try:
            name, text = key.removeprefix(prefix).decode(), value.decode()
        except UnicodeDecodeError as error:
            raise TableError(
                f"{path}: the metadata {key[:60]!r} are no UTF-8", cause=str(error), hint=REPROFILE
            ) from None
        if CONTROL.search(name + text):
            raise TableError(
                f"{path}: the metadata {key[:60]!r} hold control characters",
                cause=ascii(text[:100]),
                hint=REPROFILE,
            )
        texts[name] = text
    return texts


def _columns(arrow: "pa.Table", path: Path) -> dict[str, NDArray[Any]]:
    import pyarrow as pa

    missing = [column.name for column in COLUMNS if column.name not in arrow.column_names]
    if missing:
        raise TableError(
            f"{path} lacks the columns {', '.join(missing)}",
            cause=f"it has {', '.join(arrow.column_names)}",
            hint="tables of other tools are read with: beam table import --format FORMAT FILE",
        )
    columns: dict[str, NDArray[Any]] = {}
    for column in COLUMNS:
        values = arrow.column(column.name)
        if not column.nullable and values.null_count:
            row = values.is_null().index(pa.scalar(True)).as_py()
            raise TableError(f"{path}: {column.name} is empty in row {row}", hint=REPROFILE)
        try:
            dtype = np.dtype(str if column.dtype == "string" else column.dtype)
            if column.dtype == "string":
                _check_texts(values, column.name, path)
            exact = pa.string() if column.dtype == "string" else pa.from_numpy_dtype(dtype)
            # cast() and to_numpy() import pyarrow.compute and pandas, half a second together.
            plain = values.type == exact or values.type == pa.dictionary(pa.int32(), exact)
            cast = values if plain else values.cast(exact)
            # A missing number comes out as NaN.
            columns[column.name] = np.array(cast.to_pylist(), dtype=dtype)
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
            raise TableError(
                f"{path}: {column.name} is not {column.dtype}",
                cause=(str(error).splitlines() or [""])[0][:500],
                hint=REPROFILE,
            ) from None
    return columns


def _check_texts(values: Any, name: str, path: Path) -> None:
    """Numpy gives every text the room of the longest. Raises TableError where that is too much."""
    import pyarrow as pa

    longest = 0
    for chunk in values.chunks:
        texts = chunk.dictionary if pa.types.is_dictionary(chunk.type) else chunk
        if not pa.types.is_string(texts.type) and not pa.types.is_large_string(texts.type):
            continue  # the cast says what it is
        longest = max([longest, *(len(text) for text in texts.to_pylist() if text is not None)])
    if longest > LONGEST_TEXT or 4 * longest * len(values) > _LARGEST_TEXTS_BYTES:
        raise TableError(
            f"{path}: {name} holds texts of {longest} letters",
            cause=f"expected at most {LONGEST_TEXT}",
            hint=REPROFILE,
        )


def _check_schema_version(metadata: Mapping[str, str], path: Path) -> None:
    version = metadata.get("schema_version")
    if version is None:
        raise TableError(
            f"{path} is Parquet, but no BEAM table",
            cause="its file metadata has no beam.schema_version",
            hint="tables of other tools are read with: beam table import --format FORMAT FILE",
        )
    if version.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
        raise TableError(
            f"{path} has schema version {version}, this BEAM reads {SCHEMA_VERSION}",
            hint="upgrade beamprof, or profile again with this version",
        )
