"""Limits on saving: those that people set, and the seats that those to come need.

    tokens per second, or at most so much slower    for a class or a request
    seats        whoever is served slowly stays long, and sits where another would (Little's law):
                 in max_num_seqs, or in the KV cache

All come to one number: how many times as long as at the fastest setting a token, or a prompt's
prefill, may take now. The fastest setting always keeps it, so a limit leaves something to choose
from, breaks no promise and lets nobody starve, at any load.

    paces     held no longer than what a round without hold leaves of the limit
    clocks    those at which even without hold it takes longer are no candidates
"""

import math

from beam_runtime.emulator.compiler import compiled
from beam_runtime.emulator.places import waiting_place
from beam_runtime.emulator.schedule import admissible, held_blocks
from beam_runtime.emulator.state import Records, State
from beam_runtime.emulator.steady import Round
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import EngineLimits, Slo, StepShape

# How many sit there at a time scatters by the root of it at least (Poisson): the mean stays so many
# roots below the seats. Until it is TAKEN there is time.
SCATTER, TAKEN = 2.0, 2.0 / 3.0


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
    slowdown = min(slowdown, seated_slowdown(state, fastest_ms, setup))
    return max(1.0, slowdown)


@compiled
def seated_slowdown(state: State, fastest_ms: float, setup: Records) -> float:
    """What those to come leave of the time, and 1 to those who take the last seat."""
    if setup.decode_tokens_per_s <= 0.0:
        return math.inf
    seats, rows = seats_of(state, setup), state.engine.rows
    taken = max(1.0, seats - SCATTER * math.sqrt(seats))
    if rows <= TAKEN * taken:
        return math.inf
    stay_ms = 1e3 * taken / setup.decode_tokens_per_s  # for each token
    slowdown = max(1.0, stay_ms / fastest_ms)
    free = max(0.0, seats - rows) / max(1.0, seats - taken)
    left: float = 1.0 + min(1.0, free) * (slowdown - 1.0)
    return left


@compiled
def seats_of(state: State, setup: Records) -> float:
    """How many run at most: as many as are let in, or as have room in the KV cache on average."""
    engine, free_blocks = state.engine, state.engine.free_blocks
    held, needed = 0, 0
    for at in range(engine.running):
        request = state.requests[state.places[at].running]
        held += held_blocks(request, request.computed_tokens, setup)
        needed += held_blocks(request, request.total_tokens, setup)
    if engine.waiting > 0:
        head = state.requests[state.places[waiting_place(state, 0)].waiting]
        if not admissible(head, engine.running, free_blocks, setup):
            return float(engine.running)
    seats: float = setup.max_num_seqs
    if needed > 0:
        seats = min(seats, engine.running * (held + free_blocks) / needed)
    return seats


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
