"""Twin of beam_runtime.emulator.steady."""

import math
from typing import NamedTuple

from beam_runtime.kernel.composer import pass_ms, step_cost
from beam_runtime.kernel.jit import compiled
from beam_runtime.kernel.state import (
    COMPUTED,
    JOULE,
    MS,
    TBT_SLO,
    TOTAL,
    Batch,
    Engine,
    Floats,
    State,
    Tables,
)
from beam_runtime.types import SAME_MS


class Decoding(NamedTuple):
    """steady.Decoding.."""

    requests: int
    context_tokens: int
    tbt_ms: float
    groups: int


class Steady(NamedTuple):
    """steady.Steady.."""

    cycle_ms: float
    active_w: float
    idle_w: float
    tokens_per_ms: float


class Prices(NamedTuple):
    """steady.EqualWork.."""

    token_j: float
    standing_w: float
    tokens_per_ms: float
    window_ms: float


@compiled
def split(d: Decoding, groups: int) -> tuple[int, Batch]:
    """(passes, the batch of each) when the decodes go round in so many groups."""
    if d.requests == 0:
        return 0, Batch(0, 0, 0, 0, 0, 0, 0.0, 0, 0)
    size = -(-d.requests // min(groups, d.requests))
    context = d.context_tokens * size // d.requests
    return -(-d.requests // size), Batch(0, 0, 0, 0, 0, 0, 0.0, size, context)


@compiled
def round_of(passes: int, b: Batch, c: int, e: Engine, t: Tables) -> tuple[float, float, float]:
    """One round of all groups on one stage: (cycle ms, busy ms, joules)."""
    if passes == 0:
        return 1.0, 0.0, 0.0
    busy_ms = pass_ms(c, b, e, t)
    cycle_ms = max(e.pp, passes) * (busy_ms + e.gap_ms)
    cycle_ms += (e.pp - 1) * e.transfer_ms
    return cycle_ms, passes * busy_ms, passes * step_cost(JOULE, c, b, t)


@compiled
def steady(d: Decoding, c: int, microbatches: int, pace_ms: float, e: Engine, t: Tables) -> Steady:
    """steady.steady, at one clock."""
    passes, b = split(d, max(microbatches, d.groups))
    apart = round_of(passes, b, c, e, t)
    together = apart
    if d.groups > microbatches:
        passes, b = split(d, microbatches)
        together = round_of(passes, b, c, e, t)
    return steady_of(d, c, microbatches, pace_ms, apart, together, e, t)


@compiled
def steady_of(
    d: Decoding, c: int, microbatches: int, pace_ms: float,
    apart: tuple[float, float, float], together: tuple[float, float, float], e: Engine, t: Tables,
) -> Steady:  # fmt: skip
    """From the two rounds: which of them a pace leads to, and how it stretches that."""
    groups = max(microbatches, d.groups)
    merge = e.pace and pace_ms >= apart[0] * (1.0 - 1.0 / groups)
    return paced(d, c, together if merge else apart, pace_ms, e, t)


@compiled
def paced(
    d: Decoding, c: int, one: tuple[float, float, float], pace_ms: float, e: Engine, t: Tables
) -> Steady:
    """A round stretched by the pace, as rates."""
    if d.requests == 0:
        return Steady(0.0, 0.0, t.idle_w[c] * e.pp, 0.0)
    cycle_ms, busy_ms, pass_j = one
    if e.pace and pace_ms > 0.0:
        allowed_ms = d.tbt_ms - e.tbt_margin_ms
        cycle_ms = min(max(cycle_ms, allowed_ms), cycle_ms + pace_ms)
    return Steady(
        cycle_ms,
        e.pp * pass_j / cycle_ms * 1e3,
        t.idle_w[c] * e.pp * (1.0 - busy_ms / cycle_ms),
        d.requests / cycle_ms,
    )


@compiled
def net_w(s: Steady, token_j: float) -> float:
    """steady.Steady.net_power_w."""
    return s.active_w + s.idle_w - token_j * s.tokens_per_ms * 1e3


@compiled
def settlement_j(p: Prices, horizon_ms: float, tokens: float) -> float:
    """steady.EqualWork.settlement_j."""
    owed = p.tokens_per_ms * horizon_ms - tokens
    return p.standing_w * (p.window_ms - horizon_ms) / 1e3 + p.token_j * owed


@compiled
def token_price_j(d: Decoding, e: Engine, t: Tables) -> float:
    if d.requests == 0:
        return 0.0
    one = Batch(0, 0, 0, 0, 0, 0, 0.0, d.requests, d.context_tokens)
    two = Batch(0, 0, 0, 0, 0, 0, 0.0, 2 * d.requests, 2 * d.context_tokens)
    least_j = math.inf
    for c in range(len(t.idle_w)):
        added_j = step_cost(JOULE, c, two, t) - step_cost(JOULE, c, one, t)
        displaced_j = t.idle_w[c] * (step_cost(MS, c, two, t) - step_cost(MS, c, one, t)) / 1e3
        least_j = min(least_j, added_j - displaced_j)
    return max(0.0, least_j * e.pp / d.requests)


@compiled
def everyone(s: State, e: Engine) -> Decoding:
    """All requests of the snapshot, decoding together."""
    requests = min(s.times.shape[1], e.max_num_seqs)
    context, tbt_ms = 0, math.inf
    for row in range(requests):
        context += s.requests[TOTAL, row]
        tbt_ms = min(tbt_ms, s.times[TBT_SLO, row])
    return Decoding(requests, context, tbt_ms if requests > 0 else 0.0, 1)


@compiled
def equal_work(s: State, lookahead_ms: float, pace_shares: Floats, e: Engine, t: Tables) -> Prices:
    """steady.equal_work, of a State that nothing has been played on."""
    d = everyone(s, e)
    token_j = token_price_j(d, e, t)
    best = Steady(0.0, 0.0, 0.0, 0.0)
    best_w = math.inf
    for microbatches in range(1, e.pp + 1):
        passes, b = split(d, microbatches)
        for c in range(len(t.idle_w)):
            one = round_of(passes, b, c, e, t)
            for share in pace_shares:
                setting = paced(d, c, one, share * d.tbt_ms, e, t)
                if setting.cycle_ms + e.tbt_margin_ms > d.tbt_ms + SAME_MS and d.requests > 0:
                    continue
                setting_w = net_w(setting, token_j)
                if setting_w < best_w:
                    best, best_w = setting, setting_w
    if best_w == math.inf:
        best = steady(d, len(t.idle_w) - 1, 1, 0.0, e, t)
        best_w = net_w(best, token_j)
    pending = 0
    for row in range(s.times.shape[1]):
        pending += s.requests[TOTAL, row] - s.requests[COMPUTED, row]
    chunk = Batch(0, 0, 0, 0, e.max_batched, 0, e.max_batched * (e.max_batched + 1) / 2, 0, 0)
    slowest_ms = pending / e.max_batched * (step_cost(MS, 0, chunk, t) + e.gap_ms)
    return Prices(token_j, best_w, best.tokens_per_ms, lookahead_ms + slowest_ms)
