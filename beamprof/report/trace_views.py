"""Traces as people see them: one sentence, the load over time, lengths, what was dropped."""

from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from beamprof.report.page import fitted_block, next_command, wrote
from beamprof.traces.preparation import TraceReport
from beamprof.traces.statistics import (
    LengthStatistics,
    ObservedStatistics,
    PrefixStatistics,
    TraceStatistics,
    rate_over_time,
)
from beamprof.traces.trace import Provenance, Transform
from beamprof.units import format_duration

PICTURE_WIDTH = 60
COPIED = 0.01  # published traces have 0.001 at most
_YEAR_2000_S, _YEAR_2100_S = 946_684_800.0, 4_102_444_800.0
BARS, BARS_ASCII = " ▁▂▃▄▅▆▇█", " .:-=+*%#"


def show_trace(report: TraceReport, following: str, console: Console) -> None:
    """`beam trace import`, `generate` and `stats`."""
    numbers = report.statistics
    console.print(Text(_sentence(numbers), "bold"))
    console.print()
    width = min(PICTURE_WIDTH, console.width - 2)
    rates = rate_over_time(report.trace, width)
    bars = BARS_ASCII if console.options.ascii_only else BARS
    _block(console, Text(sparkline(rates, bars)))
    _block(
        console,
        Text(
            f"requests/s from 0 to {_thousands(float(rates.max()))}, "
            f"a column is {format_duration(numbers.duration_s / width)}",
            "dim",
        ),
    )
    console.print()
    _block(console, _lengths(numbers))
    console.print()
    fitted_block(console, _load(numbers), ("requests' variance / mean",))
    for fact in _facts(numbers):
        _block(console, Text(fact))
    console.print()
    _block(console, _record(report.trace.provenance))
    for path in report.paths:
        wrote(console, path)
    next_command(console, following)


def sparkline(values: NDArray[np.float64], bars: str) -> str:
    """One character per value, from the first of ``bars`` (0) to the last (the largest).

    Anything above 0 shows: only 0 gets the first character.
    """
    largest = float(values.max(initial=0.0))
    if largest <= 0:
        return bars[0] * len(values)
    level = np.ceil(values / largest * (len(bars) - 1)).astype(int)
    return "".join(bars[i] for i in level)


def _sentence(numbers: TraceStatistics) -> str:
    return (
        f"{_requests(numbers.requests)} in {format_duration(numbers.duration_s)}: "
        f"{_thousands(numbers.requests_per_s)} requests/s, "
        f"{_thousands(numbers.tokens_per_s)} tokens/s "
        f"({_thousands(numbers.input_tokens_per_s)} in, "
        f"{_thousands(numbers.output_tokens_per_s)} out)."
    )


def _lengths(numbers: TraceStatistics) -> Table:
    table = _grid("tokens", "mean", "p50", "p90", "p99", "max")
    rows: tuple[tuple[str, LengthStatistics], ...] = (
        ("input", numbers.input),
        ("output", numbers.output),
    )
    for name, lengths in rows:
        table.add_row(
            name,
            f"{lengths.mean_tokens:,.1f}",
            f"{lengths.p50_tokens:,.0f}",
            f"{lengths.p90_tokens:,.0f}",
            f"{lengths.p99_tokens:,.0f}",
            f"{lengths.max_tokens:,}",
        )
    return table


def _load(numbers: TraceStatistics) -> Table:
    table = _grid("bins of", "p90 tokens/s", "max tokens/s", "requests' variance / mean")
    for load in numbers.bins:
        table.add_row(
            f"{load.bin_s} s",
            f"{load.p90_tokens_per_s:,.0f}",
            f"{load.max_tokens_per_s:,.0f}",
            f"{load.dispersion:.2f}",
        )
    return table


def _facts(numbers: TraceStatistics) -> list[str]:
    facts = []
    if numbers.gap_cv is not None:
        facts.append(f"gaps between arrivals: CV {numbers.gap_cv:.2f} (1 = Poisson)")
    if numbers.distinct_arrivals < 0.5 * numbers.requests:
        facts.append(
            f"only {numbers.distinct_arrivals:,} distinct arrival times: the source rounds them"
        )
    one_length = numbers.input.p50_tokens == numbers.input.max_tokens
    if numbers.copies > COPIED * numbers.requests and not one_length:
        facts.append(
            f"{numbers.copies:,} requests repeat another's arrival and lengths: a log twice?"
        )
    named = (("clients", numbers.clients), ("sessions", numbers.sessions))
    facts += [f"{count:,} {name}" for name, count in named if count is not None]
    if numbers.prefix is not None:
        facts.append(prefix_words(numbers.prefix))
    if numbers.observed is not None:
        facts += _observed(numbers.observed)
    return facts


def prefix_words(prefix: PrefixStatistics) -> str:
    """What a prefix cache could spare, in a line."""
    how = "prefix hashes" if prefix.source == "prefix_hashes" else "sessions"
    return (
        f"prefixes: {prefix.reused_share:.0%} of prompt tokens ({prefix.reused_tokens:,} of "
        f"{prefix.prompt_tokens:,}) repeat earlier ones, by {how} in blocks of "
        f"{prefix.block_tokens}"
    )


def _observed(seen: ObservedStatistics) -> list[str]:
    tpot = "" if seen.tpot_mean_ms is None else f", TPOT {seen.tpot_mean_ms:.1f} ms"
    return [
        f"observed in {seen.requests:,} requests, means: TTFT "
        f"{format_duration(seen.ttft_mean_s)}{tpot}, request {format_duration(seen.request_mean_s)}"
    ]


def _record(provenance: Provenance) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("source", Text(f"{provenance.source} ({provenance.format})"))
    table.add_row("licence", Text(provenance.licence))
    for words in import_words(provenance):
        table.add_row("", Text(words))
    for transform in provenance.transforms:
        table.add_row(transform.name.replace("_", " "), Text(_counted(transform)))
    return table


def import_words(provenance: Provenance) -> list[str]:
    """What an import recognised, changed and left out, a line each."""
    told = next((step for step in provenance.transforms if step.name == "import"), None)
    if told is None:
        return []
    words = []
    given = told.parameters
    if "counted_from_s" in given:
        words.append(f"times count from the first request, at {_clock(given['counted_from_s'])}")
    if "time_unit" in given:
        unit = given["time_unit"]
        words.append("times were read as dates" if unit == "date" else f"times were read in {unit}")
    if "clocks_joined_by" in given:
        words.append(
            f"arrivals and tokens were brought to one clock by {given['clocks_joined_by']}"
        )
    if "prefix_block_tokens" in given:
        words.append(f"prefix hashes were read as blocks of {given['prefix_block_tokens']} tokens")
    if "requests_with_images" in given:
        words.append(
            f"{given['requests_with_images']:,} requests had images: only their tokens are known"
        )
    if "columns_not_read" in given:
        names = given["columns_not_read"]
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        words.append(f"not read: {', '.join(name or '(unnamed)' for name in names[:8])}{more}")
    return words


def _clock(seconds: float) -> str:
    """A time of the source: a date where it is a Unix time."""
    if _YEAR_2000_S <= seconds <= _YEAR_2100_S:
        when = datetime.fromtimestamp(seconds, UTC)
        return f"{when:%Y-%m-%d %H:%M:%S} UTC"
    return f"{seconds:,.3f} s"


def _counted(transform: Transform) -> str:
    before, after = transform.requests_before, transform.requests_after
    words = f"{before:,} -> {_requests(after)}" if before else _requests(after)
    counts = [
        f"{name.replace('_', ' ')} {count:,}" for name, count in transform.counts.items() if count
    ]
    return "; ".join([words, *counts])


def _grid(first: str, *rest: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    table.add_column(first, no_wrap=True)
    for title in rest:
        table.add_column(title, justify="right", no_wrap=True)
    return table


def _requests(count: int) -> str:
    return f"{count:,} request{'' if count == 1 else 's'}"


def _thousands(value: float) -> str:
    """Three digits that matter: 2.19, 64.2, 1,809."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _block(console: Console, content: Table | Text) -> None:
    console.print(Padding(content, (0, 0, 0, 2)))
