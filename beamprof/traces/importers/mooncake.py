"""Mooncake's JSON lines: milliseconds from the start, prefixes as ids of 512-token blocks.

Qin et al., FAST'25. Arrivals of the published traces are quantised to about 3 s, so bursts
below that are theirs, not their users'. Other tools write the same columns with other meanings;
Mooncake's own numbers are whole, and each prompt has one id for every 512 tokens, rounded up.
"""

import polars as pl

from beamprof.errors import ImportFormatError
from beamprof.traces.importers.base import ForeignRows, Importer, Reading, numbered
from beamprof.traces.importers.blocks import block_ids, counts_fit
from beamprof.traces.importers.clock import UNITS_S, crowded, fractional, read_times
from beamprof.traces.importers.import_command import import_with
from beamprof.traces.importers.sheet import Sheet

COLUMNS = ("timestamp", "input_length", "output_length")
HASHES = "hash_ids"
BLOCK_TOKENS = 512  # the Mooncake paper's block of a prefix hash


def read(sheet: Sheet, reading: Reading) -> ForeignRows:
    """Timestamps in ms become seconds; hash_ids become prefix_hashes.

    Raises:
        ImportFormatError: the numbers are not Mooncake's, and nobody says what they are.
    """
    cells = sheet.read((*COLUMNS, HASHES))
    tokens = cells.numbers("input_length")
    ids = block_ids(sheet, cells.values(HASHES))
    if reading.time_unit is None:
        _check_times(sheet, cells.numbers("timestamp"))
    size = reading.block_tokens or BLOCK_TOKENS
    row = counts_fit(tokens, ids, size)
    if row is not None:
        raise ImportFormatError(
            f"{sheet.path} has Mooncake's columns, but not its blocks of {size} tokens",
            cause=f"row {row} has {ids.list.len()[row]} ids for a prompt of {tokens[row]:g} tokens",
            hint="say what it is: "
            + import_with(
                sheet.path,
                *(f"--format aiperf --time-unit {unit} --block-tokens 16" for unit in ("ms", "s")),
            ),
        )
    columns = {
        "arrival_s": read_times(sheet, cells, "timestamp", reading, unit="ms").seconds,
        "input_tokens": tokens,
        "output_tokens": cells.numbers("output_length"),
    }
    hashed = ids.null_count() < ids.len()
    return ForeignRows(
        numbered({**columns, "prefix_hashes": ids} if hashed else columns),
        prefix_block_tokens=size if hashed else None,
        unread=tuple(name for name in cells.names if name not in (*COLUMNS, HASHES)),
    )


def _check_times(sheet: Sheet, times: pl.Series) -> None:
    if fractional(times):
        raise ImportFormatError(
            f"{sheet.path} has Mooncake's columns, but not its whole milliseconds",
            cause=f"the first timestamp with a fraction is {_first_fraction(times):g}",
            hint=f"say what it is: {import_with(sheet.path, '--time-unit s', '--time-unit ms')}",
        )
    if crowded(times * UNITS_S["ms"]):
        raise ImportFormatError(
            f"{sheet.path} has Mooncake's columns, but {times.len():,} requests in "
            f"{float(times.max() - times.min()):g} ms are too many",  # type: ignore[operator, arg-type]
            cause="timestamps look like seconds",
            hint=f"say which: {import_with(sheet.path, '--time-unit s', '--time-unit ms')}",
        )


def _first_fraction(times: pl.Series) -> float:
    known = times.drop_nulls().drop_nans()
    return float(known.filter(known != known.floor())[0])


IMPORTER = Importer(
    name="mooncake",
    title="Mooncake FAST'25 trace",
    columns="timestamp (ms), input_length, output_length, hash_ids",
    licence="Apache-2.0 if it is one of those published in Mooncake",
    required=COLUMNS,
    recognises=lambda columns: set(columns) == {*COLUMNS, HASHES},
    read=read,
)
