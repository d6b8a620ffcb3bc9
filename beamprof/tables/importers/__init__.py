"""Readers of other people's tables: base.py says what one is, one file per format.

A new format is a function ``read(path, overrides) -> ImportedTable`` and one line in FORMATS.
"""

from importlib import import_module

from beamprof.errors import ImportFormatError
from beamprof.tables.importers.base import ImportedTable, Importer, ImportOverrides

# Format -> module with a function ``read``.
FORMATS = {
    "aiconfigurator": "beamprof.tables.importers.aiconfigurator",
    "beam-artifact": "beamprof.tables.importers.beam_artifact",
    "llmservingsim": "beamprof.tables.importers.llmservingsim",
}

FOLDERS = ("aiconfigurator", "llmservingsim")  # formats that are folders of files

__all__ = ["FOLDERS", "FORMATS", "ImportOverrides", "ImportedTable", "Importer", "importer"]


def importer(file_format: str) -> Importer:
    """The reader of a format.

    Raises:
        ImportFormatError: no such format; the hint lists the known ones.
    """
    if file_format not in FORMATS:
        raise ImportFormatError(
            f"unknown format {file_format!r}", hint=f"known formats: {', '.join(sorted(FORMATS))}"
        )
    read: Importer = import_module(FORMATS[file_format]).read
    return read
