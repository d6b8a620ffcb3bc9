"""Advice as people see it: the answer, the ladder, what to type, and how far to trust it."""

from itertools import pairwise

from rich.console import Console
from rich.table import Table
from rich.text import Text

from beamprof.advice.advise import NOBODY, OVERLOAD, SOME, Advice, Rung
from beamprof.advice.commands import FLAGS, ONE_CLOCK
from beamprof.replay.rivals import AS_GOOD, KEPT_AT_ALL
from beamprof.report.page import block, fitted_block, heading, plain_table, sentence
from beamprof.slo import stream_words
from beamprof.units import format_duration, format_ms

_OFF = 1.5
_CACHED = 0.02  # of prompt tokens: less changes nothing
NOTHING = "nothing beyond what is set already"


def show_advice(advice: Advice, console: Console) -> None:
    """`beam advise`."""
    sentence(console, answer(advice))
    for text in what_was_asked(advice):
        block(console, text)
    heading(console, "Ladder", "least effort first; goodput: requests that keep all their SLOs")
    optional = ("TTFT p99", "TBT p50", "W", "CO2 t/year", "kWh/year")
    fitted_block(console, _ladder(advice), optional)
    if advice.keepable:
        heading(console, "What to type")
    for rung, typed in to_type(advice):
        block(console, Text(f"{rung.name}: {rung.setting if typed else NOTHING}"))
        for command in typed:
            console.print(Text(f"    {command}", "bold"), soft_wrap=True)
    heading(console, "How far to trust it")
    for text in trust(advice):
        block(console, text)


def to_type(advice: Advice) -> list[tuple[Rung, tuple[str, ...]]]:
    """The rungs, each with what is typed for it beyond the one before."""
    return [
        (rung, () if rung.setting == before.setting else rung.commands)
        for before, rung in pairwise(advice.rungs)
    ]


def answer(advice: Advice) -> str:
    """The sentence that stands first."""
    today = advice.rungs[0]
    if not advice.keepable:
        return (
            f"Nothing keeps these SLOs on this load: at the highest clock "
            f"{100 * today.goodput:.1f} % of requests do{_overload(advice)}. More GPUs or looser "
            "SLOs, before energy."
        )
    most = max(rung.goodput for rung in advice.rungs)
    if advice.best is today and most < today.goodput + AS_GOOD:
        return (
            "Nothing saves energy and keeps as many promises as today, when "
            f"{100 * today.goodput:.1f} % of requests keep all their SLOs."
        )
    one, flags, beam = advice.rungs[1:]
    said = []
    now = f"today {100 * today.goodput:.1f} % of requests keep all their SLOs"
    if most < KEPT_AT_ALL:
        said.append(f"No setting keeps these SLOs for half of the requests; {now}")
    elif today.goodput < SOME:
        said.append(f"T{now[1:]}")
    if one.commands:
        said.append(_one(one, today))
    else:
        less = today.goodput >= KEPT_AT_ALL
        said.append("No lower clock keeps as many promises" if less else "No clock mends that")
    if flags.setting == one.setting:
        said[-1] += "; vLLM's flags add nothing"
    else:
        said.append(_one(flags, today))
    said.append(_one(beam, today))
    return ". ".join(said) + "."


def _overload(advice: Advice) -> str:
    if advice.played_s <= OVERLOAD * advice.duration_s:
        return ""
    took, offered = format_duration(advice.played_s), format_duration(advice.duration_s)
    return f", and {offered} of it take {took}: more than this server can do"


def _one(rung: Rung, today: Rung) -> str:
    """What a rung would bring, and its price in speed."""
    share = f"would take {100 * rung.of_today:.0f} % of today's energy"
    took = {FLAGS: f"With vLLM's flags changed it {share}", ONE_CLOCK: f"One clock {share}"}.get(
        rung.name, f"{rung.name} {share}"
    )
    kept = ""
    if abs(rung.goodput - today.goodput) >= AS_GOOD:
        word = "only " if rung.goodput < today.goodput else ""
        kept = (
            f" and {word}{100 * rung.goodput:.1f} % of requests inside their SLOs instead of "
            f"{100 * today.goodput:.1f} %"
        )
    elif today.goodput < SOME:
        kept = f" and still {100 * rung.goodput:.1f} % of requests inside their SLOs"
    return f"{took}, with answers of {_time(rung)} instead of {_time(today)}{kept}"


def _time(rung: Rung) -> str:
    return format_duration(rung.request_ms / 1e3)


def what_was_asked(advice: Advice) -> list[str]:
    """Model and SLOs, load, and how the server runs now."""
    slo = advice.slo
    return [
        f"{advice.model} tp{advice.tp} pp{advice.pp} on {advice.device}; "
        f"SLO TTFT {format_duration(slo.ttft_ms / 1e3)}, {stream_words(slo)}",
        f"load: {advice.load}",
        f"today: {advice.rungs[0].setting}; others: --max-num-batched-tokens, --max-num-seqs",
    ]


def _ladder(advice: Advice) -> Table:
    page = plain_table(("",), heads(advice))
    for rung in advice.rungs:
        page.add_row(*cells(rung))
    return page


def heads(advice: Advice) -> tuple[str, ...]:
    """What stands over the ladder's numbers."""
    first = advice.rungs[0]
    return (
        "of today", "goodput %", "request", "TTFT p99", "TBT p50", "W", "kWh/year",
        *(() if first.cost_a_year is None else ("cost/year",)),
        *(() if first.co2_kg_a_year is None else ("CO2 t/year",)),
    )  # fmt: skip


def cells(rung: Rung) -> list[str]:
    """A line of the ladder."""
    line = [
        rung.name, f"{rung.of_today:.2f}", f"{100 * rung.goodput:.1f}",
        format_duration(rung.request_ms / 1e3), format_duration(rung.ttft_p99_ms / 1e3),
        format_duration(rung.tbt_p50_ms / 1e3), f"{rung.power_w:,.0f}", f"{rung.kwh_a_year:,.0f}",
    ]  # fmt: skip
    if rung.cost_a_year is not None:
        line.append(f"{rung.cost_a_year:,.0f}")
    if rung.co2_kg_a_year is not None:
        line.append(f"{rung.co2_kg_a_year / 1e3:,.2f}")
    return line


def trust(advice: Advice) -> list[str]:
    """What the numbers rest on, and how they stand beside what the server saw."""
    lines = [
        f"Simulated: {advice.requests:,} requests in {format_duration(advice.duration_s)}, "
        f"{advice.plays} settings; {'; '.join(advice.assumed)}.",
        "A year: as if this load stayed as it is. The fixed settings were chosen on the very load "
        "that they are judged on.",
    ]
    if advice.energy_error is not None:
        lines.append(
            f"The table's energies: {100 * advice.energy_error:.1f} % off on steps held out of "
            "its fit. What an error does to all rungs alike leaves their ratios as they are."
        )
    if advice.at_lowest_clock:
        lines.append(
            "The clock found is the lowest of the table: a lower one may save more, and the lowest "
            "is the least known."
        )
    lines += [f"The table: {text}." for text in advice.doubts]
    most = max(rung.goodput for rung in advice.rungs)
    if NOBODY <= most < SOME:
        lines.append(
            f"With every rung {100 * (1 - most):.0f} % of requests or more miss an SLO: too few "
            "GPUs for this load, or SLOs too tight for its prompts."
        )
    if advice.observed is not None:
        lines += _observed(advice)
        if advice.observed.engines > 1:
            lines.append(
                f"{advice.observed.engines} engines share the load: all numbers above, of power, "
                "energy and money too, are of one of them, and so are the GPUs in the commands."
            )
        if advice.observed.cached_share >= _CACHED:
            lines.append(
                f"The server's prefix cache had {100 * advice.observed.cached_share:.0f} % of its "
                "prompt tokens; here every one is computed, so TTFT and energy come out too high "
                "in all rungs, and prefill weighs too much."
            )
    return lines


def _observed(advice: Advice) -> list[str]:
    seen = advice.observed
    pairs = [
        ("TTFT", advice.predicted_ttft_ms, None if seen is None else seen.ttft_ms),
        ("TBT", advice.predicted_tbt_ms, None if seen is None else seen.tbt_ms),
    ]
    words = [
        f"{name} {format_ms(predicted)} predicted, {format_ms(real)} observed"
        for name, predicted, real in pairs
        if real is not None
    ]
    if not words:
        return []
    far = [name for name, p, real in pairs if real and not 1 / _OFF <= p / real <= _OFF]
    lines = [f"Your server today, means: {'; '.join(words)}."]
    if far:
        lines.append(
            f"That is far off for {' and '.join(far)}: another GPU, layout or flags than told, "
            "burstier arrivals, or a wrong table. Profile the server before you trust this."
        )
    return lines
