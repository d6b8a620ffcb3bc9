"""Limits on saving: those that people set, and the seats that those to come need.

    tokens per second, or at most so much slower    for a class or a request
    seats        whoever is served slowly stays long, and sits where another would (Little's law)

All come to one number: how many times as long as at the fastest setting a token, or a prompt's
prefill, may take now. The fastest setting always keeps it, so a limit leaves something to choose
from, breaks no promise and lets nobody starve, at any load.

    paces     held no longer than what a round without hold leaves of the limit
    clocks    those at which even without hold it takes longer are no candidates
"""

import math

from beam_runtime.emulator.compiler import compiled
from beam_runtime.emulator.state import Records, State
from beam_runtime.emulator.steady import Round
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import EngineLimits, Slo, StepShape

# As many of max_num_seqs are taken on average at most; the rest is for when more come at a time.
# Where fewer than TAKEN are there, there is time: what comes, and how long it stays, scatters.
SEATS, TAKEN = 0.75, 0.5


@compiled
def slowdown_now(state: State, fastest_ms: float, setup: Records) -> float:
    """The tightest limit of those present; inf without one, and 1 where it cannot be kept."""
    slowdown = math.inf
    for row in range(min(state.engine.rows, setup.max_num_seqs)):
        request = state.requests[row]
        if request.max_slowdown > 0.0:
            slowdown = min(slowdown, request.max_slowdown)
        if request.least_tokens_per_s > 0.0:
            slowdown = min(slowdown, 1e3 / request.least_tokens_per_s / fastest_ms)
    if setup.decode_tokens_per_s > 0.0 and state.engine.rows > TAKEN * setup.max_num_seqs:
        stay_ms = 1e3 * SEATS * setup.max_num_seqs / setup.decode_tokens_per_s  # for each token
        slowdown = min(slowdown, stay_ms / fastest_ms)
    return max(1.0, slowdown)


@compiled
def held_ms(
    pace_ms: float, groups: int, microbatches: int, apart: Round, together: Round, limit_ms: float
) -> float:
    """A pace cut to what a round leaves of the limit.

    More groups than asked for are first held for as long as it takes them to merge: that is once,
    and a merged round costs far less. The next decision finds them merged. Where they lie next to
    each other a stage's time is enough (steady_of); spread over the round they need all of this.
    """
    merges_ms = apart.cycle_ms * (1.0 - 1.0 / groups) if groups > microbatches else 0.0
    return min(pace_ms, max(merges_ms, limit_ms - together.cycle_ms))


def out_of_reach(cost: StepCost, limits: EngineLimits, slo: Slo) -> str:
    """Why no setting gives its floor of tokens per second, in words; empty where one may."""
    if slo.least_tokens_per_s is None:
        return ""
    alone_ms = float(cost.latency_ms(StepShape(decode_requests=1)).min())
    cycle_ms = limits.pp * (alone_ms + limits.host_gap_ms) + (limits.pp - 1) * limits.transfer_ms
    most_per_s = 1e3 / cycle_ms
    if slo.least_tokens_per_s <= most_per_s:
        return ""
    return (
        f"{slo.least_tokens_per_s:g} tokens/s are asked for, a request alone gets "
        f"{most_per_s:.1f} at the fastest clock: it is served as fast as that goes"
    )
