"""What it costs to make good the milliseconds that prompts lose to a low clock of decodes.

A play shows nobody coming. Whoever comes waits for the pass under way, and starts before the clock
has changed; faster, dearer passes of the prefill make that good (lines.hurry_j). Where a prompt
takes little of its TTFT SLO even at the cheapest clock, there is little to be made good. Streams
that are promised a mean have to be made good as well, so that the whole price is theirs.
"""

import numpy as np

from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import Correction, EngineLimits, StepShape

_SMALL_TOKENS = 64


class Hurry:
    """The price of a millisecond.

    Args:
        cost: step costs.
        limits: of the engine.
        chunk_tokens: the largest chunk.
        first_token_ms: the tightest TTFT SLO.

    Attributes:
        j_per_ms: the price.
    """

    def __init__(
        self, cost: StepCost, limits: EngineLimits, chunk_tokens: int, first_token_ms: float
    ) -> None:
        chunk, small = StepShape(chunk_tokens), StepShape(min(_SMALL_TOKENS, chunk_tokens))
        pass_ms, pass_j = cost.latency_ms(chunk), limits.pp * cost.energy_j(chunk)
        cheapest = int(np.argmin(pass_j))
        saved_ms = float(pass_ms[cheapest] - pass_ms[-1])
        more_j = float(pass_j[-1] - pass_j[cheapest])
        # From the cheapest clock of a chunk to the fastest, on average; 0 where they are one.
        self.j_per_ms = more_j / saved_ms if saved_ms > 0.0 else 0.0
        self._first_token_ms = first_token_ms
        self._pass_ms = float(pass_ms[cheapest])
        self._small_ms = float(cost.latency_ms(small)[cheapest])
        self._chunk_tokens, self._limits = chunk_tokens, limits

    def gaps_j_per_ms(self, learnt: Correction) -> float:
        """Where gaps are promised: less by as much of its TTFT SLO as a lone prompt leaves."""
        if learnt.prompt_tokens <= 0.0:
            return self.j_per_ms
        chunks = learnt.prompt_tokens / self._chunk_tokens
        filled = min(1.0, chunks)
        stage_ms = self._small_ms + filled * (self._pass_ms - self._small_ms)
        stage_ms += self._limits.host_gap_ms
        alone_ms = stage_ms * (self._limits.pp + max(0.0, chunks - 1.0))
        margin_ms = learnt.first_margin_ms(self._first_token_ms)
        in_time_ms = max(1.0, self._first_token_ms - margin_ms)
        return self.j_per_ms * min(1.0, alone_ms / in_time_ms)
