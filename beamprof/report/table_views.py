"""Answers about tables as people see them: check, compare and look up."""

from collections.abc import Sequence
from shlex import quote

from rich.console import Console
from rich.table import Table
from rich.text import Text

from beam_runtime.types import Origin
from beamprof.report.page import block, fitted_block, heading, next_command, plain_table, sentence
from beamprof.tables.check import TableCheck
from beamprof.tables.compare import Comparison
from beamprof.tables.findings import Finding
from beamprof.tables.grid import describe_step
from beamprof.tables.leave_one_out import CellError, ClockError, RelativeError
from beamprof.tables.lookup import Lookup

# Longer lists are cut, and say so; --json has them whole.
LONGEST_LIST = 8
# What a narrow terminal does without.
LESSER_ERRORS = ("rows", "bias %")
ORIGIN_STYLES = {
    Origin.MEASURED: "green",
    Origin.INTERPOLATED: "",
    Origin.EXTRAPOLATED: "yellow",
}


def show_check(check: TableCheck, path: str, console: Console) -> None:
    """`beam table check`."""
    failed = [finding.name for finding in check.findings if finding.ok is False]
    sentence(
        console,
        f"This table should not drive a controller: {', '.join(failed)}."
        if not check.drivable
        else f"This table can drive a controller{'; it is modelled' * check.modelled}."
        if check.compared
        else "This table is consistent, but was never held against hardware: plan with it, and "
        "profile the server before a controller drives it.",
    )
    block(console, findings_table(check.findings, ascii_only=console.options.ascii_only))
    if check.by_clock:
        heading(console, "Leave one clock out", "each clock predicted from the others")
        fitted_block(console, _clock_errors(check.by_clock), LESSER_ERRORS)
    if check.by_cell:
        heading(console, "Leave one cell out", "each cell predicted from the others, worst first")
        fitted_block(console, _cell_errors(check.by_cell), LESSER_ERRORS)
    suspects = [
        f"{outlier.field} {outlier.off:+.0%} off its neighbours: {describe_step(outlier.cell)} "
        f"at {outlier.clock_mhz} MHz"
        for outlier in check.outliers
    ]
    suspects += [
        f"latency {rise.by:+.1%} from {rise.from_mhz} to {rise.to_mhz} MHz: "
        f"{describe_step(rise.cell)}"
        for rise in check.rises
    ]
    suspects += [
        f"no row: {describe_step(cell)} at {clock_mhz} MHz" for cell, clock_mhz in check.holes
    ]
    suspects += [
        f"latency {fall.by:+.1%} from {describe_step(fall.smaller)} to {describe_step(fall.cell)} "
        f"at {fall.clock_mhz} MHz"
        for fall in check.falls
    ]
    if suspects:
        heading(console, "Rows to look at")
        block(console, _cut(suspects))
    hints = dict.fromkeys(f.hint for f in check.findings if f.ok is False and f.hint)
    for hint in hints:
        console.print(Text(f"hint: {hint}"))
    next_command(console, f"beam table inspect {quote(path)}")


def show_comparison(comparison: Comparison, a: str, b: str, console: Console) -> None:
    """`beam table compare`."""
    overall = comparison.overall
    sentence(
        console,
        f"{a} is {overall.latency_mape:.1%} off {b} in latency and {overall.energy_mape:.1%} in "
        f"energy (MAPE over {overall.rows:,} rows).",
    )
    shared = comparison.shared.rows if comparison.shared else 0
    interpolated = comparison.interpolated.rows if comparison.interpolated else 0
    block(
        console,
        Text(
            f"{shared:,} rows are in both tables, {interpolated:,} were interpolated in the first, "
            f"{comparison.skipped_rows:,} lie outside it and were skipped."
        ),
    )
    table = _error_table("over")
    _error_row(table, "all", overall)
    if comparison.shared and comparison.interpolated:
        _error_row(table, "in both", comparison.shared)
        _error_row(table, "interpolated", comparison.interpolated)
    heading(console, "Over all", "bias: positive where the first table says more")
    fitted_block(console, table, LESSER_ERRORS)
    for title, label, errors in (
        ("By batch", "tokens", comparison.by_tokens),
        ("By clock", "clock MHz", comparison.by_clock),
    ):
        heading(console, title)
        split = _error_table(label)
        for value, error in errors.items():
            _error_row(split, f"{value:,}" if label == "tokens" else str(value), error)
        fitted_block(console, split, LESSER_ERRORS)
    next_command(console, f"beam table inspect {quote(a)}")


def show_lookup(lookup: Lookup, path: str, console: Console) -> None:
    """`beam table lookup`."""
    best = next(row for row in lookup.rows if row.clock_mhz == lookup.best_clock_mhz)
    if len(lookup.rows) == 1:
        sentence(
            console,
            f"{describe_step(lookup.step)} at {best.clock_mhz} MHz: {best.latency_ms:.4g} ms, "
            f"{best.energy_j:.4g} J a stage ({best.origin}).",
        )
    else:
        sentence(
            console,
            f"{describe_step(lookup.step)} costs least at {best.clock_mhz} MHz: "
            f"{best.energy_j:.4g} J a stage in {best.latency_ms:.4g} ms ({best.origin}).",
        )
    own_rows = any(row.measured_latency_ms is not None for row in lookup.rows)
    table = plain_table()
    for title in ("clock MHz", "latency ms", "energy J", "power W"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("origin", no_wrap=True)
    for title in ("row ms", "row J") if own_rows else ():
        table.add_column(title, justify="right", no_wrap=True)
    for row in lookup.rows:
        own = [
            "" if value is None else f"{value:.4g}"
            for value in (row.measured_latency_ms, row.measured_energy_j)
        ]
        table.add_row(
            str(row.clock_mhz),
            f"{row.latency_ms:.4g}",
            f"{row.energy_j:.4g}",
            f"{row.power_w:.0f}",
            Text(str(row.origin), ORIGIN_STYLES[row.origin]),
            *(own if own_rows else ()),
            style="bold" if row.clock_mhz == lookup.best_clock_mhz else "",
        )
    fitted_block(console, table, ("row J", "row ms", "origin", "power W"))
    console.print()
    if lookup.outside:
        block(console, Text(f"A guess: {lookup.outside}.", "yellow"))
    block(console, Text(_neighbours(lookup), "dim"))
    if own_rows:
        words = "row ms, row J: the table's own row; the rest is the fit that a controller uses."
        block(console, Text(words, "dim"))
    next_command(console, f"beam table inspect {quote(path)}")


def _neighbours(lookup: Lookup) -> str:
    tokens = " and ".join(f"{edge:,}" for edge in dict.fromkeys(lookup.edges_tokens))
    text = f"Answered from rows of {tokens} token{'s' * (lookup.edges_tokens[-1] > 1)}"
    if len(lookup.rows) > 1:
        return f"{text}, at every measured clock."
    clocks = " and ".join(
        str(clock) for clock in dict.fromkeys(lookup.rows[0].clocks_below_above_mhz)
    )
    return f"{text}, at {clocks} MHz."


def findings_table(findings: Sequence[Finding], *, ascii_only: bool) -> Table:
    """One line per question: yes, no, or not to be told."""
    marks = {
        True: Text("ok" if ascii_only else "✓", "green"),
        False: Text("NO" if ascii_only else "✗", "bold red"),
        None: Text("-", "dim"),
    }
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        dim = "dim" if finding.ok is None else ""
        table.add_row(marks[finding.ok], Text(finding.name, dim), Text(finding.text, dim))
    return table


def _clock_errors(errors: Sequence[ClockError]) -> Table:
    table = _error_table("clock MHz")
    for fold in errors:
        _error_row(table, str(fold.clock_mhz), fold.error)
    return table


def _cell_errors(errors: Sequence[CellError]) -> Table:
    worst = sorted(errors, key=lambda fold: -fold.error.latency_mape)
    table = _error_table("cell")
    for fold in worst[:LONGEST_LIST]:
        _error_row(table, describe_step(fold.cell), fold.error)
    rest = worst[LONGEST_LIST:]
    if rest:
        table.add_row(Text(f"and {len(rest)} better ones (--json has all)", "dim"))
    return table


def _error_table(label: str) -> Table:
    table = plain_table()
    table.add_column(label, justify="right" if label in ("tokens", "clock MHz") else "left")
    for title in ("latency %", "bias %", "energy %", "bias %", "rows"):
        table.add_column(title, justify="right", no_wrap=True)
    return table


def _error_row(table: Table, label: str, error: RelativeError) -> None:
    table.add_row(
        label,
        f"{error.latency_mape:.2%}"[:-1],
        Text(f"{error.latency_bias:+.2%}"[:-1], "dim"),
        f"{error.energy_mape:.2%}"[:-1],
        Text(f"{error.energy_bias:+.2%}"[:-1], "dim"),
        f"{error.rows:,}",
    )


def _cut(lines: Sequence[str]) -> Text:
    shown = list(lines[:LONGEST_LIST])
    if len(lines) > LONGEST_LIST:
        shown.append(f"and {len(lines) - LONGEST_LIST} more (--json has all)")
    return Text("\n".join(shown))
