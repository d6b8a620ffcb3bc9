"""Decode-only phases in aggregate, and the prices at which candidates are compared.

Between two events nothing but decodes may run, and then the engine repeats itself: every
microbatch goes round once per cycle. So that phase needs no playing forward, only its cycle:

    cycle = max(stages, microbatches) passes, stretched by the pace up to what the SLO allows
    power = passes of all stages per cycle + idle power of the GPU-time no pass covers

Candidates that end at different times with different tokens done are compared over equal work
by two prices, the same for all candidates of one snapshot:

* a second costs what the best steady setting burns in it (``standing``);
* a token not made will ride in a later batch, so it costs what one more decode adds to a
  batch, not the average. That is where pacing earns: by Little's law a slower cadence finds
  more requests per pass, and the pass's fixed part (reading the weights) is paid less often.
"""

from dataclasses import dataclass

import numpy as np
from plain_promises import tightest_ms, timed
from plain_schedule import servable, total_tokens

from beam_runtime.table.step_cost import FloatArray, StepCost
from beam_runtime.types import (
    SAME_MS,
    Correction,
    EngineLimits,
    Rules,
    Snapshot,
    StepShape,
    StreamKind,
)

# The paces that a search tries, in shares of the tightest TBT SLO: none, and up to all of it.
PACE_SHARES = (0.0, 1 / 3, 2 / 3, 1.0)


@dataclass(frozen=True, slots=True)
class Decoding:
    """What a decode-only phase serves.

    Attributes:
        requests: decodes going round.
        context_tokens: their KV tokens together.
        tbt_ms: the tightest TBT SLO among them.
        groups: microbatches they already form; only a pace merges those.
        by_gap: whether any of them is promised its gaps.
    """

    requests: int
    context_tokens: int
    tbt_ms: float
    groups: int = 1
    by_gap: bool = True


@dataclass(frozen=True, eq=False)
class Steady:
    """One decode-only cycle of the whole replica as rates, (M,) at every clock.

    Attributes:
        cycle_ms: time between two tokens of a request.
        active_power_w: energy of all stages' passes per second.
        idle_power_w: what the uncovered GPU-time adds.
        tokens_per_ms: tokens made.
    """

    cycle_ms: FloatArray
    active_power_w: FloatArray
    idle_power_w: FloatArray
    tokens_per_ms: FloatArray

    def net_power_w(self, token_j: float) -> FloatArray:
        """Power less the price of the tokens made."""
        return self.active_power_w + self.idle_power_w - token_j * self.tokens_per_ms * 1e3


@dataclass(frozen=True, slots=True)
class EqualWork:
    """The prices, and the window over which energies are stated.

    Attributes:
        token_j: one decode more in a batch, all stages, the idle power it displaces taken off.
        standing_power_w: the best steady setting's power, token price taken off.
        standing_tokens_per_ms: the tokens it makes.
        window_ms: long enough for the slowest candidate.
        fastest_ms: the shortest time between two tokens that any setting gives them.
        next_ms: a mean prompt alone at the fastest clock, where gaps are promised.
    """

    token_j: float
    standing_power_w: float
    standing_tokens_per_ms: float
    window_ms: float
    fastest_ms: float
    next_ms: float = 0.0

    def settlement_j(self, horizon_ms: float, tokens: float) -> float:
        """What a candidate still owes at its horizon, or has done in advance."""
        rest_ms = self.window_ms - horizon_ms
        owed = self.standing_tokens_per_ms * horizon_ms - tokens
        return self.standing_power_w * rest_ms / 1e3 + self.token_j * owed


def steady(
    decoding: Decoding,
    microbatches: int,
    pace_ms: float,
    cost: StepCost,
    limits: EngineLimits,
    correction: Correction,
    rules: Rules,
) -> Steady:
    """The steady cycle of a decode-only phase, at every clock.

    Args:
        decoding: what is served.
        microbatches: into how many groups a step may split them at least.
        pace_ms: how long a ready group may be held.
        cost: of one stage's pass.
        limits: of the engine.
        correction: of the table's latencies.
        rules: pacing may be switched off.
    """
    idle_w = cost.idle_power_w * limits.pp
    if decoding.requests == 0:
        nothing = np.zeros_like(idle_w)
        return Steady(nothing, nothing, idle_w, nothing)
    groups = max(microbatches, decoding.groups)
    cycle_ms, busy_ms, pass_j = _round(decoding, groups, cost, limits, correction)
    if rules.pace and groups > microbatches:
        # The first is held until the next is back, a stage's time later, if that is in time.
        one = _round(decoding, microbatches, cost, limits, correction)
        longest_ms = decoding.tbt_ms - correction.wide_margin_ms - one[0]
        held_ms = np.minimum(pace_ms, longest_ms) if decoding.by_gap else pace_ms
        merged = held_ms >= cycle_ms / limits.pp
        cycle_ms = np.where(merged, one[0], cycle_ms)
        busy_ms = np.where(merged, one[1], busy_ms)
        pass_j = np.where(merged, one[2], pass_j)
    if rules.pace and pace_ms > 0.0:
        allowed_ms = decoding.tbt_ms - correction.wide_margin_ms
        cycle_ms = np.minimum(np.maximum(cycle_ms, allowed_ms), cycle_ms + pace_ms)
    return Steady(
        cycle_ms=cycle_ms,
        active_power_w=limits.pp * pass_j / cycle_ms * 1e3,
        idle_power_w=idle_w * (1.0 - busy_ms / cycle_ms),
        tokens_per_ms=decoding.requests / cycle_ms,
    )


def _round(
    decoding: Decoding, groups: int, cost: StepCost, limits: EngineLimits, correction: Correction
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """One round of all groups on one stage: (cycle ms, busy ms, joules), each (M,)."""
    size = -(-decoding.requests // min(groups, decoding.requests))
    passes = -(-decoding.requests // size)
    shape = StepShape(
        decode_requests=size,
        decode_context_tokens=decoding.context_tokens * size // decoding.requests,
    )
    busy_ms = correction.scale(0, size) * cost.latency_ms(shape)
    cycle_ms = max(limits.pp, passes) * (busy_ms + limits.host_gap_ms)
    cycle_ms = cycle_ms + (limits.pp - 1) * limits.transfer_ms
    return cycle_ms, passes * busy_ms, passes * cost.energy_j(shape)


def equal_work(
    state: Snapshot,
    cost: StepCost,
    rules: Rules,
    lookahead_ms: float,
) -> EqualWork:
    """The prices for one snapshot: its requests, all decoding, at their best steady setting."""
    decoding = everyone(state)
    token_j = _token_price_j(decoding, cost, state.limits.pp)
    best_w, best_tokens, fastest_ms = np.inf, 0.0, np.inf
    for microbatches in range(1, (state.limits.pp if rules.microbatches else 1) + 1):
        for share in PACE_SHARES:
            pace_ms = share * decoding.tbt_ms
            one = steady(
                decoding, microbatches, pace_ms, cost, state.limits, state.correction, rules
            )
            if pace_ms == 0.0:
                fastest_ms = min(fastest_ms, float(one.cycle_ms.min()))
            late = one.cycle_ms + state.correction.tbt_margin_ms > decoding.tbt_ms + SAME_MS
            net_w = np.where(late & (decoding.requests > 0), np.inf, one.net_power_w(token_j))
            at = int(np.argmin(net_w))
            if net_w[at] < best_w:
                best_w, best_tokens = float(net_w[at]), float(one.tokens_per_ms[at])
    if not np.isfinite(best_w):  # no setting is in time: the fastest clock, all in one batch
        one = steady(decoding, 1, 0.0, cost, state.limits, state.correction, rules)
        best_w, best_tokens = float(one.net_power_w(token_j)[-1]), float(one.tokens_per_ms[-1])
    return EqualWork(
        token_j=token_j,
        standing_power_w=best_w,
        standing_tokens_per_ms=best_tokens,
        window_ms=lookahead_ms + _slowest_prefill_ms(state, cost),
        fastest_ms=fastest_ms,
        next_ms=_next_prefill_ms(state, cost) if decoding.by_gap else 0.0,
    )


def everyone(state: Snapshot) -> Decoding:
    """All requests of the snapshot, decoding together."""
    requests = [*state.running, *(r for r in state.waiting if servable(r, state))]
    requests = requests[: state.limits.max_num_seqs]
    return Decoding(
        requests=len(requests),
        context_tokens=sum(total_tokens(r) for r in requests),
        tbt_ms=tightest_ms(timed(r, state) for r in requests),
        by_gap=any(r.slo.kind is StreamKind.GAP for r in requests),
    )


def _token_price_j(decoding: Decoding, cost: StepCost, pp: int) -> float:
    """Joules that one more decode adds to a batch, at the clock where that is least.

    From doubling the batch: it smooths over the staircase, and is what a cadence half as fast
    comes to.
    """
    if decoding.requests == 0:
        return 0.0
    one = StepShape(
        decode_requests=decoding.requests, decode_context_tokens=decoding.context_tokens
    )
    two = StepShape(
        decode_requests=2 * decoding.requests, decode_context_tokens=2 * decoding.context_tokens
    )
    added_j = cost.energy_j(two) - cost.energy_j(one)
    displaced_j = cost.idle_power_w * (cost.latency_ms(two) - cost.latency_ms(one)) / 1e3
    return max(0.0, float(np.min(added_j - displaced_j)) * pp / decoding.requests)


def _next_prefill_ms(state: Snapshot, cost: StepCost) -> float:
    tokens, limits, learnt = state.correction.prompt_tokens, state.limits, state.correction
    if not tokens:
        return 0.0
    size = max(1, int(min(tokens, limits.max_batched_tokens)))
    pass_ms = float(cost.latency_ms(StepShape(prefill_tokens=size))[-1]) * learnt.scale(size, 0)
    return (pass_ms + limits.host_gap_ms) * (limits.pp - 1 + tokens / size)


def _slowest_prefill_ms(state: Snapshot, cost: StepCost) -> float:
    waiting = (r for r in state.waiting if servable(r, state))
    pending = sum(r.pending_tokens for r in (*state.running, *waiting))
    chunk = StepShape(prefill_tokens=state.limits.max_batched_tokens)
    step_ms = float(cost.latency_ms(chunk)[0]) + state.limits.host_gap_ms
    return pending / state.limits.max_batched_tokens * step_ms
