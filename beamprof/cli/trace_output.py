"""What the `beam trace` commands share: options, writing a trace, showing its numbers."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from beamprof.cli.streams import one_on_stdout
from beamprof.console import emit
from beamprof.errors import TraceError
from beamprof.files import is_stdout
from beamprof.traces.policies import OverLimit
from beamprof.units import parse_duration_s

if TYPE_CHECKING:
    from beamprof.traces.preparation import Preparation, TraceReport
    from beamprof.traces.trace import Trace

Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="File to write, .parquet or .csv; a .json lies beside it. -: JSON lines to stdout.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace files that exist.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Seed = Annotated[int, typer.Option("--seed", help="Of everything random.", min=0)]
Window = Annotated[
    str | None,
    typer.Option("--window", metavar="FROM:TO", help="Keep this part, e.g. 10m:20m, :10m or 50m:."),
]
MaxTokens = Annotated[
    int | None,
    typer.Option("--max-total-tokens", help="Most input + output tokens of one request."),
]
Over = Annotated[
    OverLimit, typer.Option("--over-limit", help="What happens to requests over that limit.")
]


def write(
    command: str,
    make: Callable[[], "Trace"],
    steps: "Preparation | None",
    path: Path,
    *,
    force: bool,
    as_json: bool,
    inputs: Sequence[Path] = (),
) -> None:
    """Refuse a bad output early, then make the trace, take the steps, store it and show it."""
    from beamprof.traces.preparation import store_trace
    from beamprof.traces.trace_file import check_trace_writable

    one_on_stdout(path, as_json=as_json)
    check_trace_writable(path, force=force, inputs=inputs)
    trace = make()
    trace = trace if steps is None else steps.apply(trace)
    report = store_trace(trace, path, force=force)
    show(
        command,
        report,
        f"beam replay --table TABLE --trace {quote(str(path))}",
        as_json=as_json,
        stdout_taken=is_stdout(path),
    )


def show(
    command: str,
    report: "TraceReport",
    next_command: str,
    *,
    as_json: bool,
    stdout_taken: bool = False,
) -> None:
    """A trace's numbers and record, for people or as JSON."""
    from beamprof.plain import plain
    from beamprof.report.trace_views import show_trace
    from beamprof.traces.trace_file import describe

    data: dict[str, Any] = {
        "paths": report.paths,
        "trace": describe(report.trace),
        "statistics": report.statistics,
    }
    emit(
        command,
        plain(data),
        lambda console: show_trace(report, next_command, console),
        as_json=as_json,
        stdout_taken=stdout_taken,
    )


def preparation(
    window: str | None,
    max_total_tokens: int | None,
    over_limit: OverLimit,
    target_tps: float | None,
    seed: int,
) -> "Preparation":
    """The steps that the shared options ask for."""
    from beamprof.traces.preparation import Preparation

    return Preparation(
        window_s=None if window is None else window_s(window),
        max_total_tokens=max_total_tokens,
        over_limit=over_limit,
        target_tps=target_tps,
        seed=seed,
    )


def window_s(text: str) -> tuple[float, float | None]:
    """``FROM:TO`` in seconds; an open end is None. Raises TraceError for anything else."""
    first, colon, last = text.partition(":")
    if not colon or not (first or last):
        raise TraceError(
            f"--window: expected FROM:TO, found {text!r}", hint="for example --window 10m:20m"
        )
    start_s = moment_s(first, "--window") if first else 0.0
    return start_s, parse_duration_s(last, "--window") if last else None


def moment_s(text: str, name: str) -> float:
    """A point in time: a duration, or 0 with or without a unit."""
    return 0.0 if re.fullmatch(r"0+(ms|s|m|min|h)?", text) else parse_duration_s(text, name)
