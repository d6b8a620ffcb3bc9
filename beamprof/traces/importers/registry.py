"""Which formats there are, and which one a file is in."""

from pathlib import Path

from beamprof.errors import ImportFormatError
from beamprof.traces.importers import (
    azure,
    beam_artifact,
    burstgpt,
    jsonl,
    mooncake,
    servegen,
    vidur,
)
from beamprof.traces.importers.base import Importer, peek

# In order of recognition: the more particular header first.
IMPORTERS: tuple[Importer, ...] = (
    beam_artifact.IMPORTER,
    azure.IMPORTER,
    burstgpt.IMPORTER,
    vidur.IMPORTER,
    servegen.IMPORTER,
    mooncake.IMPORTER,
    jsonl.IMPORTER,
)


def importer_for(path: Path, name: str | None = None) -> Importer:
    """The importer of this name, or the one that recognises the file's first line.

    Raises:
        ImportFormatError: no such name, no such file, or a header that none knows.
    """
    if name is not None:
        for importer in IMPORTERS:
            if importer.name == name:
                return importer
        raise ImportFormatError(
            f"unknown trace format {name!r}",
            hint=f"known formats: {', '.join(importer.name for importer in IMPORTERS)}",
        )
    head = peek(path)
    for importer in IMPORTERS:
        if importer.json_lines == head.json_lines and importer.recognises(head.columns):
            return importer
    known = "; ".join(f"{importer.name}: {importer.columns}" for importer in IMPORTERS)
    raise ImportFormatError(
        f"{path}: no trace format has these columns",
        cause=f"found {', '.join(head.columns)}",
        hint=f"expected one of {known}",
    )
