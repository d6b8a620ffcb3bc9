"""Azure's LLM inference traces of 2023 (no UTC offset) and 2024 (with one).

AzurePublicDataset: Patel et al., "Splitwise", ISCA 2024; Stojkovic et al., "DynamoLLM",
HPCA 2025. Columns TIMESTAMP, ContextTokens, GeneratedTokens. The traces carry no model length
and no clients.
"""

from pathlib import Path

from beamprof.traces.importers.base import ForeignRows, Importer, number, numbered, read_csv
from beamprof.traces.importers.timestamps import seconds_from_first

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def read(path: Path) -> ForeignRows:
    """Both layouts; the first request is time 0."""
    frame = read_csv(path, COLUMNS).select(
        arrival_s=seconds_from_first("TIMESTAMP"),
        input_tokens=number("ContextTokens"),
        output_tokens=number("GeneratedTokens"),
    )
    return ForeignRows(numbered(frame), from_first_request=True)


IMPORTER = Importer(
    name="azure",
    title="Azure LLM inference trace, 2023 and 2024",
    columns=", ".join(COLUMNS),
    licence="CC-BY-4.0 as published in AzurePublicDataset",
    recognises=lambda columns: set(columns) == set(COLUMNS),
    read=read,
)
