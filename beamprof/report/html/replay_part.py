"""A replay as part of a page: energy, promises, a burst, and what the numbers stand on."""

import numpy as np

from beamprof.replay.ladder import ReplayReport, Rung
from beamprof.replay.record import Record, TableRecord
from beamprof.replay.saved import SavedReplay
from beamprof.report.html.bars import bar, parts_bar
from beamprof.report.html.burst import Window, timelines
from beamprof.report.html.colours import colours
from beamprof.report.html.columns import columns
from beamprof.report.html.late_shares import Sample, late_shares
from beamprof.report.html.number_words import axis_ms, percent, points, significant
from beamprof.report.html.part import (
    Bar,
    Bars,
    Drawing,
    Drawings,
    Facts,
    Grid,
    Part,
    Section,
)
from beamprof.report.replay_views import answer, largest_j, limits_met
from beamprof.slo import slo_text, stream_words
from beamprof.units import format_duration, format_energy

# A knob that stands at one value for so much of the time is not drawn.
STILL_SHARE = 0.999
ORACLE_NAME = "oracle (bound)"


def replay_part(saved: SavedReplay, window: Window) -> Part:
    """All of a replay.

    Args:
        saved: what was read.
        window: what its timeline shows.
    """
    report = saved.report
    css = colours(rung.metrics.policy for rung in report.rungs)
    slo = report.options.slo
    bound = "" if report.oracle_j is None else "; another: the bound that no policy can beat"
    sections = [
        Section(
            "Goodput, and what readers get", "Goodput: requests with every promise kept; broken "
            "line: the most that is kept without BEAM; points are percentage points beside "
            "vanilla. Request: from sending to the last token. Tokens per second: of one answer, "
            + " ".join(("as its reader sees it.", *limits_met(report))), _goodput(report, css),
        ),
        Section(
            "Energy", "All GPUs, passes and idling, until the trace ends. Broken line: the best "
            f"static setting, {report.static.setting}, by hindsight{bound}.", _energy(report, css),
        ),
        Section(
            "Latency against its promises",
            "Each curve is the share that came later than the time below it, on logarithmic axes. "
            "Where a curve crosses into the shaded side, its height is the share that broke the "
            "promise.",
            _latency(saved, css),
        ),
        Section(
            "Promises kept",
            f"Requests with TTFT within {axis_ms(slo.ttft_ms)}, and with {stream_words(slo)}; "
            "points are percentage points beside vanilla.", _attainment(report, css),
        ),
        Section(
            f"The busiest stretch, {window.words}" if window.chosen else f"From {window.words}",
            "What arrives, and how each policy's engine meets it. A knob that does not move is "
            "named, not drawn.", timelines(saved, window, css),
        ),
        Section(
            "Where the energy goes", "Prefill: steps that carry any prompt. Decode: the others. "
            "Idle: GPU time that no pass covers.", _parts(report, css),
        ),
    ]  # fmt: skip
    if report.by_class:
        sections.insert(1, Section(
            "By SLO class", "Goodput of the requests of each class of the trace.",
            _classes(report, css),
        ))  # fmt: skip
    knobs = _knobs(report, css)
    if knobs.drawings:
        sections.append(
            Section("Time in each knob", "Share of the trace's time, for knobs that move.", knobs)
        )
    sections.append(
        Section("Where this comes from", "Enough to make it again.", _facts(report, saved.record))
    )
    sentence = answer(report).replace("(-", "(\N{MINUS SIGN}")
    return Part(_kicker(report), sentence, _standing(saved.record), tuple(sections))


def _classes(report: ReplayReport, css: dict[str, str]) -> Grid:
    names = [rung.metrics.policy for rung in report.rungs]
    heads = (
        f"{one.name or 'of none'} {slo_text(one.slo)} ({one.requests:,})" for one in report.by_class
    )
    rows = (
        (name, *(percent(one.goodput[name]) for one in report.by_class)) for name in names
    )  # fmt: skip
    return Grid((), ("policy", *heads), tuple(rows), tuple(css[name] for name in names))


def _kicker(report: ReplayReport) -> str:
    slo = report.options.slo
    return (
        f"Replay · {report.model} on {report.tp * report.pp} × {report.device} (tp{report.tp} "
        f"pp{report.pp}) · {report.requests:,} requests in {format_duration(report.duration_s)} · "
        f"SLO TTFT {axis_ms(slo.ttft_ms)}, {stream_words(slo)}"
    )


def _standing(record: Record) -> str:
    one = record.plant_table
    told = {
        "measured": "a table measured on GPUs",
        "imported": "a table that others measured and published",
        "modelled": "a modelled table, not a measured one,",
    }
    table = " and ".join(told.get(source, source) for source in one.sources)
    believed = (
        "" if record.table.rows_sha256 == one.rows_sha256
        else " The policies decide by another table than the one that is true here."
    )  # fmt: skip
    return (
        "This is a simulation: a model of the serving engine plays the trace, and every step "
        f"takes and costs what {table} says. No server ran.{believed}"
    )


def _goodput(report: ReplayReport, css: dict[str, str]) -> Bars:
    most = max(report.vanilla.goodput, report.static.metrics.goodput)
    bars = []
    for rung in report.rungs:
        m = rung.metrics
        words = (
            f"{percent(m.goodput)} kept",
            f"{points(rung.goodput_points)} points",
            f"request {format_duration(m.request.mean_ms / 1e3)}",
            f"p99 {format_duration(m.request.p99_ms / 1e3)}",
            f"{m.tokens_per_s_user:.1f} tokens/s",
        )
        bars.append(bar(m.policy, css[m.policy], m.goodput, 1.0, words=words, marks=[most]))
    return Bars(tuple(bars))


def _energy(report: ReplayReport, css: dict[str, str]) -> Bars:
    longest_j = largest_j(report)
    static_j = report.static.metrics.energy_j
    bounds = [] if report.oracle_j is None else [report.oracle_j]
    bars = [_energy_row(rung, css, longest_j, [static_j, *bounds]) for rung in report.rungs]
    for bound_j in bounds:
        shares = bound_j / report.vanilla.energy_j, bound_j / static_j
        words = _energy_words(bound_j, longest_j, *shares)
        bars.append(
            bar(ORACLE_NAME, "", bound_j, longest_j, words=words, marks=[static_j], bound=True)
        )
    return Bars(tuple(bars))


def _energy_row(rung: Rung, css: dict[str, str], longest_j: float, marks: list[float]) -> Bar:
    m = rung.metrics
    words = _energy_words(m.energy_j, longest_j, rung.to_vanilla, rung.to_static)
    per = (f"{significant(m.j_per_token)} J/token", f"{significant(m.j_per_request)} J/request")
    return bar(m.policy, css[m.policy], m.energy_j, longest_j, words=(*words, *per), marks=marks)


def _energy_words(
    energy_j: float, longest_j: float, to_vanilla: float, to_static: float
) -> tuple[str, ...]:
    return (
        format_energy(energy_j, longest_j),
        f"{to_vanilla:.3f} of vanilla",
        f"{to_static:.3f} of static",
    )


def _latency(saved: SavedReplay, css: dict[str, str]) -> Drawings:
    slo = saved.report.options.slo
    first, gaps = [], []
    for rung in saved.report.rungs:
        name = rung.metrics.policy
        values_ms = saved.ttft_ms(name)
        values_ms = np.sort(values_ms[np.isfinite(values_ms)])
        first.append(Sample(name, css[name], values_ms, np.ones(len(values_ms), dtype=np.int64)))
        gaps.append(Sample(name, css[name], *saved.gap_counts(name)))
    drawings = (
        Drawing(
            "Requests with a first token later than …",
            late_shares(first, slo.ttft_ms, "TTFT: share of requests by time"),
            "time to first token (TTFT)",
        ),
        Drawing(
            "Tokens with a gap longer than …",
            late_shares(gaps, slo.token_ms, "TBT: share of tokens by time"),
            "time between tokens (TBT)",
        ),
    )
    return Drawings(tuple(drawing for drawing in drawings if drawing.svg))


def _attainment(report: ReplayReport, css: dict[str, str]) -> Grid:
    spread = ("p50", "p90", "p99", "max")
    rows = []
    for rung in report.rungs:
        m, kept = rung.metrics, rung.metrics.attainment
        times_ms = [
            ms for one in (m.ttft, m.tbt) for ms in (one.p50_ms, one.p90_ms, one.p99_ms, one.max_ms)
        ]
        rows.append((
            m.policy, percent(kept.ttft, 2), points(rung.ttft_points), percent(kept.stream, 2),
            points(rung.stream_points), *(f"{ms:,.0f}" for ms in times_ms),
        ))  # fmt: skip
    return Grid(
        (("", 1), ("Kept", 4), ("TTFT, ms", 4), ("TBT, ms", 4)),
        ("policy", "TTFT", "points", "stream", "points", *spread, *spread),
        tuple(rows),
        tuple(css[rung.metrics.policy] for rung in report.rungs),
    )


def _parts(report: ReplayReport, css: dict[str, str]) -> Bars:
    longest_j = largest_j(report)
    bars = []
    for rung in report.rungs:
        m = rung.metrics
        parts = [
            (kind, _part_words(kind, part_j, m.energy_j, longest_j), part_j)
            for kind, part_j in (
                ("prefill", m.prefill_energy_j),
                ("decode", m.decode_energy_j),
                ("idle", m.idle_energy_j),
            )
        ]
        bars.append(parts_bar(m.policy, css[m.policy], parts, longest_j))
    return Bars(tuple(bars))


def _part_words(kind: str, part_j: float, whole_j: float, longest_j: float) -> str:
    return f"{kind} {format_energy(part_j, longest_j)} ({percent(part_j / whole_j, 0)})"


def _knobs(report: ReplayReport, css: dict[str, str]) -> Drawings:
    drawings = []
    for rung in report.rungs:
        m = rung.metrics
        for knob, unit, shares in (
            ("clock", "MHz", m.clock_share),
            ("chunk", "tokens", m.chunk_share),
            ("microbatches", "microbatches", m.microbatches_share),
            ("pace", "ms", m.pace_share),
        ):
            if max(shares.values(), default=1.0) < STILL_SHARE:
                title = f"{m.policy}: {knob}"
                svg = columns(dict(shares.items()), css[m.policy], title)
                drawings.append(Drawing(title, svg, unit))
    return Drawings(tuple(drawings), small=True)


def _facts(report: ReplayReport, record: Record) -> Facts:
    same = record.table.rows_sha256 == record.plant_table.rows_sha256
    facts = [
        ("Table", _table_words(record.table)),
        ("Plant's table", "the same" if same else _table_words(record.plant_table)),
        ("Trace", _trace_words(report, record)),
        ("Plant", "; ".join(report.assumed)),
        ("Engine", f"{report.options.max_num_seqs} requests at a time"),
        ("Lost on the way", "; ".join(
            f"{count:,} {reason.replace('_', ' ')}" for reason, count in report.dropped.items())),
        ("Out of reach", _impossible(report)),
        ("Made", f"{record.made}, by {', '.join(f'{n} {v}' for n, v in record.versions.items())}"),
        ("Command", record.command or "from Python"),
    ]  # fmt: skip
    return Facts(tuple((name, words) for name, words in facts if words))


def _table_words(table: TableRecord) -> str:
    said = table.said
    parts = [
        f"{table.model} tp{table.tp} pp{table.pp}, {' and '.join(table.sources)}",
        f"on {said.get('gpu_name') or said.get('device', 'an unnamed device')}",
        *(f"{name.replace('_', ' ')} {said[name]}" for name in
          ("engine", "energy_source", "origin", "created") if name in said),
        f"rows {table.rows_sha256[:12]}",
    ]  # fmt: skip
    return "; ".join(parts)


def _trace_words(report: ReplayReport, record: Record) -> str:
    trace = record.trace
    done = ", ".join(step.name.replace("_", " ") for step in trace.transforms[1:])
    parts = [
        f"{trace.source} ({trace.format})",
        f"{report.requests:,} requests in {format_duration(report.duration_s)}",
        f"then {done}" if done else "",
        f"licence: {trace.licence}",
        f"rows {record.trace_sha256[:12]}",
    ]
    return "; ".join(part for part in parts if part)


def _impossible(report: ReplayReport) -> str:
    count = report.vanilla.attainment.impossible
    if not count:
        return ""
    return f"prompts that miss the TTFT SLO even alone at the highest clock: {count:,}"
