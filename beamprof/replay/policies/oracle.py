"""oracle: energy that no policy can stay under, knowing all arrivals and output lengths.

Whatever is scheduled, with w the least idle power of a stage, T the trace's duration and every
step s run at some clock f on each of pp stages,

    E >= pp w T + pp * sum over steps of net(s, f),       net = energy - w x latency

because a stage that is not in a pass waits, and replaying lasts at least T. In the table's
terms net is linear(tokens) + features, and

* net_linear(n, f) + the kind's constant >= g n, with g the least of it per token over all clocks,
  kinds of step and step sizes n that the engine was started for. Every prompt token and every
  output token but a request's first passes through exactly one step (more with preemption),
  so steps sum to at least g x tokens;
* (query, key) pairs of a prompt's chunks sum to P (P + 1) / 2 however it is cut, and the KV
  tokens read by its decodes are fixed: they are priced at the least net coefficient of any
  clock, or at 0 where that is negative;
* what an endless prefix cache holds of a prompt, C tokens, may be spared: they are left out, and
  their C (C + 1) / 2 pairs;
* prompts cut into chunks read their earlier context: at least what the largest step forces.

SLOs are left out, which can only lower it: batches of the size that g assumes would break TBT.
So the bound is valid for policies that keep the SLOs and not tight for them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beam_runtime.table.cost_fit import FEATURES
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import EngineLimits
from beamprof.traces.trace import Trace


@dataclass(frozen=True, slots=True)
class Bound:
    """A lower bound on a trace's energy.

    Attributes:
        idle_j: all stages waiting for the whole duration, at the least idle power.
        tokens_j: what tokens add to that, in the best step at the best clock.
        attention_j: what their contexts add.
    """

    idle_j: float
    tokens_j: float
    attention_j: float

    @property
    def energy_j(self) -> float:
        """The bound."""
        return self.idle_j + self.tokens_j + self.attention_j


def lower_bound(
    trace: Trace,
    cost: StepCost,
    limits: EngineLimits,
    largest_step: int,
    new_tokens: NDArray[np.int64] | None = None,
) -> Bound:
    """The bound for engines whose steps hold at most ``largest_step`` tokens.

    ``new_tokens``, (R,), are those of each prompt that no prefix cache could spare; all by default.
    """
    idle_w = float(cost.idle_power_w.min())
    coefficient = cost.attention_energy_j - idle_w * cost.attention_latency_ms / 1e3

    def least(feature: str) -> float:
        return max(0.0, float(coefficient[:, FEATURES.index(feature)].min()))

    sizes = np.arange(1, largest_step + 1)
    net = _linear(cost, sizes, cost.linear_energy_j)
    net -= idle_w * _linear(cost, sizes, cost.linear_latency_ms) / 1e3
    constants = [coefficient[:, FEATURES.index(kind)] for kind in ("decode_only", "mixed")]
    of_kind = np.minimum(0.0, np.minimum(*constants))
    token_j = float(((net + of_kind[:, None]) / sizes).min())

    prompt = trace.input_tokens.astype(float)
    decoded = trace.output_tokens.astype(float) - 1.0
    new = prompt if new_tokens is None else new_tokens.astype(float)
    pairs = new * (2.0 * prompt - new + 1.0) / 2.0
    # Least is read again when the smallest of K chunks, r tokens, comes first.
    before = np.ceil(new / largest_step) - 1.0
    smallest = new - before * largest_step
    reread = before * smallest + largest_step * before * (before - 1.0) / 2.0
    decode_context = decoded * prompt + decoded * (decoded - 1.0) / 2.0
    attention_j = (
        least("prefill_pairs") * pairs.sum()
        + least("prefill_context_tokens") * reread.sum()
        + least("decode_context_tokens") * decode_context.sum()
        + least("decode_requests") * decoded.sum()
    )
    tokens = float((new + decoded).sum())
    return Bound(
        idle_j=limits.pp * idle_w * trace.duration_s,
        tokens_j=limits.pp * max(0.0, token_j) * tokens,
        attention_j=limits.pp * float(attention_j),
    )


def _linear(
    cost: StepCost, sizes: NDArray[np.int64], linear: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(M, sizes) the linear part at every step size."""
    return np.stack([np.interp(sizes, cost.edges_tokens, one) for one in linear])
