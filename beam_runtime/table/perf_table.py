"""PerfTable: a Parquet perf-energy table as checked numpy arrays.

Everything that could make a controller act on nonsense is refused here, with the
row or field and what to do. What it cannot know: whether the GPU still behaves as
it did when the table was measured; that is calibration's business.
"""

from collections.abc import Mapping
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
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise TableError(
            f"no table at {path}",
            hint="make one: beam profile --model MODEL --tp T --pp P --output FILE",
        )
    try:
        # A plain file handle, not a dataset: a table is one file, and its name means nothing.
        with pq.ParquetFile(path) as file:
            # File-level metadata: the schema's copy is empty in files that polars wrote.
            raw = file.metadata.metadata or {}
            arrow = file.read()
    except (pa.ArrowException, OSError) as error:
        raise TableError(
            f"{path} cannot be read as Parquet",
            cause=str(error).splitlines()[0],
            hint="the file is truncated, damaged or no Parquet: copy it again, or profile again",
        ) from None
    metadata = {
        key.decode().removeprefix(METADATA_PREFIX): value.decode()
        for key, value in raw.items()
        if key.decode(errors="replace").startswith(METADATA_PREFIX)
    }
    return arrow, metadata


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
            exact = pa.string() if column.dtype == "string" else pa.from_numpy_dtype(dtype)
            # cast() and to_numpy() import pyarrow.compute and pandas, half a second together.
            cast = values if values.type == exact else values.cast(exact)
            # A missing number comes out as NaN.
            columns[column.name] = np.array(cast.to_pylist(), dtype=dtype)
        except pa.ArrowInvalid as error:
            raise TableError(
                f"{path}: {column.name} is not {column.dtype}",
                cause=str(error),
                hint=_REPROFILE,
            ) from None
    return columns


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
        if not metadata[key].isdecimal() or int(metadata[key]) < 1:
            raise TableError(
                f"{name}: metadata {key} must be a positive integer, found {metadata[key]!r}",
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
    for field in KEY_COLUMNS[1:]:
        _refuse(columns[field] < 0, columns, field, name)
    forward = kinds == str(RowKind.FORWARD)
    tokens = columns["prefill_tokens"] + columns["decode_requests"]
    _refuse(forward & (tokens == 0), columns, "prefill_tokens", name)
    _check_duplicates(columns, name)
    power_w = columns["energy_j"] / columns["latency_ms"] * 1e3 / tp
    low, high = PLAUSIBLE_GPU_POWER_W
    odd = np.flatnonzero((power_w < low) | (power_w > high))
    if odd.size:
        row = int(odd[0])
        raise TableError(
            f"{name}: row {row} means {power_w[row]:.4g} W per GPU, expected {low:g} to {high:g}",
            cause=f"energy_j = {columns['energy_j'][row]:.6g}, latency_ms = "
            f"{columns['latency_ms'][row]:.6g}, tp = {tp}",
            hint="energy is in joules and latency in milliseconds: were millijoules or seconds "
            "written?",
        )


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
