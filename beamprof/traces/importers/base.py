"""What an importer is, and how foreign CSV and JSON lines are read for it.

An importer knows its format's columns and quirks; it does not judge rows (see
beamprof.traces.importing). Everything is read as text first, so that a bad cell can be named
by its row instead of failing the file.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from beamprof.errors import ImportFormatError

_PEEK_BYTES = 65536


@dataclass(frozen=True, slots=True)
class ForeignRows:
    """A foreign file in our columns, not yet judged.

    Attributes:
        frame: ``request_id`` (row in the file, from 0), ``arrival_s``, ``input_tokens`` and
            ``output_tokens`` as Float64 with null where the cell is no number, and any of
            trace.OPTIONAL. ``arrival_s`` may be missing where the format has none.
        from_first_request: the format stamps wall-clock times; the first request is time 0.
        duration_s: how long the trace says it lasts, where it does.
        dropped: requests that the format itself marks as none, by reason.
        prefix_block_tokens: tokens of one entry of prefix_hashes.
    """

    frame: pl.DataFrame
    from_first_request: bool = False
    duration_s: float | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)
    prefix_block_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Importer:
    """One foreign format.

    Attributes:
        name: what ``--format`` calls it.
        title: its words in lists.
        columns: header or keys, for messages.
        licence: what its publishers state, where there are such.
        recognises: whether a file with these columns (in order) is of this format.
        read: the file's rows in our columns.
        json_lines: the file holds JSON lines rather than CSV.
    """

    name: str
    title: str
    columns: str
    licence: str
    recognises: Callable[[tuple[str, ...]], bool]
    read: Callable[[Path], ForeignRows]
    json_lines: bool = False


@dataclass(frozen=True, slots=True)
class Head:
    """What a file's first line says: a CSV header, or the keys of a JSON object."""

    columns: tuple[str, ...]
    json_lines: bool


def peek(path: Path) -> Head:
    """The header of a CSV file, or the keys of the first object of a JSON-lines file.

    Raises:
        ImportFormatError: missing, unreadable, empty, or neither.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_PEEK_BYTES)
    except FileNotFoundError:
        raise ImportFormatError(f"there is no file {path}", hint="check the path") from None
    except IsADirectoryError:
        raise ImportFormatError(
            f"{path} is a directory",
            hint=f"draw from a ServeGen pool with: beam trace generate servegen {path}",
        ) from None
    except OSError as error:
        raise ImportFormatError(f"cannot read {path}", cause=error.strerror) from None
    if not head.strip():
        raise ImportFormatError(f"{path} is empty", hint="download the file again")
    try:
        line = head.splitlines()[0].decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ImportFormatError(
            f"{path} is not text",
            cause="its first line is not UTF-8",
            hint="unpack the file first, or load a .parquet trace with its sidecar beside it",
        ) from None
    if not line.lstrip().startswith("{"):
        return Head(tuple(name.strip() for name in next(csv.reader([line]), [])), json_lines=False)
    _, first = next(json_lines(path))
    return Head(tuple(first), json_lines=True)


def read_csv(path: Path, required: tuple[str, ...]) -> pl.DataFrame:
    """A CSV file as text columns, trimmed, with null for an empty cell.

    Raises:
        ImportFormatError: a required column is missing, or the file is no CSV.
    """
    found = _expect(path, required, in_json_lines=False)
    try:
        frame = pl.read_csv(path, infer_schema=False, glob=False)
    except pl.exceptions.PolarsError as error:
        raise ImportFormatError(
            f"{path} is not a readable CSV file",
            cause=str(error).splitlines()[0],
            hint="download the file again",
        ) from None
    if len(frame.columns) != len(found) or len(set(found)) != len(found):
        raise ImportFormatError(
            f"{path}: the header is not one name per column", cause=f"found {', '.join(found)}"
        )
    frame.columns = list(found)
    trimmed = pl.all().str.strip_chars()
    return frame.with_columns(pl.when(trimmed != "").then(trimmed).name.keep())


def read_json_lines(path: Path, required: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
    """As json_lines, of a file whose first object has the required keys.

    Raises:
        ImportFormatError: it has not, or a line is no JSON object.
    """
    _expect(path, required, in_json_lines=True)
    return json_lines(path)


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON-lines file with their row numbers from 0; blank lines are passed.

    Raises:
        ImportFormatError: a line that is no JSON object.
    """
    row = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                raise ImportFormatError(
                    f"{path}: line {number} is not JSON", cause=str(error)
                ) from None
            if not isinstance(record, dict):
                raise ImportFormatError(
                    f"{path}: line {number} is not a JSON object",
                    cause=f"found {type(record).__name__}",
                )
            yield row, record
            row += 1


def number(column: str) -> pl.Expr:
    """A text column as Float64, null where it is no number."""
    return pl.col(column).cast(pl.Float64, strict=False)


def json_number(value: object) -> float | None:
    """A JSON value as float, None where it is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def numbered(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with ``request_id``, its rows from 0, as first column."""
    return frame.with_row_index("request_id").with_columns(pl.col("request_id").cast(pl.Int64))


def has(*names: str) -> Callable[[tuple[str, ...]], bool]:
    """A test for columns that are all there."""
    return lambda columns: set(names) <= set(columns)


def _expect(path: Path, required: tuple[str, ...], *, in_json_lines: bool) -> tuple[str, ...]:
    head = peek(path)
    missing = [name for name in required if name not in head.columns]
    if missing or head.json_lines != in_json_lines:
        form = "JSON lines with the keys" if in_json_lines else "a CSV file with the columns"
        kind = "JSON keys" if head.json_lines else "CSV columns"
        raise ImportFormatError(
            f"{path}: expected {form} {', '.join(required)}"
            + (f"; missing: {', '.join(missing)}" if missing else ""),
            cause=f"found the {kind} {', '.join(head.columns)}",
            hint="leave --format out to have it found by the first line",
        )
    return head.columns
