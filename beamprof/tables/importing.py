"""Import a foreign file as a BEAM table: read, convert, add idle power, seal, write."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.schema import RowKind
from beamprof.devices.device import resolve_device
from beamprof.errors import DeviceError
from beamprof.files import check_writable
from beamprof.tables.findings import judge_offered
from beamprof.tables.importers import ImportedTable, ImportOverrides, importer
from beamprof.tables.importers.idle_rows import with_idle_rows
from beamprof.tables.table_file import write_table


@dataclass(frozen=True, slots=True)
class TableImport:
    """What came of an import.

    Attributes:
        table: as it was written.
        dropped_rows: rows that the file itself marks as not valid.
        notes: what the format does not record.
    """

    table: PerfTable
    source_path: Path
    output_path: Path
    file_format: str
    dropped_rows: int
    notes: tuple[str, ...]


def import_table(
    source: str | Path,
    output: str | Path,
    *,
    file_format: str,
    overrides: ImportOverrides | None = None,
    force: bool = False,
) -> TableImport:
    """Read a foreign table and write it as BEAM's.

    Args:
        source: the foreign file.
        output: the Parquet file to write.
        file_format: a key of beamprof.tables.importers.FORMATS.
        overrides: what the user says over what the file says.
        force: replace an existing output.

    Raises:
        ImportFormatError: an unknown format, or a file that is not what its format says.
        TableError: the rows make no table (see beamprof.tables.table_file).
        OutputError: the output exists without force, or cannot be written.
    """
    source, output = Path(source), Path(output)
    read = importer(file_format)
    check_writable(output, force=force)
    imported = read(source, overrides or ImportOverrides())
    columns, added = _with_idle_power(imported)
    table = write_table(columns, imported.metadata, output, force=force)
    return TableImport(
        table=table,
        source_path=source,
        output_path=output,
        file_format=file_format,
        dropped_rows=imported.dropped_rows,
        notes=imported.notes + added + _odd_clocks(table),
    )


def _odd_clocks(table: PerfTable) -> tuple[str, ...]:
    """A note where its GPUs cannot be locked to its clocks."""
    finding = judge_offered(table)
    return () if finding.ok is not False else (f"clocks: {finding.text}; {finding.hint}",)


def _with_idle_power(
    imported: ImportedTable,
) -> tuple[Mapping[str, NDArray[Any]], tuple[str, ...]]:
    """The columns with idle rows, by the device file where the format has none; and a note."""
    columns = imported.columns
    if (columns["kind"] == str(RowKind.IDLE)).any():
        return columns, ()
    try:
        device = resolve_device(imported.metadata["device"])
    except DeviceError as error:  # a GPU that BEAM has no file of, or a slip of the pen
        note = f"{error.message}, so what it draws while it waits is not known; {error.hint}"
        return columns, (note,)
    note = (
        f"idle power is taken from {device.name}'s device file; those rows are marked as modelled"
    )
    return with_idle_rows(columns, device, int(imported.metadata["tp"])), (note,)
