"""The part of a replay in which most arrives, and what each policy's engine did in it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beam_runtime.types import SAME_MS
from beamprof.errors import ReportError
from beamprof.replay.saved import SavedReplay
from beamprof.report.html.number_words import axis_ms, axis_number, percent, significant
from beamprof.report.html.part import Strip, Timeline, Timelines
from beamprof.report.html.strips import columns_strip, dots_strip, steps_strip, time_words

BURST_S = 60.0
_COLUMNS = 60
_START_EVERY_S = 1.0
_X_WORDS = "time in the trace, min:s"

# Column of the steps, name, and how a constant is told; a plain value is not told.
_KNOBS = (
    ("clock_mhz", "clock, MHz", "{} MHz", 0),
    ("chunk_tokens", "chunk, tokens", "chunk {}", 0),
    ("microbatches", "microbatches", "{} microbatches", 1),
    ("pace_ms", "pace, ms", "pace {} ms", 0),
)


@dataclass(frozen=True, slots=True)
class Window:
    """From ``from_s`` to ``to_s`` of the trace; ``chosen`` as the busiest, or asked for."""

    from_s: float
    to_s: float
    chosen: bool

    @property
    def words(self) -> str:
        """12:05 to 13:05."""
        return f"{time_words(self.from_s)} to {time_words(self.to_s)}"


def busiest(saved: SavedReplay, length_s: float = BURST_S) -> Window:
    """The stretch of ``length_s`` in which most tokens arrive, prompts and answers together."""
    one = saved.requests.filter(policy=saved.report.vanilla.policy)
    tokens = (one["input_tokens"] + one["output_tokens"]).to_numpy()
    return fullest(one["arrival_ms"].to_numpy() / 1e3, tokens, saved.report.duration_s, length_s)


def fullest(
    at_s: NDArray[np.float64], weights: NDArray[Any], end_s: float, length_s: float
) -> Window:
    """The stretch of ``length_s`` before ``end_s`` that holds most weight; ``at_s`` ascends."""
    length_s = min(length_s, end_s)
    starts_s = np.arange(0.0, end_s - length_s + 1e-9, _START_EVERY_S)
    so_far = np.concatenate([[0], np.cumsum(weights)])
    inside = (
        so_far[np.searchsorted(at_s, starts_s + length_s)] - so_far[np.searchsorted(at_s, starts_s)]
    )
    start_s = float(starts_s[int(np.argmax(inside))])
    return Window(start_s, start_s + length_s, chosen=True)


def asked_window(end_s: float, from_s: float, to_s: float | None) -> Window:
    """The window that somebody asked for, of what ends at ``end_s``.

    Raises:
        ReportError: nothing lies in it.
    """
    to_s = end_s if to_s is None else min(to_s, end_s)
    if not 0.0 <= from_s < to_s:
        raise ReportError(
            f"--window: nothing lies between {from_s:g} s and {to_s:g} s",
            cause=f"there are {end_s:g} s",
            hint="for example --window 0:60s",
        )
    return Window(from_s, to_s, chosen=False)


def timelines(saved: SavedReplay, window: Window, css: dict[str, str]) -> Timelines:
    """What arrived, then one timeline per policy."""
    policies = (rung.metrics.policy for rung in saved.report.rungs)
    return Timelines(
        (_load(saved, window), *(_policy(saved, window, name, css[name]) for name in policies))
    )


def _load(saved: SavedReplay, window: Window) -> Timeline:
    rows = _arriving(saved, window, saved.report.vanilla.policy)
    edges_s = np.linspace(window.from_s, window.to_s, _COLUMNS + 1)
    every_s = float(edges_s[1] - edges_s[0])
    at_s = rows["arrival_ms"].to_numpy() / 1e3
    strips = [
        columns_strip(
            name, edges_s.tolist(),
            (np.histogram(at_s, edges_s, weights=weights)[0] / every_s).tolist(), last=last,
        )
        for name, weights, last in (
            ("arriving, requests/s", None, False),
            ("arriving in prompts, tokens/s", rows["input_tokens"].to_numpy(), False),
            ("to be answered, tokens/s", rows["output_tokens"].to_numpy(), True),
        )
    ]  # fmt: skip
    length_s = window.to_s - window.from_s
    tokens = int((rows["input_tokens"] + rows["output_tokens"]).sum())
    words = (
        f"{rows.height:,} requests, {significant(rows.height / length_s)} per second; "
        f"{tokens:,} tokens, {significant(tokens / length_s)} per second"
    )
    return Timeline("what arrives", "", words, tuple(strips), _X_WORDS)


def _policy(saved: SavedReplay, window: Window, policy: str, css: str) -> Timeline:
    span_s = (window.from_s, window.to_s)
    steps = saved.steps_between(policy, window.from_s * 1e3, window.to_s * 1e3)
    at_s = (steps["issued_ms"] / 1e3).to_list()
    slo_ms = saved.report.options.slo.ttft_ms
    waits = _arriving(saved, window, policy).drop_nulls("ttft_ms")
    first = list(
        zip((waits["arrival_ms"] / 1e3).to_list(), waits["ttft_ms"].to_list(), strict=True)
    )
    constant, moving = [], []
    for column, name, told, plain in _KNOBS:
        values = steps[column].to_list()
        if len(set(values)) > 1:
            moving.append((name, list(zip(at_s, values, strict=True)), column != "clock_mhz"))
        elif values and values[0] != plain:
            constant.append(told.format(axis_number(round(values[0]))))
    strips: list[Strip] = [
        dots_strip("TTFT of each request, by its arrival", span_s, first, slo_ms, axis_ms),
        _computed(steps, window, last=not moving),
    ]
    strips += [
        steps_strip(name, span_s, points, from_zero=from_zero, last=at == len(moving) - 1)
        for at, (name, points, from_zero) in enumerate(moving)
    ]
    return Timeline(
        policy, css, _words(steps, waits, window, slo_ms, constant), tuple(strips), _X_WORDS
    )


def _arriving(saved: SavedReplay, window: Window, policy: str) -> pl.DataFrame:
    return saved.requests.filter(
        pl.col("policy") == policy,
        pl.col("arrival_ms").is_between(window.from_s * 1e3, window.to_s * 1e3, closed="left"),
    )


def _computed(steps: pl.DataFrame, window: Window, *, last: bool) -> Strip:
    edges_s = np.linspace(window.from_s, window.to_s, _COLUMNS + 1)
    tokens = (steps["prefill_tokens"] + steps["decode_requests"]).to_numpy()
    summed = np.histogram(steps["issued_ms"].to_numpy() / 1e3, edges_s, weights=tokens)[0]
    rates = summed / (edges_s[1] - edges_s[0])
    return columns_strip("computed, tokens/s", edges_s.tolist(), rates.tolist(), last=last)


def _words(
    steps: pl.DataFrame, waits: pl.DataFrame, window: Window, slo_ms: float, constant: list[str]
) -> str:
    inside = steps.filter(pl.col("issued_ms") >= window.from_s * 1e3)
    active_w = float(inside["energy_j"].sum()) / (window.to_s - window.from_s)
    said = [f"passes draw {significant(active_w)} W"]
    if waits.height:
        kept = float((waits["ttft_ms"].to_numpy() <= slo_ms + SAME_MS).mean())
        said.append(f"TTFT kept for {percent(kept)} of what arrives here")
    words = "; ".join(said)
    return f"{words}; all through {', '.join(constant)}" if constant else words
