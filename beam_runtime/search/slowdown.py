"""Limits on saving: those that people set, and the seats that those to come need.

    tokens per second, or at most so much slower    for a class or a request
    seats        whoever is served slowly stays long, and sits where another would: in
                 max_num_seqs, or in the KV cache

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

# Arrivals scatter by the root of their number (Poisson): so many roots stay free for them.
SCATTER = 2.0
# Seats have to last until this share of an answer is through, and each of its multiples.
PARTS = 8


@compiled
def slowdown_now(state: State, fastest_ms: float, setup: Records) -> float:
    """The tightest limit of those present; inf without one, and 1 where it cannot be kept."""
    by_people = set_slowdown(state, fastest_ms, setup)
    return min(by_people, seated_slowdown(state, fastest_ms, setup))


@compiled
def set_slowdown(state: State, fastest_ms: float, setup: Records) -> float:
    """The tightest limit that people set; inf without one, and 1 where it cannot be kept."""
    slowdown = math.inf
    for row in range(min(state.engine.rows, setup.max_num_seqs)):
        request = state.requests[row]
        if request.max_slowdown > 0.0:
            slowdown = min(slowdown, request.max_slowdown)
        if request.least_tokens_per_s > 0.0:
            slowdown = min(slowdown, 1e3 / request.least_tokens_per_s / fastest_ms)
    return max(1.0, slowdown)


@compiled
def seated_slowdown(state: State, fastest_ms: float, setup: Records) -> float:
    """What those to come leave of the time, and 1 where the last seat is taken.

    Until every stream has so many tokens more, no more may come than there are free seats and
    streams that end by then. Of those that take an answer's whole length that is Little's law; of
    streams that are young together it is less, for none of them makes room soon.
    """
    if setup.decode_tokens_per_s <= 0.0 or setup.arrivals_per_s <= 0.0:
        return math.inf
    engine = state.engine
    free = seats_of(state, setup) - engine.running - engine.waiting
    if free < 1.0:
        return 1.0
    answer_tokens = setup.decode_tokens_per_s / setup.arrivals_per_s
    token_ms = math.inf
    for part in range(1, PARTS + 1):
        tokens = answer_tokens * part / PARTS
        ended = 0
        for at in range(engine.running):
            request = state.requests[state.places[at].running]
            ended += request.generated_tokens + tokens >= answer_tokens
        may_come = on_average(free + ended)
        token_ms = min(token_ms, 1e3 * may_come / (setup.arrivals_per_s * tokens))
    return max(1.0, token_ms / fastest_ms)


@compiled
def on_average(seats: float) -> float:
    """How many may come on average where there are seats for so many: n + SCATTER sqrt(n)."""
    root = math.sqrt(seats + SCATTER * SCATTER / 4.0) - SCATTER / 2.0
    return root * root


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
