"""StepCost and Pipeline for one step at a time: plain numbers, no arrays.

For who asks once or twice a step, and on the engine's own thread. The same arithmetic as
table.step_cost and emulator.pipeline, which tests hold it to; numpy's price per call is twenty
times that of these few multiplications. One clock is looked at, the one asked for: a change
under way is not seen here.
"""

from array import array

import numpy as np
from numpy.typing import NDArray

from beam_runtime.table.step_cost import FloatArray, StepCost, clock_index
from beam_runtime.types import Correction, EngineLimits, StepShape


class Passes:
    """Time and energy of steps.

    Args:
        cost: step costs.
        limits: of the engine; its largest step bounds the lookup.
    """

    def __init__(self, cost: StepCost, limits: EngineLimits) -> None:
        self._cost = cost
        self._limits = limits
        tokens = np.arange(limits.max_batched_tokens + limits.max_num_seqs + 1)
        self._tokens_ms = _dense(cost.edges_tokens, cost.linear_latency_ms, tokens)
        self._tokens_j = _dense(cost.edges_tokens, cost.linear_energy_j, tokens)
        self._attention_ms = cost.attention_latency_ms.tolist()
        self._attention_j = cost.attention_energy_j.tolist()
        self._index = {int(mhz): at for at, mhz in enumerate(cost.clocks_mhz)}

    def table_ms(self, step: StepShape, clock_mhz: int) -> float:
        """One stage's pass, as the table has it."""
        at = self._at(clock_mhz)
        return _value(self._tokens_ms[at], self._attention_ms[at], step)

    def pass_ms(self, step: StepShape, clock_mhz: int, correction: Correction) -> float:
        """One stage's pass, calibrated, with the host gap after it."""
        scale = correction.scale(step.prefill_tokens, step.decode_requests)
        return scale * self.table_ms(step, clock_mhz) + self._limits.host_gap_ms

    def energy_j(self, step: StepShape, clock_mhz: int) -> float:
        """One stage's pass, summed over its GPUs."""
        at = self._at(clock_mhz)
        return _value(self._tokens_j[at], self._attention_j[at], step)

    def decodes(
        self, count: int, context_tokens: int, clock_mhz: int, correction: Correction
    ) -> tuple[float, float]:
        """pass_ms() and energy_j() of a step with nothing else in it, as most of them are.

        Args:
            count: of the decodes, up to the engine's max_num_seqs.
            context_tokens: of them all.
            clock_mhz: that the pass runs at.
            correction: what calibration learnt.
        """
        at = self._at(clock_mhz)
        _, _, per_token, per_request, once, _ = self._attention_ms[at]
        busy_ms = self._tokens_ms[at][count] + per_token * context_tokens
        busy_ms += per_request * count + once
        _, _, per_token, per_request, once, _ = self._attention_j[at]
        joules = self._tokens_j[at][count] + per_token * context_tokens
        joules += per_request * count + once
        return correction.scale(0, count) * busy_ms + self._limits.host_gap_ms, joules

    def finish_ms(self, pass_ms: float, issue_ms: float, stage_free_ms: tuple[float, ...]) -> float:
        """When a step of such passes would leave the last stage."""
        end_ms = ready_ms = issue_ms
        for free_ms in stage_free_ms:
            end_ms = max(ready_ms, free_ms) + pass_ms
            ready_ms = end_ms + self._limits.transfer_ms
        return end_ms

    def _at(self, clock_mhz: int) -> int:
        at = self._index.get(clock_mhz)
        return clock_index(self._cost, clock_mhz) if at is None else at


def _dense(
    edges: FloatArray, linear: FloatArray, tokens: NDArray[np.int64]
) -> list["array[float]"]:
    right = np.clip(np.searchsorted(edges, tokens), 1, len(edges) - 1)
    weight = (tokens - edges[right - 1]) / (edges[right] - edges[right - 1])
    values = (1 - weight) * linear[:, right - 1] + weight * linear[:, right]
    return [array("d", row.tobytes()) for row in values]


def _value(by_tokens: "array[float]", attention: list[float], step: StepShape) -> float:
    """cost_fit.FEATURES, written out."""
    tokens = step.tokens
    if tokens == 0:
        return 0.0
    value = (
        by_tokens[min(tokens, len(by_tokens) - 1)]
        + attention[0] * (step.prefill_pairs or 0.0)
        + attention[1] * step.prefill_context_tokens
        + attention[2] * step.decode_context_tokens
        + attention[3] * step.decode_requests
    )
    if step.prefill_tokens == 0:
        value += attention[4]
    elif step.decode_requests:
        value += attention[5]
    return value
