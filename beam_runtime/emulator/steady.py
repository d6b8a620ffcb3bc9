"""Decode-only phases in aggregate, and the prices at which candidates are compared.

Between two events nothing but decodes may run, and then the engine repeats itself: every
microbatch goes round once per cycle. So that phase needs no playing forward, only its cycle:

    cycle = max(stages, microbatches) passes, stretched by the pace up to what the SLO allows
    power = passes of all stages per cycle + idle power of the GPU-time no pass covers

Candidates that end at different times with different tokens done are compared over equal work
(Prices).
"""

import math
from typing import NamedTuple

from beam_runtime.emulator.compiler import compiled
from beam_runtime.emulator.deadlines import tightest_ms
from beam_runtime.emulator.play import Decoding
from beam_runtime.emulator.promises import GAP
from beam_runtime.emulator.setup import (
    JOULE,
    MS,
    Batch,
    Tables,
    decode_batch,
    pass_ms,
    step_cost,
)
from beam_runtime.emulator.state import Floats, Records, State
from beam_runtime.types import SAME_MS

# The paces to choose from, in shares of the tightest TBT SLO: 1 holds until a token is due.
PACE_SHARES = (0.0, 1 / 3, 2 / 3, 1.0)


class Cycle(NamedTuple):
    """One decode-only cycle of the whole replica as rates.

    Attributes:
        cycle_ms: time between two tokens of a request.
        active_w: energy of all stages' passes per second.
        idle_w: what the uncovered GPU-time adds.
        tokens_per_ms: tokens made.
    """

    cycle_ms: float
    active_w: float
    idle_w: float
    tokens_per_ms: float


class Round(NamedTuple):
    """Every group once through one stage: how long it takes, busy, and joules."""

    cycle_ms: float
    busy_ms: float
    energy_j: float


@compiled
def split(decoding: Decoding, groups: int) -> tuple[int, Batch]:
    """(passes, the batch of each) when the decodes go round in so many groups."""
    if decoding.requests == 0:
        return 0, decode_batch(0, 0)
    size = -(-decoding.requests // min(groups, decoding.requests))
    context_tokens = decoding.context_tokens * size // decoding.requests
    return -(-decoding.requests // size), decode_batch(size, context_tokens)


@compiled
def round_of(passes: int, batch: Batch, clock: int, setup: Records, tables: Tables) -> Round:
    """One round of so many equal passes."""
    if passes == 0:
        return Round(1.0, 0.0, 0.0)
    busy_ms = pass_ms(clock, batch, setup, tables)
    cycle_ms = max(setup.pp, passes) * (busy_ms + setup.host_gap_ms)
    cycle_ms += (setup.pp - 1) * setup.transfer_ms
    return Round(cycle_ms, passes * busy_ms, passes * step_cost(JOULE, clock, batch, tables))


@compiled
def steady(
    decoding: Decoding, clock: int, microbatches: int, pace_ms: float, setup: Records,
    tables: Tables,
) -> Cycle:  # fmt: skip
    """The steady cycle of a decode-only phase at one clock."""
    passes, batch = split(decoding, max(microbatches, decoding.groups))
    apart = round_of(passes, batch, clock, setup, tables)
    together = apart
    if decoding.groups > microbatches:
        passes, batch = split(decoding, microbatches)
        together = round_of(passes, batch, clock, setup, tables)
    return steady_of(decoding, clock, microbatches, pace_ms, apart, together, setup, tables)


@compiled
def steady_of(
    decoding: Decoding, clock: int, microbatches: int, pace_ms: float, apart: Round,
    together: Round, setup: Records, tables: Tables,
) -> Cycle:  # fmt: skip
    """From the rounds of the groups there are and of those asked for.

    They go on together where the first can be held until the next is back, a stage's time later,
    and is in time all the same. It is held once: a mean makes that good with its next tokens.
    """
    held_ms = pace_ms
    if decoding.by_gap:
        held_ms = min(pace_ms, decoding.tbt_ms - setup.wide_margin_ms - together.cycle_ms)
    merges = setup.pace and held_ms >= apart.cycle_ms / setup.pp
    return paced(decoding, clock, together if merges else apart, pace_ms, setup, tables)


@compiled
def paced(
    decoding: Decoding, clock: int, one: Round, pace_ms: float, setup: Records, tables: Tables
) -> Cycle:
    """A round stretched by the pace, as rates."""
    if decoding.requests == 0:
        return Cycle(0.0, 0.0, tables.idle_w[clock] * setup.pp, 0.0)
    cycle_ms = one.cycle_ms
    if setup.pace and pace_ms > 0.0:
        allowed_ms = decoding.tbt_ms - setup.wide_margin_ms
        cycle_ms = min(max(cycle_ms, allowed_ms), cycle_ms + pace_ms)
    return Cycle(
        cycle_ms,
        setup.pp * one.energy_j / cycle_ms * 1e3,
        tables.idle_w[clock] * setup.pp * (1.0 - one.busy_ms / cycle_ms),
        decoding.requests / cycle_ms,
    )


@compiled
def net_w(cycle: Cycle, token_j: float) -> float:
    """Power less the price of the tokens made."""
    return cycle.active_w + cycle.idle_w - token_j * cycle.tokens_per_ms * 1e3


class Prices(NamedTuple):
    """The prices, and the window over which energies are stated.

    Attributes:
        token_j: one decode more in a batch, all stages, the idle power it displaces taken off.
        standing_w: the best steady setting's power, token price taken off.
        standing_tokens_per_ms: the tokens it makes.
        window_ms: long enough for the slowest candidate.
        fastest_ms: the shortest time between two tokens that any setting gives them.
        first_token_ms: the tightest TTFT SLO among them.
        next_ms: the prefill of who comes next at the fastest clock, where gaps are promised.
    """

    token_j: float
    standing_w: float
    standing_tokens_per_ms: float
    window_ms: float
    fastest_ms: float
    first_token_ms: float
    next_ms: float


@compiled
def settlement_j(prices: Prices, horizon_ms: float, tokens: float) -> float:
    """What a candidate still owes at its horizon, or has done in advance."""
    owed = prices.standing_tokens_per_ms * horizon_ms - tokens
    rest_ms = prices.window_ms - horizon_ms
    return prices.standing_w * rest_ms / 1e3 + prices.token_j * owed


@compiled
def everyone(state: State, setup: Records) -> Decoding:
    """All requests of a state that nothing was played on, decoding together."""
    requests = min(state.engine.rows, setup.max_num_seqs)
    context_tokens, tbt_ms, all_ms, by_gap = 0, math.inf, math.inf, False
    for row in range(requests):
        by_gap = by_gap or state.requests[row].slo_kind == GAP
        context_tokens += state.requests[row].total_tokens
        all_ms = min(all_ms, state.requests[row].token_slo_ms)
        if state.requests[row].broken == 0:
            tbt_ms = min(tbt_ms, state.requests[row].token_slo_ms)
    tbt_ms = tightest_ms(tbt_ms, all_ms)
    return Decoding(requests, context_tokens, tbt_ms if requests > 0 else 0.0, 1, by_gap)


@compiled
def equal_work(
    state: State, lookahead_ms: float, pace_shares: Floats, setup: Records, tables: Tables
) -> Prices:
    """The prices for one state: its requests, all decoding, at their best steady setting."""
    decoding = everyone(state, setup)
    token_j = token_price_j(decoding, setup, tables)
    best = Cycle(0.0, 0.0, 0.0, 0.0)
    best_w = fastest_ms = math.inf
    for microbatches in range(1, setup.most_microbatches + 1):
        passes, batch = split(decoding, microbatches)
        for clock in range(len(tables.idle_w)):
            one = round_of(passes, batch, clock, setup, tables)
            fastest_ms = min(fastest_ms, one.cycle_ms)
            for share in pace_shares:
                cycle = paced(decoding, clock, one, share * decoding.tbt_ms, setup, tables)
                late = cycle.cycle_ms + setup.tbt_margin_ms > decoding.tbt_ms + SAME_MS
                if late and decoding.requests > 0:
                    continue
                cycle_w = net_w(cycle, token_j)
                if cycle_w < best_w:
                    best, best_w = cycle, cycle_w
    if best_w == math.inf:
        best = steady(decoding, len(tables.idle_w) - 1, 1, 0.0, setup, tables)
        best_w = net_w(best, token_j)
    pending_tokens, first_token_ms = 0, math.inf
    for row in range(state.engine.rows):
        request = state.requests[row]
        first_token_ms = min(first_token_ms, request.ttft_slo_ms)
        pending_tokens += request.total_tokens - request.computed_tokens
    largest = setup.max_batched_tokens
    chunk = Batch(0, 0, 0, 0, largest, 0, largest * (largest + 1) / 2, 0, 0, 0)
    slowest_ms = step_cost(MS, 0, chunk, tables) + setup.host_gap_ms
    next_ms = prefill_ms(setup.prompt_tokens, setup, tables) if decoding.by_gap else 0.0
    window_ms = lookahead_ms + pending_tokens / largest * slowest_ms
    return Prices(
        token_j, best_w, best.tokens_per_ms, window_ms, fastest_ms, first_token_ms, next_ms
    )  # fmt: skip


@compiled
def prefill_ms(tokens: float, setup: Records, tables: Tables) -> float:
    """A prompt alone at the fastest clock, in the largest steps."""
    if tokens <= 0.0:
        return 0.0
    size = max(1, int(min(tokens, setup.max_batched_tokens)))
    chunk = Batch(0, 0, 0, 0, size, 0, size * (size + 1) / 2, 0, 0, 0)
    stage_ms = pass_ms(len(tables.idle_w) - 1, chunk, setup, tables) + setup.host_gap_ms
    alone_ms: float = stage_ms * (setup.pp - 1 + tokens / size)
    return alone_ms


@compiled
def token_price_j(decoding: Decoding, setup: Records, tables: Tables) -> float:
    """One decode more in a batch of all, at the clock where it costs least."""
    if decoding.requests == 0:
        return 0.0
    one = decode_batch(decoding.requests, decoding.context_tokens)
    two = decode_batch(2 * decoding.requests, 2 * decoding.context_tokens)
    least_j = math.inf
    for clock in range(len(tables.idle_w)):
        added_j = step_cost(JOULE, clock, two, tables) - step_cost(JOULE, clock, one, tables)
        added_ms = step_cost(MS, clock, two, tables) - step_cost(MS, clock, one, tables)
        least_j = min(least_j, added_j - tables.idle_w[clock] * added_ms / 1e3)
    price_j: float = max(0.0, least_j * setup.pp / decoding.requests)
    return price_j
