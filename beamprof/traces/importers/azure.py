"""Azure's inference traces of 2023 (no UTC offset), 2024 (with one) and 2025 (NumImages).

AzurePublicDataset: Patel et al., "Splitwise", ISCA 2024; Stojkovic et al., "DynamoLLM",
HPCA 2025. Columns TIMESTAMP, ContextTokens, GeneratedTokens. The traces carry no model length
and no clients. What images cost besides their tokens is not known here: such requests are counted.
"""

from beamprof.traces.importers.base import ForeignRows, Importer, Reading, has, numbered
from beamprof.traces.importers.clock import read_times
from beamprof.traces.importers.sheet import Sheet

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
IMAGES = "NumImages"


def read(sheet: Sheet, reading: Reading) -> ForeignRows:
    """All layouts; the first request is time 0."""
    cells = sheet.read((*COLUMNS, IMAGES))
    frame = numbered(
        {
            "arrival_s": read_times(sheet, cells, "TIMESTAMP", reading).seconds,
            "input_tokens": cells.numbers("ContextTokens"),
            "output_tokens": cells.numbers("GeneratedTokens"),
        }
    )
    images = int((cells.numbers(IMAGES) > 0).sum())
    return ForeignRows(
        frame,
        from_first_request=True,
        found={"requests_with_images": images} if images else {},
        unread=tuple(name for name in cells.names if name not in (*COLUMNS, IMAGES)),
    )


IMPORTER = Importer(
    name="azure",
    title="Azure LLM inference trace of 2023, 2024 and 2025",
    columns=", ".join(COLUMNS) + ", [NumImages]",
    licence="CC-BY-4.0 as published in AzurePublicDataset",
    required=COLUMNS,
    recognises=has(*COLUMNS),
    read=read,
)
