"""Times as numbers: which unit they are in, and whether the file contradicts what is said of it.

A number is never given a unit because the result looks nice. It has the one that its column or
format states, or that its size proves (2000 to 2100 as a Unix time), or that the user names.
"""

from dataclasses import dataclass

import polars as pl

from beamprof.errors import ImportFormatError
from beamprof.traces.importers.base import Reading
from beamprof.traces.importers.import_command import import_with
from beamprof.traces.importers.sheet import Cells, Sheet
from beamprof.traces.importers.timestamps import seconds_from_first, zoned
from beamprof.units import format_duration

UNITS_S = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_YEAR_2000_S, _YEAR_2100_S = 946_684_800.0, 4_102_444_800.0
# Nobody's trace has more; one in seconds that is read as milliseconds soon does.
_MOST_REQUESTS_PER_S = 100.0


@dataclass(frozen=True, slots=True)
class Times:
    """A column of times in seconds, and the unit that it was found in.

    ``absolute`` times count from elsewhere than the trace's start (1970, a date).
    """

    seconds: pl.Series
    unit: str
    absolute: bool


def epoch_unit(times: pl.Series) -> str | None:
    """The unit in which every one of these numbers is a Unix time of 2000 to 2100, if any."""
    finite = times.drop_nulls().drop_nans()
    finite = finite.filter(finite.is_finite())
    low, high = finite.min(), finite.max()
    if not isinstance(low, float) or not isinstance(high, float):
        return None
    for unit, scale in UNITS_S.items():
        if low * scale >= _YEAR_2000_S and high * scale <= _YEAR_2100_S:
            return unit
    return None


def read_times(
    sheet: Sheet, cells: Cells, column: str, reading: Reading, unit: str | None = None
) -> Times:
    """A column of times in seconds.

    Args:
        sheet: for messages.
        cells: where the column is.
        column: its name.
        reading: what the user says.
        unit: what the column or format states; None: nothing.

    Raises:
        ImportFormatError: no unit is stated and none is proved, or the numbers contradict it.
    """
    numbers = cells.numbers(column)
    kept = cells.columns.get(column)
    if isinstance(kept, pl.Series) and isinstance(kept.dtype, pl.Duration):
        return Times(kept.dt.total_nanoseconds() * UNITS_S["ns"], "s", absolute=False)
    if isinstance(kept, pl.Series) and isinstance(kept.dtype, pl.Datetime | pl.Date):
        return Times(numbers * UNITS_S["us"], "date", absolute=True)
    if numbers.null_count() == cells.height and cells.words(column).null_count() < cells.height:
        return Times(_dates(sheet, column, cells.words(column)), "date", absolute=True)
    if _run_together(numbers):
        raise ImportFormatError(
            f"{sheet.path}: {column} holds dates without separators, such as {_low(numbers):.0f}",
            hint="write them as 2024-05-10 14:00:00.25",
        )
    proved = epoch_unit(numbers)
    if reading.time_unit is not None:
        unit = reading.time_unit
    elif unit in ("s", "ms") and proved not in (None, unit):
        raise _contradicted(sheet, column, numbers, unit, str(proved))
    unit = unit or proved
    if unit is None and numbers.len() == 0:
        unit = "s"  # no rows: said by whoever needs some
    if unit is None:
        raise no_unit(sheet, column, numbers)
    return Times(numbers * UNITS_S[unit], unit, absolute=proved == unit)


def _dates(sheet: Sheet, column: str, words: pl.Series) -> pl.Series:
    """Seconds from the first of these dates.

    Raises:
        ImportFormatError: some state their zone and others do not.
    """
    dates = pl.DataFrame({column: words}).select(
        seconds=seconds_from_first(column), zoned=zoned(column)
    )
    with_zone = dates["zoned"].drop_nulls()
    if with_zone.any() and not with_zone.all():
        row = int((dates["zoned"] != dates["zoned"][0]).arg_true()[0])
        raise ImportFormatError(
            f"{sheet.path}: some of the times in {column} state their zone, others do not",
            cause=f"row 0 has {words[0]}, row {row} has {words[row]}",
            hint="write all of them with their zone (+00:00), or all without one",
        )
    return dates["seconds"].alias(column)


def no_unit(sheet: Sheet, column: str, numbers: pl.Series) -> ImportFormatError:
    """Nothing says what the numbers are."""
    return ImportFormatError(
        f"{sheet.path}: {column} has no unit: {_both(numbers)}",
        cause="neither its name nor its numbers say which",
        hint=f"say it: {import_with(sheet.path, '--time-unit ms', '--time-unit s')}",
    )


def _run_together(numbers: pl.Series) -> bool:
    """Whether every number is a date and a time, 20240510140000: in no unit is it our time."""
    whole = numbers.drop_nulls().drop_nans()
    if whole.is_empty() or not whole.is_between(2e13, 2.1e13).all():
        return False
    dates = whole.cast(pl.Int64).cast(pl.String).str.to_datetime("%Y%m%d%H%M%S", strict=False)
    return dates.null_count() == 0


def crowded(times_s: pl.Series) -> bool:
    """Whether the times lie closer than anybody's requests, and a thousand times wider do not."""
    finite = times_s.drop_nulls().drop_nans()
    span_s = _span(finite)
    if finite.len() < 3 or span_s <= 0:
        return False
    rate_rps = (finite.len() - 1) / span_s
    return rate_rps > _MOST_REQUESTS_PER_S >= rate_rps / 1e3


def fractional(numbers: pl.Series) -> bool:
    """Whether any number has a fraction."""
    finite = numbers.drop_nulls().drop_nans()
    return bool((finite != finite.floor()).any())


def _contradicted(
    sheet: Sheet, column: str, numbers: pl.Series, unit: str, proved: str
) -> ImportFormatError:
    return ImportFormatError(
        f"{sheet.path}: {column} should be in {unit}, but {_low(numbers):.0f} is a time of "
        f"{_year(numbers, proved)} in {proved}",
        cause=f"read so: {_both(numbers, unit, proved)}",
        hint="say which: "
        + import_with(sheet.path, f"--time-unit {proved}", f"--time-unit {unit}"),
    )


def _both(numbers: pl.Series, first: str = "ms", second: str = "s") -> str:
    finite = numbers.drop_nulls().drop_nans()
    readings = [
        f"{format_duration(_span(finite) * UNITS_S[unit])} if it is in {unit}"
        for unit in (first, second)
    ]
    return f"the file lasts {' or '.join(readings)}"


def _span(finite: pl.Series) -> float:
    low, high = finite.min(), finite.max()
    return float(high - low) if isinstance(low, float) and isinstance(high, float) else 0.0


def _year(numbers: pl.Series, unit: str) -> int:
    return 1970 + int(_low(numbers) * UNITS_S[unit] / 31_556_952)


def _low(numbers: pl.Series) -> float:
    low = numbers.drop_nans().min()
    return float(low) if isinstance(low, float) else 0.0
