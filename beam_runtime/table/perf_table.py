"""PerfTable: a Parquet perf-energy table as checked numpy arrays.

What it cannot know: whether the GPU still behaves as it did when the table was measured; that
is calibration's business.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from beam_runtime.errors import TableError
from beam_runtime.table.parquet import read_columns
from beam_runtime.table.profile_command import profile_command
from beam_runtime.table.row_checks import check_checksum, check_metadata, check_rows
from beam_runtime.table.schema import RowKind
from beam_runtime.types import Source


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
        columns, metadata = read_columns(path)
        table = cls.from_columns(columns, metadata, name=str(path))
        expected = {"model": model, "tp": tp, "pp": pp, "device": device}
        for field, wanted in expected.items():
            found = metadata[field]
            if wanted is not None and str(wanted) != found:
                raise TableError(
                    f"{path} is a table for {field} {found}, expected {wanted}",
                    hint="profile this one: "
                    + profile_command(metadata, model=model, tp=tp, pp=pp, device=device),
                )
        return table

    @classmethod
    def of(cls, table: "PerfTable | str | Path") -> "PerfTable":
        """The table itself, or the one in the file of that name.

        Raises:
            TableError: as load.
            TypeError: neither a table nor a name.
        """
        if isinstance(table, PerfTable):
            return table
        if isinstance(table, str | Path):
            return cls.load(table)
        raise TypeError(f"expected a PerfTable or a file's name, found a {type(table).__name__}")

    @classmethod
    def from_columns(
        cls,
        columns: Mapping[str, NDArray[Any]],
        metadata: Mapping[str, str],
        *,
        name: str = "table",
    ) -> Self:
        """Check rows and metadata that are already in memory. Raises TableError as load does."""
        check_metadata(metadata, name)
        check_rows(columns, int(metadata["tp"]), name)
        check_checksum(columns, metadata, name)
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
    def host_gap_ms(self) -> float:
        """Host time per stage and step that no pass covers; 0 where it is not known."""
        return float(self.metadata.get("host_gap_ms") or 0.0)

    @property
    def stage_transfer_ms(self) -> float:
        """Sending a step's activations to the next stage; 0 where it is not known."""
        return float(self.metadata.get("stage_transfer_ms") or 0.0)

    @property
    def model_shape(self) -> Mapping[str, Any]:
        """What the metadata say of the whole model's shape; empty where nothing can be read."""
        try:
            shape = json.loads(self.metadata.get("model_shape") or "{}")
        except (ValueError, RecursionError):
            return {}
        return shape if isinstance(shape, dict) else {}

    @property
    def offered_mhz(self) -> tuple[int, ...]:
        """Clocks that its GPUs offer, ascending; empty where the metadata do not say."""
        try:
            clocks = json.loads(self.metadata.get("device_clocks_mhz") or "[]")
        except (ValueError, RecursionError):
            return ()
        whole = isinstance(clocks, list) and all(type(clock) is int for clock in clocks)
        return tuple(sorted(clocks)) if whole else ()

    @property
    def sources(self) -> tuple[Source, ...]:
        """Where the passes come from; one, unless somebody mixed them."""
        passes = self.rows(RowKind.FORWARD)
        return tuple(Source(text) for text in sorted(set(passes["source"].tolist())))

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
