"""Mooncake's JSON lines: milliseconds from the start, prefixes as ids of 512-token blocks.

Qin et al., FAST'25. Arrivals of the published traces are quantised to about 3 s, so bursts
below that are theirs, not their users'.
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

COLUMNS = ("timestamp", "input_length", "output_length")
BLOCK_TOKENS = 512  # the Mooncake paper's block of a prefix hash


def read(path: Path) -> ForeignRows:
    """Timestamps in ms become seconds; hash_ids become prefix_hashes."""
    names = ("arrival_s", "input_tokens", "output_tokens")
    numbers: dict[str, list[float | None]] = {name: [] for name in names}
    hashes: list[list[int] | None] = []
    for row, record in read_json_lines(path, COLUMNS):
        for name, key in zip(names, COLUMNS, strict=True):
            numbers[name].append(json_number(record.get(key)))
        hashes.append(block_ids(path, row, record.get("hash_ids")))
    frame = pl.DataFrame(
        {**numbers, "prefix_hashes": hashes},
        schema={**dict.fromkeys(names, pl.Float64), "prefix_hashes": pl.List(pl.Int64)},
    ).with_columns(pl.col("arrival_s") / 1000.0)
    return ForeignRows(numbered(frame), prefix_block_tokens=BLOCK_TOKENS)


def block_ids(path: Path, row: int, value: object) -> list[int] | None:
    """A list of whole numbers, or None where there is none.

    Raises:
        ImportFormatError: anything else.
    """
    if value is None:
        return None
    if isinstance(value, list) and all(type(item) is int and abs(item) < 2**63 for item in value):
        return value
    raise ImportFormatError(
        f"{path}: row {row}: block ids must be a list of whole numbers",
        cause=f"found {str(value)[:60]}",
    )


IMPORTER = Importer(
    name="mooncake",
    title="Mooncake FAST'25 JSON lines",
    columns="timestamp (ms), input_length, output_length, hash_ids",
    licence="Apache-2.0 as published in Mooncake",
    recognises=has(*COLUMNS),
    read=read,
    json_lines=True,
)
