"""The cells of a foreign file, whatever carries it: CSV, JSON lines, one JSON value, Parquet.

A Sheet knows its columns at once and reads the cells that an importer asks for. Everything is
read as it is written, so that a bad cell can be named by its row instead of failing the file.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from beamprof.errors import ImportFormatError
from beamprof.unreadable import UNREADABLE, first_line

_PEEK_BYTES = 1 << 20
_MOST_JSON_BYTES = 1 << 30  # one JSON value is read at once and takes several times its size
SEPARATORS = ",\t;"


@dataclass(frozen=True, slots=True)
class Cells:
    """Some columns of a file: polars columns, or lists of JSON values.

    Attributes:
        height: rows.
        names: every column that the file has, those not asked for too.
    """

    height: int
    names: tuple[str, ...]
    columns: dict[str, pl.Series | list[Any]]

    def holds(self, name: str) -> bool:
        """Whether a column is there and, in a file with rows, not empty in all of them."""
        empty = self.height > 0 and self.words(name).null_count() == self.height
        return name in self.names and not empty

    def numbers(self, name: str) -> pl.Series:
        """A column as Float64, null where a cell is no number; all null where it is missing."""
        column = self.columns.get(name)
        if column is None:
            return pl.Series(name, [None] * self.height, dtype=pl.Float64)
        if isinstance(column, pl.Series):
            return column.cast(pl.Float64, strict=False)
        return pl.Series(name, [_number(value) for value in column], dtype=pl.Float64)

    def words(self, name: str) -> pl.Series:
        """A column as text, null where a cell is empty."""
        column = self.columns.get(name)
        if column is None:
            return pl.Series(name, [None] * self.height, dtype=pl.String)
        if isinstance(column, pl.Series):
            return column.cast(pl.String, strict=False)
        words = [None if value in (None, "") else str(value) for value in column]
        return pl.Series(name, words, dtype=pl.String)

    def values(self, name: str) -> list[Any]:
        """A column's cells as Python values, None where the column is missing."""
        column = self.columns.get(name)
        if column is None:
            return [None] * self.height
        return column.to_list() if isinstance(column, pl.Series) else column


@dataclass(frozen=True, slots=True)
class Sheet:
    """A file's columns, and the way to its cells.

    Attributes:
        path: for messages, and for files that lie beside it.
        carrier: csv, JSON lines, JSON or Parquet.
        columns: of the header, or the keys of the first object.
        read: the cells of the named columns; a dotted name reaches into objects.
        repaired: filled by ``read``: cells by column with text that no UTF-8 can hold (half a
            character), which is kept as escapes.
    """

    path: Path
    carrier: str
    columns: tuple[str, ...]
    read: Callable[[Sequence[str]], Cells]
    repaired: dict[str, int] = field(default_factory=dict)


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
        raise ImportFormatError(f"{path} is empty", hint="download the file again")
    try:
        line = head.splitlines()[0].decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ImportFormatError(
            f"{path} is not text",
            cause="its first line is not UTF-8, and it is no gzip, bzip2, xz, zstd or Parquet file",
            hint="download the file again, or unpack it first",
        ) from None
    if line.lstrip().startswith("{"):
        return _json_sheet(file, path)
    if line.lstrip().startswith("["):
        return _records_sheet(path, "JSON", lambda: enumerate(_objects(file, path)))
    return _csv_sheet(file, path, line)


def json_object(file: Path, path: Path) -> Any:
    """A whole file as one JSON value.

    Raises:
        ImportFormatError: no JSON, or too large to be read at once.
    """
    size = file.stat().st_size
    if size > _MOST_JSON_BYTES:
        raise ImportFormatError(
            f"{path}: one JSON value of {size / 1e9:.1f} GB is too large to be read at once",
            hint="write one request per line instead (JSON lines)",
        )
    try:
        return json.loads(file.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ImportFormatError(f"{path} is not JSON", cause=str(error)) from None


def json_lines(file: Path, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON-lines file with their row numbers from 0; blank lines are passed.

    Raises:
        ImportFormatError: a line that is no JSON object.
    """
    row = 0
    with file.open("rb") as opened:
        for number, line in enumerate(opened, start=1):
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


def cells_of(
    records: Iterable[tuple[int, dict[str, Any]]],
    wanted: Sequence[str],
    repaired: dict[str, int] | None = None,
) -> Cells:
    """The wanted columns of JSON objects; half characters become escapes and are counted."""
    repaired = {} if repaired is None else repaired
    columns: dict[str, list[Any]] = {name: [] for name in wanted}
    names: dict[str, None] = {}
    height = 0
    for _, record in records:
        names.update(dict.fromkeys(record))
        for name in wanted:
            value = record.get(name)
            if value is None and "." in name:
                value = _within(record, name)
            if isinstance(value, str) and not _encodable(value):
                value = _sound(value)
                repaired[name] = repaired.get(name, 0) + 1
            columns[name].append(value)
        height += 1
    dotted = {name.partition(".")[0] for name in wanted if "." in name}
    reached = [name for name in wanted if "." in name and name.partition(".")[0] in names]
    seen = (*(name for name in names if name not in dotted), *reached)
    return Cells(height, tuple(_sound(name) for name in seen), dict(columns))


def _within(record: dict[str, Any], name: str) -> Any:
    value: Any = record
    for key in name.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


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
        if len(set(columns)) != len(columns):
            raise ImportFormatError(
                f"{path}: the header is not one name per column",
                cause=f"found {', '.join(columns)}",
            )
        places = [place for place, name in enumerate(columns) if name in wanted]
        try:
            frame = pl.read_csv(
                file, columns=places, infer_schema=False, glob=False, separator=separator
            )
        except UNREADABLE as error:
            raise ImportFormatError(
                f"{path} is not a readable CSV file",
                cause=first_line(error),
                hint="download the file again",
            ) from None
        frame.columns = [columns[place] for place in places]
        trimmed = pl.all().str.strip_chars()
        frame = frame.with_columns(pl.when(trimmed != "").then(trimmed).name.keep())
        return Cells(frame.height, columns, dict(_series(frame)))

    return Sheet(path, "CSV", columns, read)


def _parquet_sheet(file: Path, path: Path) -> Sheet:
    try:
        schema = pl.read_parquet_schema(file)
    except UNREADABLE as error:
        raise ImportFormatError(
            f"{path} is not a readable Parquet file", cause=first_line(error)
        ) from None

    def read(wanted: Sequence[str]) -> Cells:
        names = [name for name in schema if name in wanted]
        try:
            frame = pl.read_parquet(file, columns=names, glob=False)
        except UNREADABLE as error:
            raise ImportFormatError(
                f"{path} is not a readable Parquet file", cause=first_line(error)
            ) from None
        return Cells(frame.height, tuple(schema), dict(_series(frame)))

    return Sheet(path, "Parquet", tuple(schema), read)


def _series(frame: pl.DataFrame) -> Iterator[tuple[str, pl.Series]]:
    for name in frame.columns:
        yield name, frame[name]


def _number(value: object) -> float | None:
    """A JSON value as float, None where it is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _sound(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
