"""Rows with our own names: arrival_s, input_tokens, output_tokens, one request a row.

Optional: client_id, session_id, slo_class; first_token_s and last_token_s as they were observed;
slo_ttft_ms, slo_tbt_ms, slo_tpot_ms and slo_e2e_ms of single requests; and prefix_hashes, for
which a row also states prefix_block_tokens. Times are seconds from the trace's start, whose
length a row may state as duration_s. Without arrival_s the other usual names of an arrival are
looked for: their unit is what the name or the size of the numbers says.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import polars as pl

from beamprof.errors import ImportFormatError
from beamprof.traces.importers.base import LENGTHS, ForeignRows, Reading, held, numbered
from beamprof.traces.importers.blocks import block_ids
from beamprof.traces.importers.clock import read_times
from beamprof.traces.importers.sheet import Sheet
from beamprof.traces.trace import OPTIONAL

ARRIVAL = "arrival_s"
HASHES, BLOCK, DURATION = "prefix_hashes", "prefix_block_tokens", "duration_s"
# Names of an arrival, and the unit that each states.
ARRIVALS: Mapping[str, str | None] = MappingProxyType({
    ARRIVAL: "s", "arrival_ms": "ms", "arrival_us": "us", "arrival_ns": "ns",
    "arrival_time_s": "s", "arrival_time_ms": "ms", "arrival_time_ns": "ns",
    "arrival_time": None, "arrived_at": None, "arrival": None, "timestamp_ms": "ms",
    "timestamp": None, "start_time": None, "startTime": None, "created_at": None,
    "created": None, "time": None,
})  # fmt: skip
WORDS = tuple(name for name, dtype in OPTIONAL.items() if dtype == pl.String())
NUMBERS = tuple(name for name, dtype in OPTIONAL.items() if dtype == pl.Float64())
COLUMNS = (*ARRIVALS, *LENGTHS, *WORDS, *NUMBERS, HASHES, BLOCK, DURATION)


def read_own(sheet: Sheet, reading: Reading) -> ForeignRows:
    """The file's rows; a column that no row has is left out.

    Raises:
        ImportFormatError: hashes without the size of their blocks, or a size that is none.
    """
    cells = sheet.read(COLUMNS)
    columns = {name: cells.numbers(name) for name in LENGTHS}
    name, found = next((name for name in ARRIVALS if cells.holds(name)), None), {}
    if name is not None:
        arrival = read_times(sheet, cells, name, reading, unit=ARRIVALS[name])
        columns = {ARRIVAL: arrival.seconds, **columns}
        found = {} if ARRIVALS[name] else {"time_unit": arrival.unit}
    columns |= held(cells, {name: name for name in WORDS})
    for other in NUMBERS:
        numbers = cells.numbers(other)
        if numbers.null_count() < cells.height:
            columns[other] = numbers
    ids = block_ids(sheet, cells.values(HASHES))
    if ids.null_count() < cells.height:
        columns[HASHES] = ids
    return ForeignRows(
        numbered(columns),
        duration_s=_stated(sheet, DURATION, cells.values(DURATION)),
        prefix_block_tokens=reading.block_tokens or _block_tokens(sheet, cells.values(BLOCK)),
        found=found,
        unread=tuple(
            one
            for one in cells.names
            if one != "request_id" and (one not in COLUMNS or (one in ARRIVALS and one != name))
        ),
    )


def _stated(sheet: Sheet, name: str, values: list[Any]) -> float | None:
    """The first value there is: it belongs to the file, though it stands in a row.

    Raises:
        ImportFormatError: it is no number above 0.
    """
    value = next((value for value in values if value is not None), None)
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not (math.isfinite(number) and number > 0):
        raise ImportFormatError(
            f"{sheet.path}: {name} must be a number above 0", cause=f"found {ascii(value)[:60]}"
        )
    return number


def _block_tokens(sheet: Sheet, values: list[Any]) -> int | None:
    stated = _stated(sheet, BLOCK, values)
    if stated is not None and stated != int(stated):
        raise ImportFormatError(
            f"{sheet.path}: {BLOCK} must be a whole number above 0", cause=f"found {stated:g}"
        )
    return None if stated is None else int(stated)
