"""Import a foreign file as a BEAM table: read, convert, seal, write."""

from dataclasses import dataclass
from pathlib import Path

from beam_runtime.table.perf_table import PerfTable
from beamprof.files import check_writable
from beamprof.tables.importers import ImportOverrides, importer
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
    table = write_table(imported.columns, imported.metadata, output, force=force)
    return TableImport(
        table=table,
        source_path=source,
        output_path=output,
        file_format=file_format,
        dropped_rows=imported.dropped_rows,
        notes=imported.notes,
    )
