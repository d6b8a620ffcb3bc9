"""A replay as people see it: one sentence, then goodput, energy and what streams look like."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from beam_runtime.types import StreamKind
from beamprof.replay.ladder import ReplayReport, Rung
from beamprof.replay.rivals import KEPT_AT_ALL
from beamprof.replay.sensitivity import Outcome
from beamprof.report.page import (
    block,
    fitted_block,
    heading,
    next_command,
    plain_table,
    sentence,
    wrote,
)
from beamprof.slo import limit_words, slo_text, stream_words
from beamprof.units import format_duration, format_energy, format_ms

# A policy that loses more requests than this beside the best setting without BEAM is no answer,
# however little it needs.
AS_GOOD_POINTS = 0.3
MOST_CLASSES = 4  # that a line has room for


def show_replay(
    report: ReplayReport, outcomes: Sequence[Outcome], following: str, console: Console
) -> None:
    """`beam replay`; ``outcomes`` of its --sensitivity."""
    sentence(console, answer(report))
    slo = report.options.slo
    block(
        console,
        f"{report.model} tp{report.tp} pp{report.pp} on {report.device}; {report.requests:,} "
        f"requests in {format_duration(report.duration_s)}; "
        f"SLO TTFT {format_duration(slo.ttft_ms / 1e3)}, {stream_words(slo)}",
    )
    heading(console, "Result", "goodput: requests with every promise kept; energy of all GPUs")
    fitted_block(console, _result(report), ("p99 s", "points", "energy", "of static"))
    for words in limits_met(report):
        block(console, words)
    if report.by_class:
        heading(console, "Classes", "goodput % of each of the trace's slo_class")
        block(console, _classes(report))
        if len(report.by_class) > MOST_CLASSES:
            block(console, f"and {len(report.by_class) - MOST_CLASSES} smaller ones: --json")
    heading(console, "Energy", "idling included until the trace ends; W: over that time")
    fitted_block(console, _energy(report), ("W", "J/token"))
    heading(console, "Latency", "kept: of requests; points: percentage points beside vanilla")
    fitted_block(
        console, _latency(report), ("TTFT\npoints", "stream\npoints", "TBT\np50 ms", "TTFT\np50 ms")
    )
    for name, setting in ((rung.metrics.policy, rung.setting) for rung in report.rungs):
        if setting:
            block(console, f"{name}: {setting}, by hindsight")
    if report.vanilla.attainment.impossible:
        count = report.vanilla.attainment.impossible
        block(
            console,
            f"{count:,} prompt{' is' if count == 1 else 's are'} too long for the TTFT SLO even "
            "alone at the highest clock",
        )
    if report.vanilla.cached_tokens:
        block(console, cached_words(report))
    if outcomes:
        heading(console, "Sensitivity", f"{outcomes[0].policy}, one assumption changed at a time")
        fitted_block(console, _sensitivity(outcomes), ("tok/s", "slower"))
    for reason, count in report.dropped.items():
        block(console, f"{count:,} {reason.replace('_', ' ')}")
    for path in report.paths:
        wrote(console, path)
    next_command(console, following)


def limits_met(report: ReplayReport) -> tuple[str, ...]:
    """Each limit on saving, and what the policies that follow it came to."""
    promised = (("", report.options.slo), *report.options.classes)
    limits = [f"{name} {words}".strip() for name, slo in promised if (words := limit_words(slo))]
    if not limits:
        return ()
    came = "; ".join(
        f"{rung.metrics.policy} took {rung.slowdown:.2f} times vanilla's mean request time, at "
        f"{rung.metrics.tokens_per_s_user:.1f} tokens/s"
        for rung in report.rungs
        if rung.metrics.policy.partition(":")[0] == "beam"
    )
    return (f"limits: {'; '.join(limits)}" + (f". All requests: {came}" if came else ""),)


def cached_words(report: ReplayReport) -> str:
    """How much of the prompts nobody had to compute."""
    shares = [rung.metrics.cached_share for rung in report.rungs]
    low, high = (f"{100 * share:.0f}" for share in (min(shares), max(shares)))
    return (
        f"prefix cache: {low if low == high else f'{low} to {high}'} % of prompt tokens were hits, "
        "the others were computed"
    )


def answer(report: ReplayReport) -> str:
    """The sentence that stands first: the cheapest policy that loses nothing, and its price."""
    unkept = why_unkept(report)
    if unkept:
        return unkept
    best_goodput = max(report.vanilla.goodput, report.static.metrics.goodput)
    # Where no setting without BEAM keeps half of the requests, to keep as few is no answer.
    enough = max(best_goodput - AS_GOOD_POINTS / 100, KEPT_AT_ALL)
    best = min(
        (rung for rung in report.rungs if rung.metrics.goodput >= enough),
        key=lambda rung: rung.to_vanilla,
    )
    m, vanilla = best.metrics, report.vanilla
    if best is report.rungs[0]:
        saving = any(rung.to_vanilla < 1 for rung in report.rungs[1:])
        least = " and keeps as many promises" if saving else ""
        return (
            f"Nothing saves energy{least}: vanilla keeps every promise of "
            f"{100 * m.goodput:.1f} % of requests with "
            f"{format_energy(m.energy_j, largest_j(report))}."
        )
    static = report.static
    beside = f" and {100 * best.to_static:.0f} % of the best static setting's ({static.setting})"
    if static.metrics.goodput < KEPT_AT_ALL:
        beside = f" (no static setting keeps more than {100 * static.metrics.goodput:.1f} %)"
    return (
        f"{m.policy} needs {100 * best.to_vanilla:.0f} % of vanilla's energy"
        f"{beside if best is not static else f' ({static.setting})'}, "
        f"{format_energy(m.energy_j, largest_j(report))}, "
        f"and keeps every promise of {100 * m.goodput:.1f} % of requests (vanilla "
        f"{100 * vanilla.goodput:.1f} %); {_price(best, report)}."
    )


def undecided_lines(report: ReplayReport) -> list[str]:
    """A line for each policy that could not always answer."""
    return [
        f"{m.policy}: {m.undecided:,} of {m.decisions:,} decisions found no setting, and its knobs "
        "stayed"
        for m in (rung.metrics for rung in report.rungs)
        if m.undecided
    ]


def largest_j(report: ReplayReport) -> float:
    """The energy whose unit all others of the report have."""
    return max(rung.metrics.energy_j for rung in report.rungs)


def _price(rung: Rung, report: ReplayReport) -> str:
    """What it costs the reader of an answer."""
    m, vanilla = rung.metrics, report.vanilla
    return (
        f"its answers stream at {m.tokens_per_s_user:.1f} tokens/s instead of "
        f"{vanilla.tokens_per_s_user:.1f}, and a request takes "
        f"{format_duration(m.request.mean_ms / 1e3)} instead of "
        f"{format_duration(vanilla.request.mean_ms / 1e3)}"
    )


def why_unkept(report: ReplayReport) -> str:
    """Why no energy is worth comparing; empty where it is."""
    slo = report.options.slo
    most = max(report.rungs, key=lambda rung: rung.metrics.goodput)
    if most.metrics.goodput >= KEPT_AT_ALL:
        return ""
    if slo.kind is not StreamKind.E2E and slo.stream_ms < report.lone_gap_ms:
        why = (
            f"{stream_words(slo)} is under one pass through the pipeline, "
            f"{format_ms(report.lone_gap_ms)} for a lone request at the highest clock"
        )
    else:
        why = "there is too much load for it, or too little time"
    return (
        f"No policy keeps this SLO: {why}. The most requests served as promised are "
        f"{100 * most.metrics.goodput:.1f} %, by {most.metrics.policy}; what the others save is "
        "no saving."
    )


def _result(report: ReplayReport) -> Table:
    page = plain_table(
        ("policy",),
        (
            "goodput %", "points", "energy", "of vanilla", "of static", "request s", "p99 s",
            "tok/s",
        ),
    )  # fmt: skip
    most_j = largest_j(report)
    for rung in report.rungs:
        m = rung.metrics
        page.add_row(
            m.policy, f"{100 * m.goodput:.1f}", f"{rung.goodput_points:+.1f}",
            format_energy(m.energy_j, most_j), f"{rung.to_vanilla:.3f}", f"{rung.to_static:.3f}",
            f"{m.request.mean_ms / 1e3:.1f}", f"{m.request.p99_ms / 1e3:.1f}",
            f"{m.tokens_per_s_user:.1f}",
        )  # fmt: skip
    if report.oracle_j is not None:
        vanilla, static = report.vanilla.energy_j, report.static.metrics.energy_j
        page.add_row(
            "oracle (bound)", "", "", format_energy(report.oracle_j, most_j),
            f"{report.oracle_j / vanilla:.3f}", f"{report.oracle_j / static:.3f}",
        )  # fmt: skip
    return page


def _classes(report: ReplayReport) -> Table:
    """The classes of most requests; --json has all."""
    shown = sorted(report.by_class, key=lambda one: -one.requests)[:MOST_CLASSES]
    heads = (
        f"{one.name or 'of none'}\n{slo_text(one.slo)}\n{one.requests:,} requests"
        for one in shown
    )  # fmt: skip
    page = plain_table(("policy",), tuple(heads))
    for rung in report.rungs:
        policy = rung.metrics.policy
        page.add_row(policy, *(f"{100 * one.goodput[policy]:.1f}" for one in shown))
    return page


def _sensitivity(outcomes: Sequence[Outcome]) -> Table:
    page = plain_table(
        ("assumption",),
        ("goodput %", "vanilla's %", "of vanilla", "of static", "slower", "tok/s"),
    )
    for one in outcomes:
        page.add_row(
            one.variation, f"{100 * one.goodput:.1f}", f"{100 * one.vanilla_goodput:.1f}",
            f"{one.to_vanilla:.3f}", f"{one.to_static:.3f}", f"{one.slowdown:.2f}",
            f"{one.tokens_per_s_user:.1f}",
        )  # fmt: skip
    return page


def _energy(report: ReplayReport) -> Table:
    page = plain_table(("policy",), ("J/token", "W", "prefill %", "decode %", "idle %"))
    for rung in report.rungs:
        m = rung.metrics
        parts = (m.prefill_energy_j, m.decode_energy_j, m.idle_energy_j)
        page.add_row(
            m.policy, f"{m.j_per_token:.2f}", f"{m.mean_power_w:,.0f}",
            *(f"{100 * part / m.energy_j:.0f}" for part in parts),
        )  # fmt: skip
    return page


def _latency(report: ReplayReport) -> Table:
    page = plain_table(
        ("policy",),
        (
            "TTFT\np50 ms", "TTFT\np99 ms", "TTFT\nkept %", "TTFT\npoints",
            "TBT\np50 ms", "TBT\np99 ms", "stream\nkept %", "stream\npoints",
        ),
    )  # fmt: skip
    for rung in report.rungs:
        m, kept = rung.metrics, rung.metrics.attainment
        page.add_row(
            m.policy,
            f"{m.ttft.p50_ms:,.0f}", f"{m.ttft.p99_ms:,.0f}",
            f"{100 * kept.ttft:.2f}", f"{rung.ttft_points:+.2f}",
            f"{m.tbt.p50_ms:,.0f}", f"{m.tbt.p99_ms:,.0f}",
            f"{100 * kept.stream:.2f}", f"{rung.stream_points:+.2f}",
        )  # fmt: skip
    return page
