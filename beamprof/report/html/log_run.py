"""One run of a controller, from its decision log, as arrays."""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beam_runtime.control.decision_log import read_log
from beamprof.errors import ReportError
from beamprof.report.html.log_requests import Done, done_requests
from beamprof.report.html.log_values import (
    Floats,
    number,
    numbers,
    numbers_by_name,
    promises,
    seconds,
    start_record,
)

KNOBS = ("clock_mhz", "chunk_tokens", "microbatches", "pace_ms")
# Decisions are made anew every quarter of a second while there are requests: after a longer
# silence, what was seen says nothing about what had been predicted.
_STALE_MS = 1_000.0
# A controller without threads decides as soon as it is asked: that is no waiting.
_AT_ONCE_MS = 100.0
# What the page shows of a decision. The rest is most of a log, and would be most of the memory.
_SHOWN = {
    "forecast": ("worst_tbt_ms", "horizon_ms", "active_energy_j", "idle_energy_j"),
    "own": ("worst_tbt_ms", "horizon_ms", "active_energy_j", "idle_energy_j"),
    "knobs": KNOBS,
    "state": ("running", "waiting"),
    "since": ("tokens", "late_tokens", "worst_ms"),
}
_NOT_SHOWN = ("why", "refused", "request_id")
_UNOPENED = "no decision yet: the search was being compiled or loaded"


@dataclass(frozen=True, slots=True)
class Stretch:
    """Time in which BEAM did not steer (so before its first decision), seconds of the run, and why.

    ``observed``: it went on to decide, for nobody.
    """

    from_s: float
    to_s: float
    reason: str
    observed: bool


@dataclass(frozen=True, slots=True)
class LogRun:
    """From a ``start`` to its ``stop``; times in seconds since the start.

    Attributes:
        path: the log.
        runs: how many the file holds; this is the last.
        continued: its beginning is in an older file, which was full.
        start: its first record.
        end_s: the last record's time.
        at_s: (D,) decisions.
        knobs: (D,) by knob.
        steered: (D,) whether the decision was put in force.
        requests: (D,) running and waiting.
        predicted_w: (D,) all energy of the forecast over its horizon; NaN without one.
        predicted_tbt_ms, seen_tbt_ms: (P,) the longest gap predicted by a decision, and the longest
            that was seen until the next one.
        tokens, late_tokens: after requests' first, as far as decisions tell.
        first_s, first_ms, first_predicted_ms, first_slo_ms: (F,) first tokens; NaN where nothing
            was predicted.
        search_ms: (D,) what a decision took.
        stretches: when BEAM did not steer.
        anomalies: (s, what) of drift and refused clocks.
        done: requests that have their last token, where the engine tells.
        counts: what the run's end says; empty where it has none.
    """

    path: Path
    runs: int
    continued: bool
    start: Mapping[str, Any]
    end_s: float
    at_s: Floats
    knobs: Mapping[str, Floats]
    steered: NDArray[np.bool_]
    requests: Floats
    predicted_w: Floats
    predicted_tbt_ms: Floats
    seen_tbt_ms: Floats
    tokens: int
    late_tokens: int
    first_s: Floats
    first_ms: Floats
    first_predicted_ms: Floats
    first_slo_ms: Floats
    search_ms: Floats
    stretches: tuple[Stretch, ...]
    anomalies: tuple[tuple[float, str], ...]
    done: tuple[Done, ...]
    counts: Mapping[str, Any]

    @property
    def steered_share(self) -> float:
        """Of the run's time."""
        off_s = sum(one.to_s - one.from_s for one in self.stretches)
        return 1.0 - off_s / self.end_s if self.end_s > 0 else 0.0

    @property
    def first_predicted(self) -> NDArray[np.bool_]:
        """(F,) whether a forecast was in force, and fresh, when the first token came."""
        use = np.isfinite(self.first_predicted_ms)
        if not len(self.at_s):
            return use
        decision = np.searchsorted(self.at_s, self.first_s, side="right") - 1
        decided_s = np.where(decision >= 0, self.at_s[decision], -math.inf)
        use &= self.first_s - decided_s <= _STALE_MS / 1e3
        for one in self.stretches:
            inside = (self.first_s >= one.from_s) & (self.first_s <= one.to_s)
            use &= ~(inside & (decided_s < one.from_s))
        return use

    def holds_s(self) -> Floats:
        """(D,) how long each decision was in force; 0 where it was not."""
        until_s = np.append(self.at_s[1:], self.end_s)
        lasts_s = until_s - self.at_s
        for one in self.stretches:
            lasts_s -= np.clip(
                np.minimum(until_s, one.to_s) - np.maximum(self.at_s, one.from_s), 0.0, None
            )
        return np.where(self.steered, np.clip(lasts_s, 0.0, None), 0.0)


def load_log(path: Path) -> LogRun:
    """The last run in the log.

    Raises:
        BeamError: as read_log.
        ReportError: it holds no record, or one that no controller writes.
    """
    runs, records = 0, list[dict[str, Any]]()
    for record in read_log(path):
        if _kind(record) == "start":  # no other run than the last is kept in memory
            runs, records = runs + 1, []
        records.append(_shown(record))
    if not runs:
        raise ReportError(f"{path} holds no decisions", cause="the log is empty")
    try:
        return _run(path, runs, records)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ReportError(
            f"{path} holds a record that this BEAM does not write",
            cause=f"{type(error).__name__}: {error}",
            hint="a log of an older BEAM, or a damaged one: record again",
        ) from None


def _shown(record: dict[str, Any]) -> dict[str, Any]:
    """A record with what the page shows of it; names are kept in memory once for all records."""
    if _kind(record) == "start":
        return record
    return {
        sys.intern(name): {key: value[key] for key in _SHOWN[name] if key in value}
        if name in _SHOWN and isinstance(value, dict)
        else value
        for name, value in record.items()
        if name not in _NOT_SHOWN
    }


def _kind(record: Any) -> str:
    return str(record.get("kind")) if isinstance(record, dict) else ""


def _run(path: Path, runs: int, records: list[dict[str, Any]]) -> LogRun:
    start = start_record(records[0])
    start_ms = number(start["at_ms"])
    of_kind: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        of_kind.setdefault(_kind(record), []).append(record)
    decisions = of_kind.get("decision", [])
    first = of_kind.get("first_token", [])
    end_s = float(seconds(records, start_ms).max())
    forecasts = [one.get("own", one["forecast"]) for one in decisions]
    predicted, seen = _pairs(decisions, forecasts, of_kind.get("steering", []))
    since = [one.get("since", {}) for one in decisions]
    knobs = {name: numbers(one["knobs"][name] for one in decisions) for name in KNOBS}
    if any(np.isnan(values).any() for values in knobs.values()):
        raise ValueError("a knob is null")
    continued = bool(start.get("continued"))
    return LogRun(
        path=path,
        runs=runs,
        continued=continued,
        start=start,
        end_s=end_s,
        at_s=seconds(decisions, start_ms),
        knobs=knobs,
        steered=np.array(["own" not in one for one in decisions], dtype=bool),
        requests=numbers(one["state"]["running"] + one["state"]["waiting"] for one in decisions),
        predicted_w=numbers(_watts(one) for one in forecasts),
        predicted_tbt_ms=predicted,
        seen_tbt_ms=seen,
        tokens=sum(int(number(one.get("tokens", 0))) for one in since),
        late_tokens=sum(int(number(one.get("late_tokens", 0))) for one in since),
        first_s=seconds(first, start_ms),
        first_ms=numbers(number(one["actual_ms"]) for one in first),
        first_predicted_ms=numbers(one.get("predicted_ms") for one in first),
        first_slo_ms=promises(one.get("slo_ms") for one in first),
        search_ms=numbers(number(one["search_ms"]) for one in decisions),
        stretches=_stretches(
            of_kind.get("steering", []), decisions, start_ms, end_s, opens=not continued
        ),
        anomalies=_anomalies(of_kind, start_ms),
        done=done_requests(of_kind.get("request", [])),
        counts=numbers_by_name(of_kind["stop"][-1]["counts"]) if "stop" in of_kind else {},
    )


def _watts(forecast: Mapping[str, Any]) -> float | None:
    horizon_ms = number(forecast["horizon_ms"] or 0.0)
    joules = number(forecast["active_energy_j"] or 0.0) + number(forecast["idle_energy_j"] or 0.0)
    return joules / horizon_ms * 1e3 if horizon_ms > 0 else None


def _pairs(
    decisions: list[dict[str, Any]],
    forecasts: list[Mapping[str, Any]],
    steering: list[dict[str, Any]],
) -> tuple[Floats, Floats]:
    turns_ms = [number(one["at_ms"]) for one in steering]
    pairs = []
    for (one, two), forecast in zip(pairwise(decisions), forecasts, strict=False):
        begin_ms, end_ms = number(one["at_ms"]), number(two["at_ms"])
        since, worst_ms = two.get("since", {}), forecast["worst_tbt_ms"]
        if not since.get("tokens") or not worst_ms or end_ms - begin_ms > _STALE_MS:
            continue
        if not any(begin_ms <= turn_ms <= end_ms for turn_ms in turns_ms):
            pairs.append((number(worst_ms), number(since["worst_ms"])))
    both = np.array(pairs).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _stretches(
    steering: list[dict[str, Any]],
    decisions: list[dict[str, Any]],
    start_ms: float,
    end_s: float,
    *,
    opens: bool,
) -> tuple[Stretch, ...]:
    """From turn to turn; ``opens``: nothing is steered before the first decision."""
    observed_s = seconds((one for one in decisions if "own" in one), start_ms)
    turns = [
        (at_s, bool(one["steering"]), str(one["reason"]))
        for at_s, one in zip(seconds(steering, start_ms).tolist(), steering, strict=True)
    ]
    if opens:
        first_s = float(seconds(decisions[:1], start_ms)[0]) if decisions else end_s
        if first_s > _AT_ONCE_MS / 1e3:
            turns = _opening(turns, first_s)
    found = []
    ends_s = [*(at_s for at_s, _, _ in turns), end_s]
    for (_, steers, reason), (from_s, until_s) in zip(turns, pairwise(ends_s), strict=True):
        if not steers:
            inside = (observed_s >= from_s) & (observed_s <= until_s) & (reason != _UNOPENED)
            found.append(Stretch(from_s, until_s, reason, observed=bool(inside.any())))
    return tuple(found)


def _opening(turns: list[tuple[float, bool, str]], first_s: float) -> list[tuple[float, bool, str]]:
    """The same with the time in it that the search took to open: until the first decision."""
    early = [turn for turn in turns if turn[0] < first_s]
    later = turns[len(early) :]
    if not early or early[0][0] > 0.0:
        early.insert(0, (0.0, True, ""))
    opening = [(at_s, False, _UNOPENED if steers else why) for at_s, steers, why in early]
    opened = [(first_s, True, "")] if early[-1][1] else []
    return opening + opened + later


def _anomalies(
    of_kind: Mapping[str, list[dict[str, Any]]], start_ms: float
) -> tuple[tuple[float, str], ...]:
    said = [
        (one, f"{one['step']} steps take {number(one['ratio']):.2f} times what the table says")
        for one in of_kind.get("drift", [])
    ]
    for one in of_kind.get("clock", []):
        asked = "release" if one["clock_mhz"] is None else f"{one['clock_mhz']} MHz"
        said.append((one, f"clock refused ({asked}): {one['error']}"))
    at_s = seconds((one for one, _ in said), start_ms).tolist()
    return tuple(sorted(zip(at_s, (words for _, words in said), strict=True)))
