"""A foreign file -> a sound Trace, with every dropped row counted.

The importers know formats; here rows are judged, by one rule for all formats. A row that is no
request (no number, a negative time, no tokens) is an error naming the row, or dropped and counted
by reason when asked; rows out of order are an error, or sorted and counted.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from beamprof.errors import ImportFormatError, TraceError
from beamprof.traces.arrivals import poisson_arrivals_s
from beamprof.traces.importers.base import ForeignRows
from beamprof.traces.importers.registry import importer_for
from beamprof.traces.policies import BadRows
from beamprof.traces.source_file import sha256_of
from beamprof.traces.trace import Provenance, Trace, Transform, arrange
from beamprof.traces.trace_file import load_trace, sidecar_path

_MOST_TOKENS = 2**31 - 1


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
    """

    bad_rows: BadRows = BadRows.ERROR
    sort: bool = False
    duration_s: float | None = None
    rate_rps: float | None = None
    seed: int = 0
    licence: str | None = None


def open_trace(path: Path) -> Trace:
    """A trace from a file in any form: ours with its sidecar, or any known format.

    Raises:
        TraceError: a trace of ours that is damaged, or rows that are no requests.
        ImportFormatError: a foreign file that no importer knows.
    """
    if sidecar_path(path).exists() or path.suffix == ".parquet":
        return load_trace(path)
    return import_trace(path)


def import_trace(
    path: Path, *, format_name: str | None = None, options: ImportOptions | None = None
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
    options = options or ImportOptions()
    importer = importer_for(path, format_name)
    rows = importer.read(path)
    timed, arrivals = _with_arrivals(rows.frame, path, options)
    sound, dropped = _judged(timed, path, options.bad_rows)
    ordered, moved = _in_order(sound, path, sort=options.sort)
    if rows.from_first_request:
        ordered = ordered.with_columns(pl.col("arrival_s") - pl.col("arrival_s").min())
    step = Transform(
        name="import",
        parameters={"format": importer.name, "bad_rows": str(options.bad_rows), **arrivals},
        requests_before=rows.frame.height + sum(rows.dropped.values()),
        requests_after=ordered.height,
        counts={**rows.dropped, **dropped, **moved},
    )
    return Trace(
        arrange(ordered),
        _duration_s(ordered, rows, options),
        Provenance(
            source=path.name,
            format=importer.name,
            sha256=sha256_of(path),
            licence=options.licence or importer.licence,
            transforms=(step,),
        ),
        rows.prefix_block_tokens,
    )


def _with_arrivals(
    frame: pl.DataFrame, path: Path, options: ImportOptions
) -> tuple[pl.DataFrame, dict[str, float]]:
    if "arrival_s" in frame.columns:
        if options.rate_rps is not None:
            raise TraceError(
                f"{path} has arrival times of its own",
                cause="--rate draws arrivals for files that hold lengths only",
                hint="leave --rate out; thin a trace with --target-tps",
            )
        return frame, {}
    if options.rate_rps is None:
        raise ImportFormatError(
            f"{path} holds lengths but no arrival times",
            hint="draw Poisson arrivals for it: --rate 2 --seed 0 (requests/s)",
        )
    arrival_s = poisson_arrivals_s(options.rate_rps, frame.height, options.seed)
    return frame.with_columns(pl.Series("arrival_s", arrival_s)), {
        "rate_rps": options.rate_rps,
        "seed": options.seed,
    }


def _judged(
    frame: pl.DataFrame, path: Path, policy: BadRows
) -> tuple[pl.DataFrame, dict[str, int]]:
    """The rows that are requests, and how many were dropped for which reason."""
    reasons = frame.select(_reason()).to_series()
    if reasons.null_count() == frame.height:
        return frame, {}
    if policy is BadRows.ERROR:
        bad = frame.filter(reasons.is_not_null())
        row = bad.row(0, named=True)
        found = ", ".join(
            f"{name} {'no number' if row[name] is None else format(row[name], 'g')}"
            for name in ("arrival_s", "input_tokens", "output_tokens")
        )
        reason = str(reasons.drop_nulls()[0]).replace("_", " ")
        raise TraceError(
            f"{path}: row {row['request_id']} (from 0) is no request: {reason}",
            cause=f"found {found}; {bad.height} of {frame.height} rows are bad",
            hint="drop and count such rows with --bad-rows drop",
        )
    counts = dict(reasons.drop_nulls().value_counts(sort=True).iter_rows())
    return frame.filter(reasons.is_null()), counts


def _reason() -> pl.Expr:
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
            reason.when(no_count | (tokens > _MOST_TOKENS))
            .then(pl.lit(f"{name}_not_a_whole_number"))
            .when(tokens < 1)
            .then(pl.lit(f"{name}_below_1"))
        )
    return reason.otherwise(pl.lit(None, dtype=pl.String)).alias("reason")


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
            hint="sort and count them with --sort",
        )
    return frame.sort("arrival_s", maintain_order=True), {"out_of_order": int(late.sum())}


def _duration_s(frame: pl.DataFrame, rows: ForeignRows, options: ImportOptions) -> float:
    stated_s = options.duration_s or rows.duration_s
    if stated_s is not None or frame.is_empty():
        return stated_s or 1.0
    last_s = float(frame["arrival_s"][-1])
    return max(1.0, float(math.ceil(last_s)))
