"""Counters of what was predicted, promised and served, kept on the engine's thread.

Requests are counted by the SLO class that they named; what has a total beside it counts the same
requests or tokens as that total. What was predicted is held against the same thing as it came:

    TTFT          of requests that had a forecast when their first token came
    longest gap   of all requests over a forecast's horizon, forecast after forecast
"""

import math
from bisect import bisect_left
from dataclasses import dataclass, field, fields
from typing import Any

from beam_runtime.types import Forecast, Slo

LATENCIES_MS = (1, 2, 5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 500, 750, 1000, 1500, 2000, 5000,
                10_000, 30_000)  # fmt: skip
JOULES = (0.1, 0.3, 1, 3, 10, 30, 100, 200, 300, 500, 1000, 2000, 3000, 5000, 10_000, 30_000)


class Histogram:
    """Counts by upper bound, as Prometheus has them.

    Args:
        bounds: ascending; whatever is larger than the last is counted apart.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Count a value, so many times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times


def _latencies() -> Histogram:
    return Histogram(LATENCIES_MS)


@dataclass(slots=True)
class ClassTally:
    """Requests of one SLO class, since the start.

    Attributes:
        requests: that came in.
        prompt_tokens: of those with a first token.
        generated_tokens: given out.
        first_tokens, late_first_tokens: all, and those after their TTFT SLO.
        gaps, late_gaps: between two tokens of a request: all, and those over what its SLO leaves
            for each.
        completions: requests done; of these:
        late_completions: that broke a promise: goodput is the share of the others.
        slow_completions: whose mean gap (TPOT) was over it; of one token none is.
        ttft_ms, gap_ms, tpot_ms: histograms of first tokens, gaps and completions.
        energy_j: active energy of completions, as the table has it.
    """

    requests: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    first_tokens: int = 0
    late_first_tokens: int = 0
    gaps: int = 0
    late_gaps: int = 0
    completions: int = 0
    late_completions: int = 0
    slow_completions: int = 0
    ttft_ms: Histogram = field(default_factory=_latencies)
    gap_ms: Histogram = field(default_factory=_latencies)
    tpot_ms: Histogram = field(default_factory=_latencies)
    energy_j: Histogram = field(default_factory=lambda: Histogram(JOULES))

    def plain(self) -> dict[str, int]:
        """The counters, as plain values."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.type is int}

    def first(self, ttft_ms: float, prompt_tokens: int, slo: Slo) -> None:
        """A request's first token."""
        self.first_tokens += 1
        self.prompt_tokens += prompt_tokens
        self.late_first_tokens += ttft_ms > slo.ttft_ms
        self.ttft_ms.add(ttft_ms)

    def gap(self, gap_ms: float) -> None:
        """A further token of a request; Followed.note_late() says whether it was late."""
        self.gaps += 1
        self.gap_ms.add(gap_ms)


@dataclass(slots=True)
class Tally:
    """The engine as a whole, since the start. Times are milliseconds.

    Attributes:
        steps: engine steps that were not empty.
        holds: times EngineCore was told to wait or to collect instead of scheduling.
        aborts: requests ended from outside.
        preemptions: running requests that lost their KV blocks.
        passed_over: prompts that had their turn only when vLLM got its own settings back.
        misunderstood: requests that asked for an SLO class that is none, or times that are none.
        ttfts: first tokens that had a prediction.
        ttft_ms: their actual TTFT, summed.
        predicted_ttft_ms: the prediction in force when each came, summed.
        longest_gaps: horizons of forecasts that were seen to their end.
        longest_gap_ms: the longest gap that came in each, summed.
        predicted_longest_gap_ms: the longest that each predicted, summed.
        active_energy_j: all passes of all stages at the clock in force, as the table has them.
        beam_energy_j: the same with what stages draw while they wait, at the clock that BEAM has
            set, or, while it observes, would have.
        own_energy_j: the same steps at vLLM's own clock.
        classes: by SLO class.
    """

    steps: int = 0
    holds: int = 0
    aborts: int = 0
    preemptions: int = 0
    passed_over: int = 0
    misunderstood: int = 0
    ttfts: int = 0
    ttft_ms: float = 0.0
    predicted_ttft_ms: float = 0.0
    longest_gaps: int = 0
    longest_gap_ms: float = 0.0
    predicted_longest_gap_ms: float = 0.0
    active_energy_j: float = 0.0
    beam_energy_j: float = 0.0
    own_energy_j: float = 0.0
    classes: dict[str, ClassTally] = field(default_factory=dict)
    _until_ms: float | None = None
    _predicted_ms: float = 0.0
    _seen_ms: float = 0.0

    def of_class(self, name: str) -> ClassTally:
        """The counters of an SLO class."""
        found = self.classes.get(name)
        if found is None:
            found = self.classes[name] = ClassTally()
        return found

    @property
    def completions(self) -> int:
        """Of all classes."""
        return sum(one.completions for one in self.classes.values())

    def plain(self) -> dict[str, Any]:
        """All but the histograms, as plain values."""
        own = [f.name for f in fields(self) if f.type in (int, float) and f.name[0] != "_"]
        return {
            **{name: getattr(self, name) for name in own},
            "classes": {name: one.plain() for name, one in list(self.classes.items())},
        }

    def predicted(self, ttft_ms: float, predicted_ms: float | None) -> None:
        """A first token, and what was predicted of it."""
        if predicted_ms is not None and math.isfinite(predicted_ms):
            self.ttfts += 1
            self.ttft_ms += ttft_ms
            self.predicted_ttft_ms += predicted_ms

    def gap(self, gap_ms: float, now_ms: float, expected: Forecast | None) -> None:
        """Some requests got a further token, after so long. Once per step."""
        until_ms = self._until_ms
        if until_ms is not None:
            if now_ms <= until_ms:
                self._seen_ms = max(self._seen_ms, gap_ms)
                return
            self._until_ms = None
            if self._seen_ms:
                self.longest_gaps += 1
                self.longest_gap_ms += self._seen_ms
                self.predicted_longest_gap_ms += self._predicted_ms
        if expected is not None and expected.worst_tbt_ms:
            predicted_ms = max(expected.worst_tbt_ms.values())
            if math.isfinite(predicted_ms):
                self._until_ms = now_ms + expected.horizon_ms
                self._predicted_ms, self._seen_ms = predicted_ms, 0.0
