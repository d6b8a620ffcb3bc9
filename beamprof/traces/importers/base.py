"""What an importer is: it knows one format's columns and quirks, and does not judge rows.

Judging is one rule for all formats (see beamprof.traces.importing).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from beamprof.traces.importers.sheet import Cells, Sheet

LENGTHS = ("input_tokens", "output_tokens")


@dataclass(frozen=True, slots=True)
class Reading:
    """What the user says about a file that does not say it itself; None: nothing.

    Attributes:
        time_unit: of its numbers that are times, a key of clock.UNITS_S.
        block_tokens: prompt tokens that one prefix hash stands for.
        named: the format was named, not found: its own unit and block size hold unless the
            file contradicts them.
    """

    time_unit: str | None = None
    block_tokens: int | None = None
    named: bool = False


@dataclass(frozen=True, slots=True)
class ForeignRows:
    """A foreign file in our columns, not yet judged.

    Attributes:
        frame: ``request_id`` (row in the file, from 0), ``arrival_s``, ``input_tokens`` and
            ``output_tokens`` as Float64 with null where the cell is no number, and any of
            trace.OPTIONAL. ``arrival_s`` may be missing where the file has none.
        from_first_request: the format stamps wall-clock times; the first request is time 0.
        duration_s: how long the trace says it lasts, where it does.
        dropped: requests that the format itself marks as none, by reason.
        prefix_block_tokens: tokens of one entry of prefix_hashes.
        found: what was recognised rather than stated (unit, block size), for the record.
        unread: columns of the file that no part of the trace was made of.
    """

    frame: pl.DataFrame
    from_first_request: bool = False
    duration_s: float | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)
    prefix_block_tokens: int | None = None
    found: Mapping[str, Any] = field(default_factory=dict)
    unread: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Importer:
    """One foreign format, whatever carries it (CSV, JSON lines, Parquet, any of them packed).

    Attributes:
        name: what ``--format`` calls it.
        title: its words in lists.
        columns: header or keys, for messages.
        licence: what its publishers state, where there are such.
        required: columns that it cannot be read without.
        recognises: whether a file with these columns (in order) is of this format.
        read: the file's rows in our columns.
    """

    name: str
    title: str
    columns: str
    licence: str
    required: tuple[str, ...]
    recognises: Callable[[tuple[str, ...]], bool]
    read: Callable[[Sheet, Reading], ForeignRows]


def numbered(columns: Mapping[str, pl.Series]) -> pl.DataFrame:
    """A frame of these columns with ``request_id``, its rows from 0, as first column."""
    frame = pl.DataFrame({name: series.alias(name) for name, series in columns.items()})
    return frame.with_row_index("request_id").with_columns(pl.col("request_id").cast(pl.Int64))


def held(cells: Cells, columns: Mapping[str, str]) -> dict[str, pl.Series]:
    """Text columns that hold anything: ours by the file's name for it."""
    series = {
        ours: cells.words(theirs) for ours, theirs in columns.items() if theirs in cells.names
    }
    return {name: words for name, words in series.items() if words.null_count() < cells.height}


def has(*names: str) -> Callable[[tuple[str, ...]], bool]:
    """A test for columns that are all there."""
    return lambda columns: set(names) <= set(columns)
