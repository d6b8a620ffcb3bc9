"""The sheet in a file, by what its first bytes say it is: CSV, JSON lines, one JSON value, Parquet.

Where a foreign program's own quirks are met: headers and cells of another encoding, columns that
Parquet keeps as dates, categories or objects.
"""

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from beamprof.errors import ImportFormatError
from beamprof.file_kind import kind_of
from beamprof.traces.importers.sheet import Cells, Sheet, cells_of, json_lines, json_object, reached
from beamprof.unreadable import UNREADABLE, first_line

_PEEK_BYTES = 1 << 20
SEPARATORS = ",\t;"
# Bytes that no text has in its first line, in whatever 8-bit encoding.
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1f\x7f]")
_NOT_THE_FILE = (
    ("version https://git-lfs", "a pointer of git-lfs, not the file", "git lfs pull"),
    ("<", "a web page or XML", "download the file itself"),
)


def open_sheet(file: Path, path: Path) -> Sheet:
    """The sheet in an unpacked ``file`` that the user calls ``path``.

    Raises:
        ImportFormatError: unreadable, empty, or neither of the carriers.
    """
    try:
        with file.open("rb") as opened:
            head = opened.read(_PEEK_BYTES)
    except OSError as error:
        raise ImportFormatError(f"cannot read {path}", cause=error.strerror) from None
    if head.startswith(b"PAR1"):
        return _parquet_sheet(file, path)
    if not head.strip(b"\xef\xbb\xbf \t\r\n"):
        raise ImportFormatError(f"{path} is empty", hint="is it the right file, and whole?")
    line = _header(file, path, head.splitlines()[0])
    if line.lstrip().startswith("{"):
        return _json_sheet(file, path)
    if line.lstrip().startswith("["):
        return _records_sheet(path, "JSON", lambda: enumerate(_objects(file, path)))
    return _csv_sheet(file, path, line)


def _header(file: Path, path: Path, first: bytes) -> str:
    """The first line, in the encoding that it can be read in.

    Raises:
        ImportFormatError: it is no text, or that of something else than a trace.
    """
    kind = kind_of(file)
    known = kind.startswith(("a ", "an "))
    line = None if known or _BINARY.search(first) else _decoded(first)
    if line is None:
        raise ImportFormatError(
            f"{path} is not text",
            cause=f"it is {kind}" if known else "its first line is binary",
            hint="unpack archives and save spreadsheets as CSV first; read are CSV, JSON lines, "
            "JSON and Parquet, also packed by gzip, bzip2, xz or zstd",
        )
    for start, words, hint in _NOT_THE_FILE:
        if line.lstrip().startswith(start):
            raise ImportFormatError(f"{path} is {words}", hint=hint)
    return line


def _decoded(first: bytes) -> str | None:
    """UTF-8, or a header with Western European letters in it; None where it is neither."""
    try:
        return first.decode("utf-8-sig")
    except UnicodeDecodeError:
        line = first.decode("cp1252", "replace")
        return line if any(mark in line for mark in SEPARATORS) else None


def _json_sheet(file: Path, path: Path) -> Sheet:
    try:
        _, first = next(json_lines(file, path))
    except ImportFormatError as broken_line:
        try:
            whole = json_object(file, path)  # one object over many lines
        except ImportFormatError:
            raise broken_line from None
        return _records_sheet(path, "JSON", lambda: iter([(0, whole)]), tuple(whole))
    return _records_sheet(path, "JSON lines", lambda: json_lines(file, path), tuple(first))


def _records_sheet(
    path: Path,
    carrier: str,
    records: Callable[[], Iterable[tuple[int, dict[str, Any]]]],
    columns: tuple[str, ...] | None = None,
) -> Sheet:
    if columns is None:
        _, first = next(iter(records()), (0, {}))
        columns = tuple(first)
    repaired: dict[str, int] = {}

    def read(wanted: Sequence[str]) -> Cells:
        repaired.clear()
        return cells_of(records(), wanted, repaired)

    return Sheet(path, carrier, columns, read, repaired)


def _objects(file: Path, path: Path) -> list[dict[str, Any]]:
    rows = json_object(file, path)
    for row, record in enumerate(rows):
        if not isinstance(record, dict):
            raise ImportFormatError(
                f"{path}: entry {row} is not a JSON object", cause=f"found {type(record).__name__}"
            )
    if not rows:
        raise ImportFormatError(f"{path} is an empty list", hint="download the file again")
    return list(rows)


def _csv_sheet(file: Path, path: Path, line: str) -> Sheet:
    separator = max(SEPARATORS, key=lambda mark: (line.count(mark), -SEPARATORS.index(mark)))
    try:
        names = next(csv.reader([line], delimiter=separator), [])
    except csv.Error as error:
        raise ImportFormatError(f"{path} has no header of a CSV file", cause=str(error)) from None
    columns = tuple(name.strip() for name in names)

    def read(wanted: Sequence[str]) -> Cells:
        named = [name for name in columns if name in wanted]
        if len(set(named)) != len(named):
            twice = next(name for name in named if named.count(name) > 1)
            raise ImportFormatError(
                f"{path}: two columns are called {twice}",
                cause=f"found {', '.join(columns)}",
                hint="give each a name of its own",
            )
        places = [place for place, name in enumerate(columns) if name in wanted]
        frame = _csv_cells(file, path, places, separator)
        frame.columns = [columns[place] for place in places]
        trimmed = pl.all().str.strip_chars()
        frame = frame.with_columns(pl.when(trimmed != "").then(trimmed).name.keep())
        repaired.clear()
        for name in frame.columns:
            if count := int(frame[name].str.contains("\ufffd").sum()):
                repaired[name] = count
        return Cells(frame.height, columns, dict(_series(frame)))

    repaired: dict[str, int] = {}
    return Sheet(path, "CSV", columns, read, repaired)


def _csv_cells(file: Path, path: Path, places: Sequence[int], separator: str) -> pl.DataFrame:
    """The columns at these places as text; bytes that are no UTF-8 become replacement characters.

    Raises:
        ImportFormatError: rows that no CSV file has.
    """
    try:
        try:
            return pl.read_csv(
                file, columns=places, infer_schema=False, glob=False, separator=separator
            )
        except pl.exceptions.ComputeError as error:
            if "utf-8" not in str(error).lower():
                raise
            return pl.read_csv(
                file, columns=places, infer_schema=False, glob=False, separator=separator,
                encoding="utf8-lossy",
            )  # fmt: skip
    except UNREADABLE as error:
        raise ImportFormatError(
            f"{path} is not a readable CSV file",
            cause="a row has more cells than the header has names"
            if "more fields" in str(error)
            else first_line(error),
            hint="is a cell with the separator in it without quotes, or the file cut off?",
        ) from None


def _parquet_sheet(file: Path, path: Path) -> Sheet:
    try:
        schema = pl.read_parquet_schema(file)
    except UNREADABLE as error:
        raise ImportFormatError(
            f"{path} is not a readable Parquet file", cause=first_line(error)
        ) from None

    def read(wanted: Sequence[str]) -> Cells:
        roots = {name if name in schema else name.partition(".")[0] for name in wanted}
        names = [name for name in schema if name in roots]
        try:
            frame = pl.read_parquet(file, columns=names, glob=False)
        except UNREADABLE as error:
            raise ImportFormatError(
                f"{path} is not a readable Parquet file", cause=first_line(error)
            ) from None
        columns = {name: _column(frame, name) for name in wanted}
        there = {name: column for name, column in columns.items() if column is not None}
        cells = {
            name: column.to_list() if column.dtype.is_nested() else column
            for name, column in there.items()
        }
        return Cells(frame.height, reached(tuple(schema), there), cells)

    return Sheet(path, "Parquet", tuple(schema), read)


def _column(frame: pl.DataFrame, name: str) -> pl.Series | None:
    """A column, or a field within one of objects; None where there is none."""
    if name in frame.columns:
        return frame[name]
    root, *fields = name.split(".")
    column = frame[root] if root in frame.columns else None
    for field in fields:
        if column is None or not isinstance(column.dtype, pl.Struct):
            return None
        known = [one.name for one in column.dtype.fields]
        column = column.struct.field(field) if field in known else None
    return column


def _series(frame: pl.DataFrame) -> Iterator[tuple[str, pl.Series]]:
    for name in frame.columns:
        yield name, frame[name]
