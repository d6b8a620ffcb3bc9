"""A decision log as part of a page: what was predicted, what came, and when BEAM did not steer."""

from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from beamprof.report.html.burst import Window, fullest
from beamprof.report.html.columns import columns
from beamprof.report.html.log_requests import goodput, mean_j, requests_section
from beamprof.report.html.log_run import KNOBS, LogRun
from beamprof.report.html.number_words import axis_ms, axis_number, percent, significant
from beamprof.report.html.part import (
    Drawing,
    Drawings,
    Facts,
    Grid,
    Part,
    Section,
    Timeline,
    Timelines,
)
from beamprof.report.html.scatter import MOST_DOTS, predicted_and_observed
from beamprof.report.html.strips import dots_strip, steps_strip, time_words
from beamprof.units import format_duration

LONGEST_S = 600.0
_CSS = "c4"
_TITLES = {
    "clock_mhz": ("clock", "MHz"),
    "chunk_tokens": ("chunk", "tokens"),
    "microbatches": ("microbatches", ""),
    "pace_ms": ("pace", "ms"),
}
_SHARES = (5, 50, 95, 99)
_MOST_ROWS = 200
_STANDING = (
    "What the controller wrote while it ran. Times are the engine's own; energy and power are "
    "what the table predicted, not what a meter read."
)


def log_part(run: LogRun, window: Window) -> Part:
    """All of a run.

    Args:
        run: what was read.
        window: what its timeline shows.
    """
    sections = [
        requests_section(run.done),
        _predicted(run),
        _errors(run),
        _over_time(run, window),
        _knobs(run),
        _aside(run),
        Section("Where this comes from", "", _facts(run)),
    ]
    kicker = (
        f"Decision log · {run.path.name} · {format_duration(run.end_s)}"
        + (f" · the last of {run.runs} runs in the file" if run.runs > 1 else "")
        + (" · its beginning is in an older file" if run.continued else "")
    )  # fmt: skip
    shown = tuple(section for section in sections if section is not None)
    return Part(kicker, _sentence(run), _STANDING, shown)


def log_window(run: LogRun) -> Window:
    """All of a short run; of a long one the stretch in which most first tokens came."""
    return fullest(run.first_s, np.ones(len(run.first_s)), run.end_s, LONGEST_S)


def _sentence(run: LogRun) -> str:
    steered = f"BEAM steered for {percent(run.steered_share)} of {format_duration(run.end_s)}"
    said = []
    if run.done:
        said.append(
            f"{percent(goodput(run.done))} of {len(run.done):,} requests kept every promise, at "
            f"{significant(mean_j(run.done))} J each"
        )
    if not len(run.at_s):
        return "; ".join([*said, f"{steered} and took no decision."])
    if not run.steered.any():
        steered = f"BEAM looked on for {format_duration(run.end_s)}"
    said.append(steered)
    kept = _kept(run)
    promises = [f"{percent(share, 2)} of {what}" for what, share in kept.items()]
    if promises:
        said.append(f"{' and '.join(promises)} kept their SLO")
    predicted, seen = _first_pairs(run)
    if len(seen):
        off_ms = float(np.median(np.abs(seen - predicted)))
        said.append(
            f"half of the first tokens came within {significant(off_ms)} ms of the forecast"
        )
    return "; ".join(said) + "."


def _kept(run: LogRun) -> dict[str, float]:
    kept = {}
    promised = np.isfinite(run.first_slo_ms)
    if promised.any():
        in_time = run.first_ms[promised] <= run.first_slo_ms[promised]
        kept["first tokens"] = float(in_time.mean())
    if run.tokens:
        kept["later tokens"] = 1.0 - run.late_tokens / run.tokens
    return kept


def _first_pairs(run: LogRun) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    use = run.first_predicted
    return run.first_predicted_ms[use], run.first_ms[use]


def _one_slo_ms(run: LogRun) -> float | None:
    different = np.unique(run.first_slo_ms[np.isfinite(run.first_slo_ms)])
    return float(different[0]) if len(different) == 1 else None


def _predicted(run: LogRun) -> Section | None:
    predicted, seen = _first_pairs(run)
    drawings = (
        Drawing(
            "TTFT: observed (up) by predicted (across)",
            predicted_and_observed(
                predicted, seen, _one_slo_ms(run), "TTFT: predicted and observed"
            ),
            "TTFT predicted by the decision in force when the token came",
        ),
        Drawing(
            "Longest TBT: observed (up) by predicted (across)",
            predicted_and_observed(
                run.predicted_tbt_ms, run.seen_tbt_ms, None, "TBT: predicted and observed"
            ),
            "longest TBT predicted by a decision, until the next one",
        ),
    )
    shown = tuple(drawing for drawing in drawings if drawing.svg)
    if not shown:
        return None
    most = max(len(seen), len(run.seen_tbt_ms))
    thinned = (
        f" Of more than {MOST_DOTS:,} pairs, evenly many are drawn." if most > MOST_DOTS else ""
    )
    return Section(
        "Predicted and observed",
        "On the line the forecast was right; a dot above it came later than predicted. Forecasts "
        "of TBT look beyond the next decision, so that dots below the line are to be expected. "
        f"Time without forecasts is left out.{thinned}", Drawings(shown),
    )  # fmt: skip


def _errors(run: LogRun) -> Section | None:
    rows = []
    for name, (predicted, seen) in (
        ("TTFT", _first_pairs(run)),
        ("longest TBT", (run.predicted_tbt_ms, run.seen_tbt_ms)),
    ):
        if len(seen):
            late_ms = seen - predicted
            spread = [f"{round(ms, 1) + 0.0:+,.1f}".replace("-", "\N{MINUS SIGN}")
                      for ms in np.percentile(late_ms, _SHARES)]  # fmt: skip
            later = float((late_ms > 0).mean())
            rows.append((name, f"{len(seen):,}", *spread, percent(later)))
    if not rows:
        return None
    heads = ("", "pairs", *(f"p{share} ms" for share in _SHARES), "later than predicted")
    return Section(
        "Errors of the forecast", "Observed minus predicted; above 0 it came later.",
        Grid((), heads, tuple(rows)),
    )  # fmt: skip


def _over_time(run: LogRun, window: Window) -> Section | None:
    if not len(run.at_s):
        return None
    from_s, to_s = window_s = window.from_s, window.to_s
    off_s = [(one.from_s, one.to_s) for one in run.stretches]
    silent_s = [(one.from_s, one.to_s) for one in run.stretches if not one.observed]
    strips = []
    inside = (run.first_s >= from_s) & (run.first_s < to_s)
    inside &= np.isfinite(run.first_slo_ms)
    if inside.any():
        slo_ms = _one_slo_ms(run)
        over = 1.0 if slo_ms is not None else run.first_slo_ms[inside]
        values = (run.first_ms[inside] / over).tolist()
        first = list(zip(run.first_s[inside].tolist(), values, strict=True))
        strips.append(
            dots_strip("TTFT, when the first token came", window_s, first, slo_ms, axis_ms)
            if slo_ms is not None
            else dots_strip("TTFT over its own SLO", window_s, first, 1.0, axis_number)
        )
    lines = [("requests, running and waiting", run.requests, True)]
    for knob in _moving(run):
        name, unit = _TITLES[knob]
        lines.append((f"{name}, {unit}" if unit else name, run.knobs[knob], knob != "clock_mhz"))
    lines.append(("predicted power, W", run.predicted_w, True))
    for at, (name, values, from_zero) in enumerate(lines):
        points = _points(run, values, from_s, to_s)
        last = at == len(lines) - 1
        strips.append(
            steps_strip(
                name,
                window_s,
                points,
                from_zero=from_zero,
                off_s=off_s,
                blank_s=silent_s,
                last=last,
            )
        )
    words = f"{time_words(round(from_s))} to {time_words(round(to_s))}"
    if window.chosen and to_s - from_s < run.end_s:
        words += ", when most first tokens came"
    if off_s:
        words += "; shaded: BEAM did not steer, the knobs were the engine's own"
    if not run.steered.all():
        words += "; where it looked on, the knobs are what it would have set"
    whole = Timeline("", _CSS, words, tuple(strips), "time since the start, min:s")
    return Section(
        "Decisions over time", "What the controller saw, chose and predicted.", Timelines((whole,))
    )


def _moving(run: LogRun) -> list[str]:
    return [knob for knob in KNOBS if len(np.unique(run.knobs[knob])) > 1]


def _points(
    run: LogRun, values: NDArray[np.float64], from_s: float, to_s: float
) -> list[tuple[float, float]]:
    known = np.isfinite(values) & (run.at_s < to_s)
    at_s, values = run.at_s[known], values[known]
    first = max(0, int(np.searchsorted(at_s, from_s, side="right")) - 1)
    return list(zip(at_s[first:].tolist(), values[first:].tolist(), strict=True))


def _knobs(run: LogRun) -> Section | None:
    holds_s = run.holds_s()
    total_s = float(holds_s.sum())
    if total_s <= 0:
        return None
    drawings = []
    moving = _moving(run)
    for knob in moving:
        name, unit = _TITLES[knob]
        shares: dict[float, float] = {}
        for value, lasts_s in zip(run.knobs[knob].tolist(), holds_s.tolist(), strict=True):
            key = round(value)
            shares[key] = shares.get(key, 0.0) + lasts_s / total_s
        drawings.append(Drawing(name, columns(shares, _CSS, name), unit))
    still = [
        f"{_TITLES[knob][0]} {run.knobs[knob][0]:g} {_TITLES[knob][1]}".rstrip()
        for knob in KNOBS
        if knob not in moving
    ]
    all_through = f" All through: {', '.join(still)}." if still else ""
    return Section(
        "Time in each knob",
        f"Share of the time in which BEAM steered.{all_through}",
        Drawings(tuple(drawings), small=True),
    )


def _aside(run: LogRun) -> Section | None:
    rows = [
        (time_words(round(one.from_s, 1)), format_duration(one.to_s - one.from_s), one.reason)
        for one in run.stretches
    ]
    rows += [(time_words(round(at_s, 1)), "", what) for at_s, what in run.anomalies]
    if not rows:
        return None
    more = f" The first {_MOST_ROWS} of {len(rows):,}." if len(rows) > _MOST_ROWS else ""
    return Section(
        "When BEAM did not steer, and anomalies",
        f"Min:s since the start, how long, why.{more}",
        Grid((), ("at", "for", "why"), tuple(rows[:_MOST_ROWS]), words=True),
    )


def _facts(run: LogRun) -> Facts:
    began = run.start.get("unix_s")
    limits = run.start.get("limits") or {}
    facts = [
        ("Log", f"{run.path.name}, {run.start.get('schema')}"),
        ("Began", datetime.fromtimestamp(float(began), UTC).isoformat(timespec="seconds")
         if began else ""),
        ("Clocks", str(run.start.get("clocks", ""))),
        ("Engine", ", ".join(f"{name} {value}" for name, value in limits.items())),
        ("Decisions", _decisions(run)),
        ("Counts", ", ".join(f"{name.replace('_', ' ')} {value:g}"
                             for name, value in run.counts.items())),
        ("End", "" if run.counts else "no stop record: the process was killed, or still runs"),
    ]  # fmt: skip
    return Facts(tuple((name, words) for name, words in facts if words))


def _decisions(run: LogRun) -> str:
    if not len(run.at_s):
        return "none"
    p50, p99 = np.percentile(run.search_ms, (50, 99))
    watts = run.predicted_w[np.isfinite(run.predicted_w)]
    power = (
        f"; predicted power {significant(float(watts.mean()))} W on average" if len(watts) else ""
    )
    return f"{len(run.at_s):,}; a search took {p50:.2f} ms (p50), {p99:.2f} ms (p99){power}"
