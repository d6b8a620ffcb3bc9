"""The seam between foreign files and BEAM's table."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ImportOverrides:
    """What the user says about a file, over what the file says itself. ``None``: not said."""

    model: str | None = None
    tp: int | None = None
    pp: int | None = None
    device: str | None = None
    origin: str | None = None
    licence: str | None = None


@dataclass(frozen=True, slots=True)
class ImportedTable:
    """Rows in BEAM's columns and units, not yet sealed.

    Attributes:
        columns: columns of schema.COLUMNS; nullable ones that the format lacks are left out.
        metadata: schema.METADATA_KEYS without prefix, but schema_version and rows_sha256.
        dropped_rows: rows that the file itself marks as not valid.
        notes: what the format does not record, for people.
    """

    columns: Mapping[str, NDArray[Any]]
    metadata: Mapping[str, str]
    dropped_rows: int
    notes: tuple[str, ...]


class Importer(Protocol):
    """Reads one format."""

    def __call__(self, path: Path, overrides: ImportOverrides) -> ImportedTable:
        """Read a file. Raises ImportFormatError where it is not what the format says."""
        ...
