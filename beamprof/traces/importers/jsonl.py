"""JSON lines with our own names: arrival_s, input_tokens, output_tokens, one request a line.

Optional: client_id, session_id, slo_class, and prefix_hashes, for which the first line also
states prefix_block_tokens. Times are seconds from the trace's start.
"""

from pathlib import Path

import polars as pl

from beamprof.errors import ImportFormatError
from beamprof.traces.importers.base import (
    ForeignRows,
    Importer,
    has,
    json_number,
    numbered,
    read_json_lines,
)
from beamprof.traces.importers.mooncake import block_ids

COLUMNS = ("arrival_s", "input_tokens", "output_tokens")
WORDS = ("client_id", "session_id", "slo_class")


def read(path: Path) -> ForeignRows:
    """The file's rows; a column that no line has is left out.

    Raises:
        ImportFormatError: a line is no object, or the first lacks a column.
    """
    numbers: dict[str, list[float | None]] = {name: [] for name in COLUMNS}
    words: dict[str, list[str | None]] = {name: [] for name in WORDS}
    hashes: list[list[int] | None] = []
    block_tokens = None
    for row, record in read_json_lines(path, COLUMNS):
        for name in COLUMNS:
            numbers[name].append(json_number(record.get(name)))
        for name in WORDS:
            words[name].append(None if record.get(name) in (None, "") else str(record[name]))
        hashes.append(block_ids(path, row, record.get("prefix_hashes")))
        block_tokens = block_tokens or record.get("prefix_block_tokens")
    frame = pl.DataFrame(
        {**numbers, **words, "prefix_hashes": hashes},
        schema={
            **dict.fromkeys(COLUMNS, pl.Float64),
            **dict.fromkeys(WORDS, pl.String),
            "prefix_hashes": pl.List(pl.Int64),
        },
    )
    held = [name for name in frame.columns if frame[name].null_count() < frame.height]
    return ForeignRows(
        numbered(frame.select(*COLUMNS, *(name for name in held if name not in COLUMNS))),
        prefix_block_tokens=_block_tokens(path, block_tokens),
    )


def _block_tokens(path: Path, value: object) -> int | None:
    if value is None or (type(value) is int and value > 0):
        return value
    raise ImportFormatError(
        f"{path}: prefix_block_tokens must be a whole number above 0", cause=f"found {value!r}"
    )


IMPORTER = Importer(
    name="jsonl",
    title="JSON lines with our column names",
    columns="arrival_s, input_tokens, output_tokens, [client_id, session_id, prefix_hashes, ...]",
    licence="unknown",
    recognises=has(*COLUMNS),
    read=read,
    json_lines=True,
)
