"""The cells of a foreign file, whatever carries it: CSV, JSON lines, one JSON value, Parquet.

A Sheet knows its columns at once and reads the cells that an importer asks for. Everything is
read as it is written, so that a bad cell can be named by its row instead of failing the file.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from beamprof.errors import ImportFormatError

_MOST_JSON_BYTES = 1 << 30  # one JSON value is read at once and takes several times its size
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


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
        """A column as Float64, null where a cell is no number; all null where it is missing.

        Of dates: microseconds since 1970.
        """
        column = self.columns.get(name)
        if column is None:
            return pl.Series(name, [None] * self.height, dtype=pl.Float64)
        if isinstance(column, pl.Series):
            return _as_numbers(column)
        return pl.Series(name, [_number(value) for value in column], dtype=pl.Float64)

    def words(self, name: str) -> pl.Series:
        """A column as text, null where a cell is empty."""
        column = self.columns.get(name)
        if column is None:
            return pl.Series(name, [None] * self.height, dtype=pl.String)
        if isinstance(column, pl.Series) and isinstance(column.dtype, pl.Duration):
            return column.dt.to_string()
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
            character, kept as an escape) or that is none (another encoding's letters).
    """

    path: Path
    carrier: str
    columns: tuple[str, ...]
    read: Callable[[Sequence[str]], Cells]
    repaired: dict[str, int] = field(default_factory=dict)


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
    there = [name for name in wanted if "." in name and name.partition(".")[0] in names]
    seen = reached(tuple(names), there)
    return Cells(height, tuple(_sound(name) for name in seen), dict(columns))


def reached(names: Sequence[str], wanted: Collection[str]) -> tuple[str, ...]:
    """A file's columns, those of objects replaced by the fields within that were asked for."""
    dotted = [name for name in wanted if "." in name and name not in names]
    roots = {name.partition(".")[0] for name in dotted}
    return (*(name for name in names if name not in roots), *dotted)


def _within(record: dict[str, Any], name: str) -> Any:
    value: Any = record
    for key in name.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def _as_numbers(column: pl.Series) -> pl.Series:
    """A column of whatever Parquet holds as Float64; null where it holds no numbers."""
    dtype = column.dtype
    if isinstance(dtype, pl.Datetime | pl.Date):
        return column.cast(pl.Datetime("us")).cast(pl.Int64).cast(pl.Float64)
    if isinstance(dtype, pl.Categorical | pl.Enum):
        column = column.cast(pl.String)
    elif not (dtype.is_numeric() or isinstance(dtype, pl.String)):
        return pl.Series(column.name, [None] * len(column), dtype=pl.Float64)
    return column.cast(pl.Float64, strict=False)


def _number(value: object) -> float | None:
    """A JSON value as float, also where it is a number in quotes; None where it is no number."""
    if isinstance(value, str) and not _NUMBER.fullmatch(value.strip()):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (OverflowError, ValueError):
        return None


def _sound(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
