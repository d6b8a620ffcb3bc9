"""PerfTable: a Parquet perf-energy table as checked numpy arrays.

Everything that could make a controller act on nonsense is refused here, with the
row or field and what to do. What it cannot know: whether the GPU still behaves as
it did when the table was measured; that is calibration's business.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from beam_runtime.errors import TableError
from beam_runtime.table.schema import (
    COLUMNS,
    KEY_COLUMNS,
    METADATA_PREFIX,
    REQUIRED_METADATA,
    SCHEMA_VERSION,
    RowKind,
    rows_sha256,
)
from beam_runtime.types import Source

if TYPE_CHECKING:
    import pyarrow as pa

# One GPU draws between an idle laptop part and a future rack part; outside this the unit is
# wrong. The usual slip is millijoules for joules or seconds for milliseconds: a factor of 1000.
PLAUSIBLE_GPU_POWER_W = (1.0, 5_000.0)

# Fifty clocks of a thousand cells are 50,000 rows of some 150 bytes, and all reasons to throttle
# together are 120 letters. What is far beyond that is refused before it is unpacked.
MOST_ROWS = 200_000
_LARGEST_FILE_BYTES = 64 << 20
_LARGEST_TEXTS_BYTES = 64 << 20
_LARGEST_METADATA_BYTES = 4 << 20
_LONGEST_TEXT = 256
_LARGEST_COUNT = 10**12
_MOST_DIGITS = 9
# They would reach a terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True, eq=False)
class PerfTable:
    """Latency and energy of one pipeline stage, one row per measured pass.

    Attributes:
        columns: every column of schema.COLUMNS as a 1-d array of equal length; a number that
            is unknown is NaN, strings are str arrays.
        metadata: file metadata without the ``beam.`` prefix (schema.METADATA_KEYS).
    """

    columns: Mapping[str, NDArray[Any]]
    metadata: Mapping[str, str]

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        model: str | None = None,
        tp: int | None = None,
        pp: int | None = None,
        device: str | None = None,
    ) -> Self:
        """Read and check a table; where given, it must be for this model, tp, pp and device.

        Raises:
            TableError: missing, unreadable, truncated, empty, another major schema version,
                missing columns or metadata, a bad checksum, duplicates, values that cannot be,
                or a table for something else.
        """
        path = Path(path)
        arrow, metadata = _read_parquet(path)
        _check_schema_version(metadata, path)
        table = cls.from_columns(_columns(arrow, path), metadata, name=str(path))
        expected = {"model": model, "tp": tp, "pp": pp, "device": device}
        for field, wanted in expected.items():
            found = metadata[field]
            if wanted is not None and str(wanted) != found:
                raise TableError(
                    f"{path} is a table for {field} {found}, expected {wanted}",
                    hint=f"profile this one: beam profile --model {model or metadata['model']} "
                    f"--tp {tp or metadata['tp']} --pp {pp or metadata['pp']}",
                )
        return table

    @classmethod
    def from_columns(
        cls,
        columns: Mapping[str, NDArray[Any]],
        metadata: Mapping[str, str],
        *,
        name: str = "table",
    ) -> Self:
        """Check rows and metadata that are already in memory. Raises TableError as load does."""
        _check_metadata(metadata, name)
        _check_rows(columns, int(metadata["tp"]), name)
        found, stated = rows_sha256(columns), metadata["rows_sha256"]
        if found != stated:
            raise TableError(
                f"{name}: the rows do not match their checksum",
                cause=f"metadata says {stated[:12]}..., the rows hash to {found[:12]}...",
                hint="the file was altered or damaged after it was written: copy it again, or "
                "profile again",
            )
        return cls(columns=dict(columns), metadata=dict(metadata))

    @property
    def model(self) -> str:
        """Registry name, or the name of the config's directory."""
        return self.metadata["model"]

    @property
    def device(self) -> str:
        """Device file's name, e.g. a100-sxm4-80gb."""
        return self.metadata["device"]

    @property
    def tp(self) -> int:
        """GPUs of the stage."""
        return int(self.metadata["tp"])

    @property
    def pp(self) -> int:
        """Stages of the pipeline."""
        return int(self.metadata["pp"])

    @property
    def stage_layers(self) -> int:
        """Decoder layers of the stage."""
        return int(self.metadata["stage_layers"])

    @property
    def sources(self) -> tuple[Source, ...]:
        """Where the rows come from; one, unless somebody mixed them."""
        return tuple(Source(text) for text in sorted(set(self.columns["source"].tolist())))

    @cached_property
    def clocks_mhz(self) -> tuple[int, ...]:
        """Clocks of the forward rows, ascending."""
        return tuple(int(clock) for clock in np.unique(self.rows(RowKind.FORWARD)["clock_mhz"]))

    def rows(self, kind: RowKind) -> dict[str, NDArray[Any]]:
        """The columns of one kind of rows."""
        mask = self.columns["kind"] == str(kind)
        return {column: values[mask] for column, values in self.columns.items()}

    def __len__(self) -> int:
        return len(self.columns["kind"])


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
                f"{path}: the metadata {key[:60]!r} are no UTF-8", cause=str(error), hint=_REPROFILE
            ) from None
        if _CONTROL.search(name + text):
            raise TableError(
                f"{path}: the metadata {key[:60]!r} hold control characters",
                cause=ascii(text[:100]),
                hint=_REPROFILE,
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
            raise TableError(f"{path}: {column.name} is empty in row {row}", hint=_REPROFILE)
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
                hint=_REPROFILE,
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
    if longest > _LONGEST_TEXT or 4 * longest * len(values) > _LARGEST_TEXTS_BYTES:
        raise TableError(
            f"{path}: {name} holds texts of {longest} letters",
            cause=f"expected at most {_LONGEST_TEXT}",
            hint=_REPROFILE,
        )


_REPROFILE = "profile this layout again, or ask whoever made the file"


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


def _check_metadata(metadata: Mapping[str, str], name: str) -> None:
    missing = [key for key in REQUIRED_METADATA if not metadata.get(key)]
    if missing:
        raise TableError(f"{name} lacks the metadata {', '.join(missing)}", hint=_REPROFILE)
    for key in ("tp", "pp", "stage_layers"):
        value = metadata[key]
        if not (value.isdecimal() and len(value) <= _MOST_DIGITS and int(value) >= 1):
            raise TableError(
                f"{name}: metadata {key} must be a positive integer, found {value[:40]!r}",
                hint=_REPROFILE,
            )


def _check_rows(columns: Mapping[str, NDArray[Any]], tp: int, name: str) -> None:
    missing = [column.name for column in COLUMNS if column.name not in columns]
    if missing:
        raise TableError(f"{name} lacks the columns {', '.join(missing)}", hint=_REPROFILE)
    kinds = columns["kind"]
    if not np.any(kinds == str(RowKind.FORWARD)):
        raise TableError(
            f"{name} holds no forward rows", cause=f"{len(kinds)} rows", hint=_REPROFILE
        )
    _refuse(~np.isin(kinds, [str(kind) for kind in RowKind]), columns, "kind", name)
    _refuse(~np.isin(columns["source"], [str(s) for s in Source]), columns, "source", name)
    for field in ("latency_ms", "energy_j"):
        values = columns[field]
        _refuse(~(np.isfinite(values) & (values > 0)), columns, field, name)
    for column in COLUMNS:
        values = columns[column.name]
        if column.dtype == "string":
            _refuse(~_printable(values), columns, column.name, name)
        elif column.nullable:  # NaN: not known
            _refuse(np.isinf(values), columns, column.name, name)
    for field in (*KEY_COLUMNS[1:], "passes"):
        _refuse((columns[field] < 0) | (columns[field] > _LARGEST_COUNT), columns, field, name)
    forward = kinds == str(RowKind.FORWARD)
    tokens = columns["prefill_tokens"] + columns["decode_requests"]
    _refuse(forward & (tokens == 0), columns, "prefill_tokens", name)
    _check_duplicates(columns, name)
    with np.errstate(over="ignore"):  # an infinite power is out of range too
        power_w = columns["energy_j"] / columns["latency_ms"] * 1e3 / tp
    low, high = PLAUSIBLE_GPU_POWER_W
    implausible = np.flatnonzero((power_w < low) | (power_w > high))
    if implausible.size:
        row = int(implausible[0])
        raise TableError(
            f"{name}: row {row} means {power_w[row]:.4g} W per GPU, expected {low:g} to {high:g}",
            cause=f"energy_j = {columns['energy_j'][row]:.6g}, latency_ms = "
            f"{columns['latency_ms'][row]:.6g}, tp = {tp}",
            hint="energy is in joules and latency in milliseconds: were millijoules or seconds "
            "written?",
        )


def _printable(values: NDArray[Any]) -> NDArray[np.bool_]:
    fit = [len(text) <= _LONGEST_TEXT and not _CONTROL.search(text) for text in values.tolist()]
    return np.array(fit, dtype=bool)


def _refuse(
    bad: NDArray[np.bool_], columns: Mapping[str, NDArray[Any]], field: str, name: str
) -> None:
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise TableError(
            f"{name}: row {row} has {field} = {columns[field][row]}",
            cause=f"{int(bad.sum())} of {bad.size} rows are like that",
            hint=_REPROFILE,
        )


def _check_duplicates(columns: Mapping[str, NDArray[Any]], name: str) -> None:
    # Idle power is measured several times in a sweep; only forward rows must be unique.
    forward = np.flatnonzero(columns["kind"] == str(RowKind.FORWARD))
    keys = np.stack([columns[field][forward] for field in KEY_COLUMNS[1:]], axis=1)
    unique, first, counts = np.unique(keys, axis=0, return_index=True, return_counts=True)
    if (counts > 1).any():
        again = int(np.flatnonzero(counts > 1)[0])
        described = ", ".join(
            f"{field} {value}"
            for field, value in zip(KEY_COLUMNS[1:], unique[again].tolist(), strict=True)
        )
        raise TableError(
            f"{name}: {int(counts[again])} rows describe the same pass, from row "
            f"{int(forward[first[again]])}",
            cause=described,
            hint="merge tables with: beam table merge A B --prefer newest",
        )
