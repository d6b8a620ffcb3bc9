"""Advice as a page: the ladder, what to type, and how far to trust it."""

from pathlib import Path

from beamprof.advice.advise import Advice
from beamprof.files import check_writable, written_whole
from beamprof.report.advice_view import (
    NOTHING,
    answer,
    cells,
    heads,
    to_type,
    trust,
    what_was_asked,
)
from beamprof.report.html.bars import bar
from beamprof.report.html.part import Bars, Facts, Grid, Part, Section
from beamprof.report.html.render import environment, render

# Those of the policies they are, in every other figure.
_COLOURS = {"as it is": "c0", "one clock": "c1", "vLLM's flags": "c2", "BEAM": "c4"}


def write_advice(advice: Advice, output: Path, *, force: bool = False) -> None:
    """Write the page.

    Raises:
        ReportError: jinja2 is missing.
        OutputError: the output exists, or cannot be written.
    """
    check_writable(output, force=force)
    environment()
    page = render([advice_part(advice)]).encode("utf-8", "replace")
    with written_whole(output, force=force) as temporary:
        temporary.write_bytes(page)


def advice_part(advice: Advice) -> Part:
    """The page's one part."""
    model, load, today = what_was_asked(advice)
    longest_w = max(rung.power_w for rung in advice.rungs)
    bars = tuple(
        bar(
            rung.name, _COLOURS[rung.name], rung.power_w, longest_w,
            words=(f"{rung.power_w:,.0f} W", f"{rung.of_today:.2f} of today",
                   f"{100 * rung.goodput:.1f} % kept"),
        )
        for rung in advice.rungs
    )  # fmt: skip
    commands = tuple(
        (rung.name if line == 0 else "", command)
        for rung, typed in to_type(advice)
        for line, command in enumerate(typed or (f"# {NOTHING}",))
    )
    grounds = tuple((str(place), text) for place, text in enumerate(trust(advice), 1))
    return Part(
        kicker=f"Advice · {model}",
        sentence=answer(advice),
        standing="A simulation: no server ran under these settings. It is for this "
        f"{load}; {today}.",
        sections=(
            Section("Energy", "Mean power of all GPUs, and the share of requests that keep all "
                    "their SLOs.", Bars(bars)),
            Section("Ladder", "Least effort first.", Grid(
                (), ("", *heads(advice)), tuple(tuple(cells(rung)) for rung in advice.rungs),
                tuple(_COLOURS[rung.name] for rung in advice.rungs))),
            *((Section("What to type", "", Facts(commands, typed=True)),) if commands else ()),
            Section("How far to trust it", "", Facts(grounds)),
        ),
    )  # fmt: skip
