"""Wall-clock times as text -> seconds from the earliest, exact to the nanosecond.

Forms met: ``2023-11-16 18:17:03.9799600`` (seven digits), ``2024-05-10 00:00:00.009930+00:00``,
``2024-05-10 00:00:00+00:00`` (no fraction), ``1970-01-01 19:00:00.016633+0000``; T and Z too,
slashes for dashes, a comma before the fraction, an offset of hours alone (+02). The year stands
first: what 05/06/2024 means nobody can tell.
"""

import polars as pl

# Not \d, which is a digit of any script: an Arabic one is no number to polars.
_FORM = (
    r"^(?P<date>[0-9]{4}[-/][0-9]{2}[-/][0-9]{2})[ T](?P<time>[0-9]{2}:[0-9]{2}:[0-9]{2})"
    r"(?:[.,](?P<fraction>[0-9]{1,9})[0-9]*)?"
    r"\s*(?P<zone>Z|UTC|(?P<sign>[+-])(?P<hours>[0-9]{2}):?(?P<minutes>[0-9]{2})?)?$"
)
_NANOSECONDS_PER_S = 1_000_000_000


def seconds_from_first(column: str) -> pl.Expr:
    """Seconds since the earliest time in a text column; null where a cell is no time.

    Whole nanoseconds are subtracted before the one division: a float of an epoch would keep
    no more than 0.2 us.
    """
    parts = pl.col(column).str.extract_groups(_FORM).struct
    date = parts.field("date").str.replace_all("/", "-", literal=True)
    clock = pl.concat_str(date, pl.lit(" "), parts.field("time"))
    whole_s = clock.str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False).dt.epoch("s")
    fraction_ns = parts.field("fraction").fill_null("0").str.pad_end(9, "0").cast(pl.Int64)
    offset_s = (
        parts.field("hours").fill_null("0").cast(pl.Int64) * 3600
        + parts.field("minutes").fill_null("0").cast(pl.Int64) * 60
    )
    east = pl.when(parts.field("sign") == "-").then(-offset_s).otherwise(offset_s)
    time_ns = (whole_s - east) * _NANOSECONDS_PER_S + fraction_ns
    return (time_ns - time_ns.min()) / _NANOSECONDS_PER_S


def zoned(column: str) -> pl.Expr:
    """Whether a time states its zone; null where a cell is no time."""
    parts = pl.col(column).str.extract_groups(_FORM).struct
    stated = parts.field("zone").fill_null("") != ""
    return pl.when(parts.field("date").is_not_null()).then(stated)
