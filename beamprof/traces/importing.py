"""A foreign file -> a sound Trace, with every dropped row counted.

The importers know formats; here rows are judged, by one rule for all formats. A row that is no
request (no number, a negative time, no tokens) is an error naming the row, or dropped and counted
by reason when asked; rows out of order are an error, or sorted and counted; times that count from
elsewhere than the trace's start are counted from the first request. Memory goes with the number
of rows, never with the time that they span.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from beamprof.errors import ImportFormatError, TraceError
from beamprof.files import STDIN, there_is
from beamprof.traces.arrivals import poisson_arrivals_s
from beamprof.traces.importers.base import ForeignRows, Reading
from beamprof.traces.importers.carrier import opened_sheet
from beamprof.traces.importers.clock import UNITS_S
from beamprof.traces.importers.import_command import FROM_STDIN, import_with
from beamprof.traces.importers.registry import importer_for, importer_named
from beamprof.traces.judging import as_written, no_request, reason_of
from beamprof.traces.policies import BadRows
from beamprof.traces.source_file import sha256_of
from beamprof.traces.trace import TIMES_S, Provenance, Trace, Transform, arrange
from beamprof.traces.trace_file import load_trace, sidecar_path
from beamprof.units import format_duration

# A silence before the first request that is longer than the trace is no part of it.
_SILENCE_S = 60.0
# One row that is this far from all others, and a hundred times farther than they are apart, has
# another clock or a slipped digit.
_FAR_S, _FAR_SPANS = 86_400.0, 100.0
# No trace has a gap of a year.
_TOO_FAR_S = 365 * 86_400.0


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """How to judge and complete a foreign file.

    Attributes:
        bad_rows: raise at the first row that is no request, or drop and count them.
        sort: sort rows whose times go back instead of raising.
        duration_s: how long the trace lasts; None: what the file states, else its last arrival
            rounded up to a whole second.
        rate_rps: Poisson arrivals for a file of lengths without times.
        seed: of those arrivals.
        licence: of the file; None: what the format's publishers state.
        time_unit: of times whose unit the file does not say: s, ms, us or ns.
        block_tokens: prompt tokens of one prefix hash, where the file does not say.
    """

    bad_rows: BadRows = BadRows.ERROR
    sort: bool = False
    duration_s: float | None = None
    rate_rps: float | None = None
    seed: int = 0
    licence: str | None = None
    time_unit: str | None = None
    block_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.time_unit is not None and self.time_unit not in UNITS_S:
            raise ImportFormatError(
                f"--time-unit: expected one of {', '.join(UNITS_S)}, found {self.time_unit!r}"
            )
        if self.block_tokens is not None and self.block_tokens < 1:
            raise ImportFormatError(
                f"--block-tokens: a block has 1 token or more, found {self.block_tokens}"
            )


def open_trace(path: str | Path) -> Trace:
    """A trace from a file in any form (``-``: standard input): ours, or any known format.

    Raises:
        TraceError: a trace of ours that is damaged, or rows that are no requests.
        ImportFormatError: a foreign file that no importer knows.
    """
    path = Path(path)
    if path.name and there_is(sidecar_path(path)):
        return load_trace(path)
    return import_trace(path)


def as_trace(trace: Trace | str | Path) -> Trace:
    """The trace itself, or the one in the file of that name. Raises as open_trace."""
    return trace if isinstance(trace, Trace) else open_trace(trace)


def import_trace(
    path: str | Path, *, format_name: str | None = None, options: ImportOptions | None = None
) -> Trace:
    """Read a foreign trace.

    Args:
        path: the file.
        format_name: one of the registry's names; None: found by the file's first line.
        options: how to judge its rows.

    Raises:
        ImportFormatError: the file is not of that format, or of none.
        TraceError: rows that are no requests, out of order, or none left.
    """
    path = Path(path)
    options = options or ImportOptions()
    if format_name is not None:
        importer_named(format_name)
    with opened_sheet(path) as (sheet, file):
        path = FROM_STDIN if path == STDIN else path
        importer = importer_for(sheet, format_name)
        reading = Reading(options.time_unit, options.block_tokens, named=format_name is not None)
        rows = importer.read(sheet, reading)
        digest = sha256_of(file)
        if rows.frame.is_empty() and not any(rows.dropped.values()):
            raise ImportFormatError(
                f"{path} holds no requests",
                cause=f"its {sheet.carrier} columns are there, and no rows below them",
                hint="is it cut off, or does it end its lines with a bare carriage return?",
            )
        timed, arrivals = _with_arrivals(rows, path, options)
        sound, dropped = _judged(
            timed, path, options.bad_rows, lambda row: as_written(sheet, rows, row)
        )
    ordered, moved = _in_order(sound, path, sort=options.sort)
    near, far = _without_far_rows(ordered, path, options.bad_rows)
    rebased, counted_from = _from_first(near, rows, options)
    unread = {"columns_not_read": list(rows.unread)} if rows.unread else {}
    repaired = sum(sheet.repaired.values())
    mended = {"text_with_broken_characters": repaired} if repaired else {}
    step = Transform(
        name="import",
        parameters={
            "format": importer.name,
            "carrier": sheet.carrier,
            "bad_rows": str(options.bad_rows),
            **arrivals,
            **rows.found,
            **counted_from,
            **unread,
        },
        requests_before=rows.frame.height + sum(rows.dropped.values()),
        requests_after=rebased.height,
        counts={**rows.dropped, **dropped, **moved, **far, **mended},
    )
    return Trace(
        arrange(rebased),
        _duration_s(rebased, rows, options),
        Provenance(
            source=_utf8(path.name),
            format=importer.name,
            sha256=digest,
            licence=_utf8(options.licence or importer.licence),
            transforms=(step,),
        ),
        rows.prefix_block_tokens,
    )


def _utf8(text: str) -> str:
    """Text that can be written anywhere: half characters (of a file's name) as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _from_first(
    frame: pl.DataFrame, rows: ForeignRows, options: ImportOptions
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Times from the first request, where they count from elsewhere than the trace's start."""
    first_s, last_s = frame["arrival_s"].min(), frame["arrival_s"].max()
    if not isinstance(first_s, float) or not isinstance(last_s, float):
        return frame, {}
    stated_s = options.duration_s or rows.duration_s
    silent = first_s > max(last_s - first_s, _SILENCE_S)
    if not rows.from_first_request and (not silent or (stated_s or 0.0) >= last_s):
        return frame, {}
    times = [name for name in TIMES_S if name in frame.columns]
    found = {} if first_s == 0 else {"counted_from_s": first_s}
    return frame.with_columns(pl.col(times) - first_s), found


def _without_far_rows(
    frame: pl.DataFrame, path: Path, policy: BadRows
) -> tuple[pl.DataFrame, dict[str, int]]:
    """The rows without one that lies days from all others; raises for it, or drops and counts."""
    times = frame["arrival_s"]
    gaps = times.diff().fill_null(0.0)
    if frame.height < 2:
        return frame, {}
    place = gaps.arg_max() or 0
    gap_s = float(gaps[place])
    rest_s = float(times[-1]) - float(times[0]) - gap_s
    few = min(place, frame.height - place)
    lone = few == 1 and frame.height > 2 and gap_s > max(_FAR_S, _FAR_SPANS * rest_s)
    if not lone and gap_s <= _TOO_FAR_S:
        return frame, {}
    if policy is BadRows.DROP and few < frame.height - few:
        tail = place >= frame.height - place
        return (frame[:place] if tail else frame[place:]), {"far_from_all_others": few}
    row = frame.row(place, named=True)
    raise TraceError(
        f"{path}: row {row['request_id']} (from 0) comes {_long(gap_s)} after the one before it",
        cause=f"all others span {format_duration(rest_s)}; {few} of {frame.height} rows lie apart",
        hint="is its time in another unit, or on another clock? To leave it out: "
        + import_with(path, "--bad-rows drop"),
    )


def _long(seconds: float) -> str:
    days = seconds / 86_400
    return f"{days:,.0f} days" if days < 1000 else f"{days / 365.25:,.0f} years"


def _with_arrivals(
    rows: ForeignRows, path: Path, options: ImportOptions
) -> tuple[pl.DataFrame, dict[str, float]]:
    frame = rows.frame
    if "arrival_s" in frame.columns:
        if options.rate_rps is not None:
            raise TraceError(
                f"{path} has arrival times of its own",
                cause="--rate draws arrivals for files that hold lengths only",
                hint="leave --rate out; thin a trace with --target-tps",
            )
        return frame, {}
    if options.rate_rps is None:
        others = ", ".join(map(str, rows.unread[:8]))
        drawn = f"draw Poisson arrivals, 2 a second: {import_with(path, '--rate 2 --seed 0')}"
        raise ImportFormatError(
            f"{path} holds lengths but no arrival times",
            cause=f"not read: {others}" if others else None,
            hint=f"call the arrival arrival_s, arrival_ms or timestamp; else {drawn}"
            if others
            else drawn,
        )
    arrival_s = poisson_arrivals_s(options.rate_rps, frame.height, options.seed)
    return frame.with_columns(pl.Series("arrival_s", arrival_s)), {
        "rate_rps": options.rate_rps,
        "seed": options.seed,
    }


def _judged(
    frame: pl.DataFrame, path: Path, policy: BadRows, written: Callable[[int], str]
) -> tuple[pl.DataFrame, dict[str, int]]:
    """The rows that are requests, and how many were dropped for which reason."""
    reasons = frame.select(reason_of(frame.columns)).to_series()
    if reasons.null_count() == frame.height:
        return frame, {}
    if policy is BadRows.ERROR:
        raise no_request(frame, reasons, path, written)
    counts = dict(reasons.drop_nulls().value_counts(sort=True).iter_rows())
    return frame.filter(reasons.is_null()), counts


def _in_order(
    frame: pl.DataFrame, path: Path, *, sort: bool
) -> tuple[pl.DataFrame, dict[str, int]]:
    """The rows in order of arrival, and how many came too late in the file."""
    late = frame["arrival_s"] < frame["arrival_s"].cum_max()
    if not late.any():
        return frame, {}
    if not sort:
        row = frame.filter(late).row(0, named=True)
        raise TraceError(
            f"{path}: times go back at row {row['request_id']} (from 0)",
            cause=f"arrival {row['arrival_s']:g} s after a later one; "
            f"{late.sum()} of {frame.height} rows are out of order",
            hint=f"sort and count them: {import_with(path, '--sort')}",
        )
    return frame.sort("arrival_s", maintain_order=True), {"out_of_order": int(late.sum())}


def _duration_s(frame: pl.DataFrame, rows: ForeignRows, options: ImportOptions) -> float:
    stated_s = options.duration_s or rows.duration_s
    if stated_s is not None or frame.is_empty():
        return stated_s or 1.0
    last_s = float(frame["arrival_s"][-1])
    return max(1.0, float(math.ceil(last_s)))
