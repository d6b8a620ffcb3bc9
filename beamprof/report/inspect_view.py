"""`beam table inspect` as people see it: coverage, ridge, frontier, warnings."""

from shlex import quote

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from beam_runtime.table.idle_power import ASSUMED_SHARE
from beamprof.report.page import block, fitted_block, heading, next_command, plain_table, sentence
from beamprof.report.table_views import findings_table
from beamprof.report.terminal import Curve, plot, shade_legend, shaded_line
from beamprof.tables.asked_step import step_flags
from beamprof.tables.grid import describe_step
from beamprof.tables.inspect import Coverage, RidgePoint, TableView, efficient

# A line of the ridge without its picture: numbers and the gaps between them.
RIDGE_NUMBERS_WIDTH = 62
PLOT_HEIGHT = 14
WIDE = 80  # below it ranges are told by their upper ends
PLOT_REACH = 1.3
CURVES = (("a", "cyan"), ("b", "magenta"), ("c", "bright_yellow"))


def show_table(view: TableView, path: str, console: Console) -> None:
    """`beam table inspect`."""
    ascii_only = console.options.ascii_only
    verdict = "it should NOT drive a controller yet"
    if view.check.drivable:
        verdict = "it can drive a controller"
        if not view.check.compared:
            verdict = "it is consistent, but was never held against hardware"
    sentence(
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
    block(console, facts)
    narrow = console.width < WIDE
    across = "KV context up to (across)" if narrow else "KV context tokens (across)"
    heading(console, "Coverage", f"rows by new tokens (down) and {across}")
    block(console, _coverage(view.coverage, narrow=narrow))
    highest = view.clocks_mhz[-1]
    heading(
        console,
        "Energy by clock",
        f"over each step's best; right: that clock against {highest} MHz",
    )
    ridge = _ridge(view, console.width, ascii_only=ascii_only)
    fitted_block(console, ridge, ("context", "decodes", "J"))
    block(console, shade_legend(ascii_only=ascii_only))
    if len(view.clocks_mhz) > 1:
        heading(console, "Frontier", "what slowing down buys; both axes against the highest clock")
        for line in _frontier(view, console.width - 2, ascii_only=ascii_only):
            block(console, line)
    heading(console, "Check", "beam table check has the details")
    block(console, findings_table(view.check.findings, ascii_only=ascii_only))
    next_command(console, f"beam table lookup {quote(path)} {step_flags(view.frontier[-1].cell)}")


def _idle_line(view: TableView) -> Text:
    if not view.idle:
        text = f"not recorded: taken as {ASSUMED_SHARE} of the lightest pass where it is needed"
        return Text(text, "yellow")
    picked = view.idle[:: max(1, len(view.idle) // 4)]
    text = ", ".join(f"{idle.power_w:.0f} W at {idle.clock_mhz} MHz" for idle in picked)
    modelled = ", modelled" * any(idle.modelled for idle in view.idle)
    return Text(f"{text} ({view.tp} GPU{'s' * (view.tp > 1)} together{modelled})")


def _coverage(coverage: Coverage, *, narrow: bool) -> Table:
    table = plain_table()
    table.add_column("tokens", justify="right", no_wrap=True, style="dim")
    for bounds in coverage.context_tokens:
        head = _short(bounds[1]) if narrow else _range(bounds)
        table.add_column(head, justify="right", no_wrap=True)
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


def _short(tokens: int) -> str:
    return f"{tokens / 1e3:.0f}k" if tokens >= 1000 else str(tokens)


def _ridge(view: TableView, width: int, *, ascii_only: bool) -> Table:
    places = max(8, min(len(view.clocks_mhz), width - RIDGE_NUMBERS_WIDTH))
    table = plain_table()
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
