"""Trace rows of aiperf, guidellm, dynamo and others: input_length, output_length, and perhaps
timestamp, hash_ids, session_id and delay.

aiperf counts milliseconds and 512-token blocks, guidellm seconds; others do as they like. The
numbers decide (see clock and blocks), or the user. A turn with a delay instead of a time waits
for the answer before it: it has no arrival of its own, and is no request of a trace.
"""

from typing import Any

import polars as pl

from beamprof.traces.importers.base import ForeignRows, Importer, Reading, has, held, numbered
from beamprof.traces.importers.blocks import block_ids, block_size
from beamprof.traces.importers.clock import UNITS_S, crowded, fractional, no_unit, read_times
from beamprof.traces.importers.sheet import Cells, Sheet

LENGTHS = ("input_length", "output_length")
OTHERS = ("timestamp", "delay", "hash_ids", "session_id")
AIPERFS = ("session_id", "delay", "hash_ids", "text_input")
BLOCK_TOKENS = 512  # aiperf's default for such rows


def read(sheet: Sheet, reading: Reading) -> ForeignRows:
    """The rows with a time of their own; turns that wait for another are counted."""
    cells = sheet.read((*LENGTHS, *OTHERS))
    tokens = cells.numbers("input_length")
    ids = block_ids(sheet, cells.values("hash_ids"))
    size = block_size(sheet, tokens, ids, reading, usual=BLOCK_TOKENS)
    columns = {
        "input_tokens": tokens,
        "output_tokens": cells.numbers("output_length"),
        **held(cells, {"session_id": "session_id"}),
    }
    if size is not None:
        columns["prefix_hashes"] = ids
    found: dict[str, Any] = {} if size is None else {"prefix_block_tokens": size}
    times = cells.numbers("timestamp")
    if cells.holds("timestamp"):
        unit = None if reading.time_unit else _unit(sheet, cells, times, named=reading.named)
        arrival = read_times(sheet, cells, "timestamp", reading, unit)
        columns = {"arrival_s": arrival.seconds, **columns}
        found["time_unit"] = arrival.unit
    frame = numbered(columns)
    follows = times.is_null() & cells.numbers("delay").is_not_null() & ("arrival_s" in columns)
    return ForeignRows(
        frame.filter(~follows),
        dropped={"turns_after_a_delay": int(follows.sum())} if follows.any() else {},
        prefix_block_tokens=size,
        found=found,
        unread=tuple(name for name in cells.names if name not in (*LENGTHS, *OTHERS)),
    )


def _unit(sheet: Sheet, cells: Cells, times: pl.Series, *, named: bool) -> str | None:
    """Aiperf's milliseconds, where the file shows that it is aiperf's; None: its size must say."""
    aiperfs = named or any(name in cells.names for name in AIPERFS)
    if not aiperfs:
        return None
    if not named and (fractional(times) or crowded(times * UNITS_S["ms"])):
        raise no_unit(sheet, "timestamp", times)
    return "ms"


IMPORTER = Importer(
    name="aiperf",
    title="trace rows of aiperf, guidellm and dynamo",
    columns="[timestamp, delay,] input_length, output_length, [hash_ids, session_id]",
    licence="unknown",
    required=LENGTHS,
    recognises=has(*LENGTHS),
    read=read,
)
