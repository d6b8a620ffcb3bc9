"""Table results as people see them: one sentence first, tables, then the next command."""

from collections.abc import Sequence
from shlex import quote

import numpy as np
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from beam_runtime.types import Origin, StepShape
from beamprof.report.terminal import Curve, plot, shade_legend, shaded_line
from beamprof.tables.check import Finding, TableCheck
from beamprof.tables.compare import Comparison
from beamprof.tables.grid import describe_step
from beamprof.tables.inspect import Coverage, RidgePoint, TableView, efficient
from beamprof.tables.leave_one_out import CellError, ClockError, RelativeError
from beamprof.tables.lookup import Lookup

# A line of the ridge without its picture: numbers and the gaps between them.
RIDGE_NUMBERS_WIDTH = 62
PLOT_HEIGHT = 14
PLOT_REACH = 1.3
CURVES = (("a", "cyan"), ("b", "magenta"), ("c", "bright_yellow"))
# Longer lists are cut, and say so; --json has them whole.
LONGEST_LIST = 8
ORIGIN_STYLES = {
    Origin.MEASURED: "green",
    Origin.INTERPOLATED: "",
    Origin.EXTRAPOLATED: "yellow",
}


def show_table(view: TableView, path: str, console: Console) -> None:
    """`beam table inspect`."""
    ascii_only = console.options.ascii_only
    verdict = "it can drive a controller" if view.check.drivable else "it should NOT drive one yet"
    _sentence(
        console,
        f"{view.model} tp{view.tp} pp{view.pp} on {view.device}: {view.forward_rows:,} "
        f"{' and '.join(view.sources)} passes, {view.cells} cells at {len(view.clocks_mhz)} "
        f"clocks; {verdict}.",
    )
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for key, value in view.provenance.items():
        facts.add_row(key, Text(value))
    facts.add_row("idle power", _idle_line(view))
    _block(console, facts)
    _heading(console, "Coverage", "rows by new tokens (down) and KV context tokens (across)")
    _block(console, _coverage(view.coverage))
    highest = view.clocks_mhz[-1]
    _heading(
        console,
        "Energy by clock",
        f"over each step's best; right: that clock against {highest} MHz",
    )
    _block(console, _ridge(view, console.width, ascii_only=ascii_only))
    _block(console, shade_legend(ascii_only=ascii_only))
    if len(view.clocks_mhz) > 1:
        _heading(console, "Frontier", "what slowing down buys; both axes against the highest clock")
        for line in _frontier(view, console.width - 2, ascii_only=ascii_only):
            _block(console, line)
    _heading(console, "Check", "beam table check has the details")
    _block(console, _findings(view.check.findings, ascii_only=ascii_only))
    _next(console, f"beam table lookup {quote(path)} {_flags(view.frontier[-1].cell)}")


def show_check(check: TableCheck, path: str, console: Console) -> None:
    """`beam table check`."""
    failed = [finding.name for finding in check.findings if finding.ok is False]
    _sentence(
        console,
        "This table can drive a controller."
        if check.drivable
        else f"This table should not drive a controller: {', '.join(failed)}.",
    )
    _block(console, _findings(check.findings, ascii_only=console.options.ascii_only))
    if check.by_clock:
        _heading(console, "Leave one clock out", "each clock foretold from the others")
        _block(console, _clock_errors(check.by_clock))
    if check.by_cell:
        _heading(console, "Leave one cell out", "each cell foretold from the others, worst first")
        _block(console, _cell_errors(check.by_cell))
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
    if suspects:
        _heading(console, "Rows to look at", "")
        _block(console, _cut(suspects))
    hints = dict.fromkeys(f.hint for f in check.findings if f.ok is False and f.hint)
    for hint in hints:
        console.print(Text(f"hint: {hint}"))
    _next(console, f"beam table inspect {quote(path)}")


def show_comparison(comparison: Comparison, a: str, b: str, console: Console) -> None:
    """`beam table compare`."""
    overall = comparison.overall
    _sentence(
        console,
        f"{a} is {overall.latency_mape:.1%} off {b} in latency and {overall.energy_mape:.1%} in "
        f"energy (MAPE over {overall.rows:,} rows).",
    )
    shared = comparison.shared.rows if comparison.shared else 0
    interpolated = comparison.interpolated.rows if comparison.interpolated else 0
    _block(
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
    _heading(console, "Over all", "bias: positive where the first table says more")
    _block(console, table)
    for title, label, errors in (
        ("By batch", "tokens", comparison.by_tokens),
        ("By clock", "clock MHz", comparison.by_clock),
    ):
        _heading(console, title, "")
        split = _error_table(label)
        for value, error in errors.items():
            _error_row(split, f"{value:,}" if label == "tokens" else str(value), error)
        _block(console, split)
    _next(console, f"beam table inspect {quote(a)}")


def show_lookup(lookup: Lookup, path: str, console: Console) -> None:
    """`beam table lookup`."""
    best = next(row for row in lookup.rows if row.clock_mhz == lookup.best_clock_mhz)
    if len(lookup.rows) == 1:
        _sentence(
            console,
            f"{describe_step(lookup.step)} at {best.clock_mhz} MHz: {best.latency_ms:.4g} ms, "
            f"{best.energy_j:.4g} J a stage ({best.origin}).",
        )
    else:
        _sentence(
            console,
            f"{describe_step(lookup.step)} costs least at {best.clock_mhz} MHz: "
            f"{best.energy_j:.4g} J a stage in {best.latency_ms:.4g} ms ({best.origin}).",
        )
    own_rows = any(row.measured_latency_ms is not None for row in lookup.rows)
    table = _grid()
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
    _block(console, table)
    console.print()
    if lookup.outside:
        _block(console, Text(f"A guess: {lookup.outside}.", "yellow"))
    _block(console, Text(_neighbours(lookup), "dim"))
    if own_rows:
        words = "row ms, row J: the table's own row; the rest is the fit that a controller uses."
        _block(console, Text(words, "dim"))
    _next(console, f"beam table inspect {quote(path)}")


def _neighbours(lookup: Lookup) -> str:
    tokens = " and ".join(f"{edge:,}" for edge in dict.fromkeys(lookup.edges_tokens))
    text = f"Answered from rows of {tokens} token{'s' * (lookup.edges_tokens[-1] > 1)}"
    if len(lookup.rows) > 1:
        return f"{text}, at every measured clock."
    clocks = " and ".join(
        str(clock) for clock in dict.fromkeys(lookup.rows[0].clocks_below_above_mhz)
    )
    return f"{text}, at {clocks} MHz."


def _flags(step: StepShape) -> str:
    """A step as flags of `beam table lookup`."""
    sizes = {
        "--prefill": step.prefill_tokens,
        "--prefill-context": step.prefill_context_tokens,
        "--decode": step.decode_requests,
        "--decode-context": step.decode_context_tokens,
    }
    return " ".join(f"{flag} {size}" for flag, size in sizes.items() if size)


def _idle_line(view: TableView) -> Text:
    if not view.idle:
        return Text("not recorded", "yellow")
    picked = view.idle[:: max(1, len(view.idle) // 4)]
    text = ", ".join(f"{idle.power_w:.0f} W at {idle.clock_mhz} MHz" for idle in picked)
    return Text(f"{text} ({view.tp} GPU{'s' * (view.tp > 1)} together)")


def _coverage(coverage: Coverage) -> Table:
    table = _grid()
    table.add_column("tokens", justify="right", no_wrap=True, style="dim")
    for bounds in coverage.context_tokens:
        table.add_column(_range(bounds), justify="right", no_wrap=True)
    most = max(max(line) for line in coverage.rows)
    for bounds, line in zip(coverage.tokens, coverage.rows, strict=True):
        table.add_row(_range(bounds), *(_count(rows, most) for rows in line))
    return table


def _count(rows: int, most: int) -> Text:
    if rows == 0:
        return Text("-", "dim")
    heat = ("blue", "cyan", "bright_cyan", "bold bright_white")
    return Text(f"{rows:,}", heat[min(3, int(4 * rows / (most + 1)))])


def _range(bounds: tuple[int, int]) -> str:
    low, high = (f"{value / 1000:.3g}k" if value >= 1000 else str(value) for value in bounds)
    if low == high:
        return low
    return f"{low.removesuffix('k') if high.endswith('k') and low.endswith('k') else low}-{high}"


def _ridge(view: TableView, width: int, *, ascii_only: bool) -> Table:
    places = max(8, min(len(view.clocks_mhz), width - RIDGE_NUMBERS_WIDTH))
    table = _grid()
    for title in ("tokens", "decodes", "context"):
        table.add_column(title, justify="right", no_wrap=True)
    ends = f"{view.clocks_mhz[0]}..{view.clocks_mhz[-1]} MHz"
    table.add_column(ends, no_wrap=True)
    for title in ("best MHz", "J", "energy", "time"):
        table.add_column(title, justify="right", no_wrap=True)
    for point in view.ridge:
        cell = point.cell
        energy = np.array(point.energy_j)
        over_best = (energy / np.nanmin(energy) - 1).tolist()
        table.add_row(
            f"{cell.tokens:,}",
            f"{cell.decode_requests:,}",
            f"{cell.prefill_context_tokens + cell.decode_context_tokens:,}",
            shaded_line(over_best, places, ascii_only=ascii_only),
            str(point.best_clock_mhz),
            f"{np.nanmin(energy):.3g}",
            f"{-point.energy_saved:+.0%}",
            f"{point.slowdown:+.0%}",
        )
    return table


def _frontier(view: TableView, width: int, *, ascii_only: bool) -> list[Text]:
    curves = []
    legend = Text("Joined: clocks that no other beats in both; letter: best clock.", "dim")
    scaled = [_against_highest(point) for point in view.frontier]
    slowest = max(latency[efficient(latency, energy)[-1]] for latency, energy in scaled)
    for point, (latency, energy), (label, style) in zip(
        view.frontier, scaled, CURVES, strict=False
    ):
        # Far slower clocks only waste, and would squeeze the frontier into a corner.
        near = [i for i, value in enumerate(latency) if value <= PLOT_REACH * slowest]
        x, y = [latency[i] for i in near], [energy[i] for i in near]
        curves.append(Curve(x, y, label, style, efficient(x, y), int(np.argmin(y))))
        legend.append("\n").append(label, f"bold {style}").append(f" {describe_step(point.cell)}")
    lines = plot(
        curves,
        width=width,
        height=PLOT_HEIGHT,
        x_title="latency, x",
        y_title="energy, x",
        ascii_only=ascii_only,
    )
    return [*lines, legend]


def _against_highest(point: RidgePoint) -> tuple[list[float], list[float]]:
    latency, energy = np.array(point.latency_ms), np.array(point.energy_j)
    known = np.isfinite(latency)
    latency, energy = latency[known], energy[known]
    return (latency / latency[-1]).tolist(), (energy / energy[-1]).tolist()


def _findings(findings: Sequence[Finding], *, ascii_only: bool) -> Table:
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
    table = _grid()
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


def _grid() -> Table:
    return Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)


def _sentence(console: Console, text: str) -> None:
    console.print(Text(text, "bold"))
    console.print()


def _heading(console: Console, title: str, explanation: str) -> None:
    console.print()
    console.print(Text(title, "bold").append(f"  {explanation}", "not bold dim"))


def _block(console: Console, content: RenderableType) -> None:
    console.print(Padding(content, (0, 0, 0, 2), expand=False))


def _next(console: Console, command: str) -> None:
    console.print()
    console.print(Text("next: ", "dim").append(command, "not dim bold"))
