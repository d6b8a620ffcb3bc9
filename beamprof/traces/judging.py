"""Which rows of a foreign file are no requests, and what is said of the first one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from beamprof.errors import TraceError
from beamprof.traces.importers.base import ForeignRows
from beamprof.traces.importers.import_command import import_with
from beamprof.traces.importers.sheet import Sheet
from beamprof.traces.trace import SLOS_MS, TIMES_S

_MOST_TOKENS = 2**31 - 1
_MOST_CELLS, _MOST_LETTERS = 6, 40
_NEEDED = ("arrival_s", "input_tokens", "output_tokens")
_CLOCKS = (
    "first_token_before_arrival",
    "last_token_before_first_token",
    "last_token_before_arrival",
)


def reason_of(columns: list[str]) -> pl.Expr:
    """Why a row is no request, the first reason only; null for a sound row."""
    arrival = pl.col("arrival_s")
    reason = (
        pl.when(arrival.is_null() | ~arrival.is_finite())
        .then(pl.lit("arrival_not_a_number"))
        .when(arrival < 0)
        .then(pl.lit("arrival_negative"))
    )
    for name in ("input_tokens", "output_tokens"):
        tokens = pl.col(name)
        no_count = tokens.is_null() | ~tokens.is_finite() | (tokens != tokens.floor())
        reason = (
            reason.when(no_count)
            .then(pl.lit(f"{name}_not_a_whole_number"))
            .when(tokens > _MOST_TOKENS)
            .then(pl.lit(f"{name}_more_than_any_model_takes"))
            .when(tokens < 1)
            .then(pl.lit(f"{name}_below_1"))
        )
    for earlier, later in (TIMES_S[:2], TIMES_S[1:], (TIMES_S[0], TIMES_S[2])):
        if earlier in columns and later in columns:
            late = pl.col(later)
            reason = (
                reason.when(late.is_not_null() & ~late.is_finite())
                .then(pl.lit(f"{later}_not_a_number"))
                .when(late < pl.col(earlier))
                .then(pl.lit(f"{later[:-2]}_before_{earlier[:-2]}"))
            )
    for name in SLOS_MS:
        if name in columns:
            slo = pl.col(name)
            reason = reason.when(slo.is_not_null() & ~(slo.is_finite() & (slo > 0))).then(
                pl.lit(f"{name}_not_above_0")
            )
    return reason.otherwise(pl.lit(None, dtype=pl.String)).alias("reason")


def no_request(
    frame: pl.DataFrame, reasons: pl.Series, path: Path, written: Callable[[int], str]
) -> TraceError:
    """The first row that is no request.

    Args:
        frame: all rows, in our columns.
        reasons: of each; null for a sound one.
        path: what the user calls the file.
        written: a row's cells as the file has them.
    """
    bad = frame.filter(reasons.is_not_null())
    row = bad.row(0, named=True)
    found = "" if all(row[name] is not None for name in _NEEDED) else written(row["request_id"])
    reason = str(reasons.drop_nulls()[0])
    are = "is" if bad.height == 1 else "are"
    return TraceError(
        f"{path}: row {row['request_id']} (from 0) is no request: {reason.replace('_', ' ')}",
        cause=f"found {found or _as_read(row)}; {bad.height} of {frame.height} rows {are} bad",
        hint=_hint(reason, path, every=bad.height == frame.height),
    )


def _hint(reason: str, path: Path, *, every: bool) -> str:
    """What helps; to drop all rows does not."""
    if not every:
        return f"drop and count such rows: {import_with(path, '--bad-rows drop')}"
    if reason in _CLOCKS:
        return "are arrivals and tokens on one clock, in one unit?"
    if reason == "arrival_not_a_number":
        return (
            "times are numbers, or dates to the second with the year first and no names of months "
            "or zones: "
            "2024-05-10 14:00:00.25+02:00"
        )
    if reason.endswith("not_a_whole_number"):
        return "lengths are whole numbers of tokens, without separators or units"
    if reason.endswith("more_than_any_model_takes"):
        return "lengths are tokens of one request: are these bytes, or sums over requests?"
    formats = import_with(path, "--format NAME")
    return f"no row is a request: is this the right file? If it is of another format: {formats}"


def _as_read(row: dict[str, Any]) -> str:
    names = (*TIMES_S, "input_tokens", "output_tokens", *SLOS_MS)
    return ", ".join(
        f"{name} {'no number' if row[name] is None else format(row[name], '.9g')}"
        for name in names
        if name in row and (row[name] is not None or name in _NEEDED)
    )


def as_written(sheet: Sheet, rows: ForeignRows, row: int) -> str:
    """A row's cells as the file has them; empty where its rows are not the file's."""
    # Of JSON lines the first object need not have every key.
    columns = dict.fromkeys((*sheet.columns, *sheet.read(sheet.columns).names))
    names = [name for name in columns if name not in rows.unread][:_MOST_CELLS]
    cells = sheet.read(names)
    if cells.height != rows.frame.height + sum(rows.dropped.values()) or row >= cells.height:
        return ""
    return ", ".join(f"{name} {_cell(cells.values(name)[row])}" for name in names)


def _cell(value: object) -> str:
    if value is None or value == "":
        return "nothing"
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}..."
