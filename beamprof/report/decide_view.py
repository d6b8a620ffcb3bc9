"""A decision as people see it: the knobs, the promise, the space, and what was refused."""

import re
from shlex import quote

from rich.console import Console
from rich.table import Table
from rich.text import Text

from beam_runtime.types import Knobs
from beamprof.decide.decide import Answer
from beamprof.decide.points import Point, Space
from beamprof.report.page import block, fitted_block, heading, next_command, plain_table, sentence
from beamprof.report.terminal import BEST, BEST_ASCII, SHADE_BOUNDS, SHADE_STYLES
from beamprof.slo import stream_words
from beamprof.units import format_duration, format_energy, format_ms

# More rows or columns than this do not fit a screen; every other one is left out evenly.
MOST_CLOCKS = 24
MOST_CHUNKS = 12
MOST_ROWS = 6
LEAST_PACE_MS = 0.05  # less is none, but for rounding
# What a narrow terminal does without.
LESSER = ("SLO used", "batches", "pace ms")


def show_decision(answer: Answer, path: str, console: Console) -> None:
    """`beam decide`."""
    chosen = answer.chosen
    sentence(console, f"{knobs_in_words(chosen.knobs)}: {answer.verdict}.")
    block(console, _facts(answer))
    if len(answer.space.chunks) > 1 and answer.settings > 1:
        heading(
            console, "Search space", "MHz against tokens of a chunk; best microbatches and pace"
        )
        block(console, space_picture(answer.space, chosen, ascii_only=console.options.ascii_only))
        block(console, _legend(answer, ascii_only=console.options.ascii_only))
    # Where promises are lost anyway, what loses more of them for less energy is no offer.
    if answer.cheaper and not chosen.lost:
        heading(
            console, "Cheaper and refused",
            f"the cheapest of each clock; lost: of {answer.requests} requests, those that would "
            "miss their SLO",
        )  # fmt: skip
        fitted_block(console, _points(answer.cheaper[:MOST_ROWS]), LESSER)
        _more(console, len(answer.cheaper))
    if answer.frontier:
        heading(console, "Frontier", "what more energy buys in slack; every SLO kept")
        fitted_block(console, _points(_evenly(answer.frontier, MOST_ROWS)), LESSER)
    next_command(console, f"beam table inspect {quote(path)}")


def knobs_in_words(knobs: Knobs) -> str:
    """The four settings."""
    batches = "microbatch" if knobs.microbatches == 1 else "microbatches"
    pace = f"pace {format_ms(knobs.pace_ms)}" if knobs.pace_ms >= LEAST_PACE_MS else "no pace"
    return (
        f"{knobs.clock_mhz} MHz, chunk {knobs.chunk_tokens:,}, {knobs.microbatches} {batches}, "
        f"{pace}"
    )


def space_picture(space: Space, chosen: Point, *, ascii_only: bool) -> Text:
    """Clock upwards, chunk to the right: per cent over the optimum, or the SLO that is missed."""
    clocks = _thinned(space.clocks_mhz, MOST_CLOCKS, chosen.knobs.clock_mhz)
    chunks = _thinned(space.chunks, MOST_CHUNKS, chosen.knobs.chunk_tokens)
    picture = Text(f"{'':>5}" + "".join(f"{chunk:>7}" for chunk in chunks), "dim")
    for clock in reversed(clocks):
        picture.append(f"\n{clock:>5}", "dim")
        for chunk in chunks:
            best = space.best[space.clocks_mhz.index(clock)][space.chunks.index(chunk)]
            here = (clock, chunk) == (chosen.knobs.clock_mhz, chosen.knobs.chunk_tokens)
            picture.append(*_cell(best, here, ascii_only))
    return picture


def _cell(point: Point | None, chosen: bool, ascii_only: bool) -> tuple[str, str]:
    if chosen:
        return f"{BEST_ASCII if ascii_only else BEST:>7}", "bold bright_white"
    if point is None:
        return f"{'slow':>7}", "dim"
    if not point.feasible:
        missed = [part.partition(" ")[0] for part in point.verdict.split(", ")]
        return f"{'both' if len(missed) > 1 else missed[0]:>7}", "dim"
    over = max(0.0, point.over_best)
    shade = next(i for i, bound in enumerate(SHADE_BOUNDS) if over <= bound)
    return f"{f'+{over:.0%}':>7}", SHADE_STYLES[shade]


def _legend(answer: Answer, *, ascii_only: bool) -> Text:
    legend = (
        Text(BEST_ASCII if ascii_only else BEST, "bold bright_white")
        .append(" chosen   ", "not bold default")
        .append("+3%", SHADE_STYLES[1])
        .append(" energy over it   ")
        .append("TTFT TBT both", "dim")
        .append(" which SLO is missed")
    )
    if answer.limits:
        legend.append("   slow", "dim").append(" beyond the limit")
    return legend


def _facts(answer: Answer) -> Table:
    chosen = answer.chosen
    facts = plain_table()
    facts.show_header = False
    facts.add_row("table", answer.table)
    facts.add_row("state", answer.state)
    facts.add_row("because", _as_read(answer.why))
    first, stream = f"SLO {format_duration(answer.slo.ttft_ms / 1e3)}", stream_words(answer.slo)
    facts.add_row("TTFT", _promise(chosen, "TTFT", first))
    facts.add_row("TBT", _promise(chosen, "TBT", f"SLO {stream}"))
    if answer.limits:
        facts.add_row("limits", f"{answer.limits}; slower settings are left out")
    total_j = answer.active_energy_j + answer.idle_energy_j
    most_j = max(chosen.energy_j, total_j)
    per_token = answer.work.energy_per_token_j
    facts.add_row(
        "energy",
        f"{format_energy(chosen.energy_j, most_j)} for the same work as the others, a clock change "
        "included: by this they are compared",
    )
    facts.add_row(
        "in that",
        f"{format_energy(total_j, most_j)} within the {format_ms(answer.horizon_ms)} played ahead "
        f"({format_energy(answer.idle_energy_j, most_j)} idle)"
        + ("" if per_token is None else f", {per_token:.3g} J per token"),
    )
    facts.add_row(
        "search", f"{format_duration(answer.search_us / 1e6)} over {answer.settings:,} settings"
    )
    return facts


def _promise(chosen: Point, name: str, slo: str) -> str:
    first = name == "TTFT"
    worst_ms = chosen.ttft_ms if first else chosen.tbt_ms
    excess_ms = chosen.ttft_excess_ms if first else chosen.tbt_excess_ms
    if worst_ms is None:
        blocked = f"{name} not before" in chosen.verdict
        return f"{'no end in sight' if blocked else 'nothing to promise'} ({slo})"
    if excess_ms is None:
        return f"{format_ms(worst_ms)} at worst; {slo}, over before anything was decided"
    # What rounds to nothing is no lack.
    side = "to spare" if excess_ms < 0.5 else "too much"
    return (
        f"{format_ms(worst_ms)} at worst; {slo}, with its margin {format_ms(abs(excess_ms))} {side}"
    )


def _as_read(why: str) -> str:
    """The search's reason, its long times and energies as people read them."""
    why = re.sub(r"\b(\d{5,}) ms\b", lambda found: format_ms(float(found[1])), why)
    return re.sub(r"\b(\d{4,}) J\b", lambda found: format_energy(float(found[1])), why)


def _points(points: tuple[Point, ...]) -> Table:
    table = plain_table()
    for title in (
        "MHz",
        "chunk",
        "batches",
        "pace ms",
        "energy",
        "TTFT ms",
        "TBT ms",
        "SLO used",
        "lost",
    ):
        table.add_column(title, justify="right")
    table.add_column("verdict")
    most_j = max((abs(point.energy_j) for point in points), default=0.0)
    for point in points:
        knobs = point.knobs
        table.add_row(
            str(knobs.clock_mhz),
            f"{knobs.chunk_tokens:,}",
            str(knobs.microbatches),
            f"{knobs.pace_ms:,.0f}",
            f"{format_energy(point.energy_j, most_j)} ({point.over_best:+.0%})",
            _ms(point.ttft_ms),
            _ms(point.tbt_ms),
            f"{point.slo_used:.0%}",
            str(point.lost),
            point.verdict or "kept",
        )
    return table


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _more(console: Console, number: int) -> None:
    if number > MOST_ROWS:
        block(console, Text(f"and {number - MOST_ROWS} more clocks; --json has the space", "dim"))


def _evenly(points: tuple[Point, ...], most: int) -> tuple[Point, ...]:
    if len(points) <= most:
        return points
    return tuple(points[round(at * (len(points) - 1) / (most - 1))] for at in range(most))


def _thinned(values: tuple[int, ...], most: int, keep: int) -> list[int]:
    if len(values) <= most:
        return list(values)
    every = -(-len(values) // most)
    return sorted({*values[::-1][::every], keep} & set(values))
