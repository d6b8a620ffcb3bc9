"""Sums that the engine's thread keeps as it goes: what metrics are made of."""

import math
from dataclasses import dataclass

from beam_runtime.types import Slo


@dataclass(slots=True)
class Tally:
    """Totals since the start. Times are milliseconds.

    Attributes:
        steps: engine steps that were not empty.
        holds: times EngineCore was told to wait or to collect instead of scheduling.
        completions: requests done.
        aborts: requests ended from outside.
        preemptions: running requests that lost their KV blocks.
        passed_over: prompts that had their turn only when vLLM got its own settings back.
        ttfts: first tokens that had a prediction.
        ttft_ms: their actual TTFT, summed.
        predicted_ttft_ms: the prediction in force when each came, summed.
        first_tokens: of all requests, predicted or not.
        late_ttfts: of these, after their SLO.
        tbts: gaps between two tokens of a request.
        tbt_ms: the gaps, summed.
        late_tbts: gaps over their SLO.
        predicted_tbts: gaps that had a prediction.
        predicted_actual_tbt_ms: these, summed.
        predicted_tbt_ms: the request's longest gap as the forecast in force had it, summed.
        active_energy_j: all passes of all stages, as the table has them.
    """

    steps: int = 0
    holds: int = 0
    completions: int = 0
    aborts: int = 0
    preemptions: int = 0
    passed_over: int = 0
    ttfts: int = 0
    ttft_ms: float = 0.0
    predicted_ttft_ms: float = 0.0
    first_tokens: int = 0
    late_ttfts: int = 0
    tbts: int = 0
    tbt_ms: float = 0.0
    late_tbts: int = 0
    predicted_tbts: int = 0
    predicted_actual_tbt_ms: float = 0.0
    predicted_tbt_ms: float = 0.0
    active_energy_j: float = 0.0

    def first(self, ttft_ms: float, predicted_ms: float | None, slo: Slo) -> None:
        """A request's first token."""
        self.first_tokens += 1
        self.late_ttfts += ttft_ms > slo.ttft_ms
        if predicted_ms is not None and math.isfinite(predicted_ms):
            self.ttfts += 1
            self.ttft_ms += ttft_ms
            self.predicted_ttft_ms += predicted_ms

    def gap(self, gap_ms: float, predicted_ms: float | None, slo: Slo) -> None:
        """A further token."""
        self.tbts += 1
        self.tbt_ms += gap_ms
        self.late_tbts += gap_ms > slo.token_ms
        if predicted_ms is not None:
            self.predicted_tbts += 1
            self.predicted_actual_tbt_ms += gap_ms
            self.predicted_tbt_ms += predicted_ms
