"""A sketch of the prefill phase: what a chunk size costs at every clock, in one quick pass.

The order in which prompts go through the pipeline hardly depends on the clock. So it is played
once per chunk size, in aggregate: decodes ride in as many groups as there are stages, each
coming round every pp-th step. What the steps hold is summed up, and a dot product with the
table prices the sum at each clock.

    time(c)    T   = sum of the steps' passes + host gaps
    TTFT(c)    of a prompt = wait so far + (its share of T) + (the last stages of its step)

A sketch is 1-3 % off and cheap; search.py uses it to decide which candidates deserve a play.
"""

import math
from typing import NamedTuple

from beam_runtime.kernel.composer import pass_ms
from beam_runtime.kernel.jit import compiled
from beam_runtime.kernel.schedule import admissible, blocks
from beam_runtime.kernel.state import (
    ARRIVAL,
    CACHED,
    COMPUTED,
    FLY,
    FLY_COUNT,
    FREE_BLOCKS,
    JOULE,
    KIND,
    MS,
    N_DECODING,
    N_FLYING,
    N_RUNNING,
    N_WAITING,
    PREFILL,
    READY,
    RUNNING,
    STAGE_FREE,
    TOTAL,
    TTFT,
    TTFT_SLO,
    WAITING,
    Batch,
    Engine,
    Floats,
    Ints,
    State,
    Tables,
)
from beam_runtime.kernel.steady import Decoding, Prices, round_of, settlement_j, split


class Paper(NamedTuple):
    """Room for one sketch.

    Attributes:
        prompt: (2, n) requests with tokens to compute, in order of service, and how many.
        ring: (4, pp) decodes riding in every pp-th step and their contexts; as they are at the
            start, and under way.
        runs: (2, n + 4) tokens of a step, and how many such steps follow each other.
        ttft: (3, n) of each prompt that waits for its first token: wait less SLO, share of T,
            SLO.
    """

    prompt: Ints
    ring: Ints
    runs: Ints
    ttft: Floats


class Sketch(NamedTuple):
    """Sums over the steps of a prefill phase; ``done``: all prompts went through."""

    done: bool
    steps: int
    runs: int
    pairs: float
    context: float
    decodes: int
    decode_context: float
    mixed: int
    last_share: float
    firsts: int


@compiled
def line_up(s: State, x: Paper, e: Engine) -> int:
    """Note who waits for prefill and how the decodes are grouped; returns how many wait."""
    prompts = 0
    for stage in range(e.pp):
        x.ring[0, stage] = 0
        x.ring[1, stage] = 0
    for i in range(s.at[N_RUNNING]):
        row = s.requests[RUNNING, i]
        if s.requests[KIND, row] == READY:
            x.ring[0, 0] += 1
            x.ring[1, 0] += s.requests[COMPUTED, row]
        elif s.requests[KIND, row] == PREFILL:
            x.prompt[0, prompts] = row
            x.prompt[1, prompts] = s.requests[TOTAL, row] - s.requests[COMPUTED, row]
            prompts += 1
    flying = s.at[N_FLYING]
    for i in range(flying):
        # The oldest is back when the first new step goes if the pipeline is full, else later.
        slot = max(0, i + e.pp - flying) % e.pp
        for j in range(s.at[FLY_COUNT + i]):
            x.ring[0, slot] += 1
            x.ring[1, slot] += s.requests[COMPUTED, s.requests[FLY + i, j]]
    free = s.at[FREE_BLOCKS]
    for i in range(s.at[N_WAITING]):
        row = s.requests[WAITING, i]
        if not admissible(s, row, s.at[N_RUNNING] + i, free, e):
            break
        free -= blocks(s, row, s.requests[TOTAL, row], e)
        x.prompt[0, prompts] = row
        x.prompt[1, prompts] = s.requests[TOTAL, row] - s.requests[CACHED, row]
        prompts += 1
    return prompts


@compiled
def draw(
    s: State, prompts: int, chunk: int, clock: int, now_ms: float, x: Paper, e: Engine, t: Tables
) -> Sketch:
    """Play the prefill phase in aggregate; shares of time are those at ``clock``."""
    for stage in range(e.pp):
        x.ring[2, stage] = x.ring[0, stage]
        x.ring[3, stage] = x.ring[1, stage]
    start_ms = max(0.0, s.clock[STAGE_FREE] - now_ms) + (e.pp - 1) * e.transfer_ms
    steps, runs, decodes, mixed, firsts = 0, 0, 0, 0, 0
    all_pairs, all_context, all_decode_context = 0.0, 0.0, 0.0
    decoding = s.at[N_DECODING]
    total_ms, step_ms = 0.0, 0.0
    at, done = 0, 0  # the prompt being served, and its tokens so far
    while at < prompts:
        slot = steps % e.pp
        riding, riding_context = x.ring[2, slot], x.ring[3, slot]
        budget = max(chunk, decoding + e.min_chunk) if e.min_chunk > 0 else chunk
        left = min(budget, e.max_batched) - riding
        if left <= 0:
            return Sketch(False, steps, runs, 0.0, 0.0, 0, 0.0, 0, 0.0, 0)
        tokens, context, pairs, begun = 0, 0, 0.0, firsts
        while left > 0 and at < prompts:
            row = x.prompt[0, at]
            total = s.requests[TOTAL, row]
            computed = total - x.prompt[1, at] + done
            take = min(left, total - computed)
            tokens += take
            context += computed
            pairs += take * (computed + (take + 1) / 2)
            left -= take
            done += take
            if computed + take == total:
                at += 1
                done = 0
                decoding += 1
                x.ring[2, slot] += 1
                x.ring[3, slot] += total
                if s.times[TTFT, row] == math.inf:
                    slo_ms = s.times[TTFT_SLO, row]
                    waited_ms = now_ms - s.times[ARRIVAL, row] + start_ms
                    x.ttft[0, firsts] = waited_ms + e.ttft_margin_ms - slo_ms
                    x.ttft[2, firsts] = slo_ms
                    firsts += 1
        b = Batch(0, 0, 0, 0, tokens, context, pairs, riding, riding_context)
        step_ms = pass_ms(clock, b, e, t) + e.gap_ms
        total_ms += step_ms
        for i in range(begun, firsts):
            x.ttft[1, i] = total_ms + (e.pp - 1) * step_ms
        if runs > 0 and x.runs[0, runs - 1] == tokens + riding:
            x.runs[1, runs - 1] += 1
        else:
            x.runs[0, runs] = tokens + riding
            x.runs[1, runs] = 1
            runs += 1
        x.ring[3, slot] += riding
        steps += 1
        decodes += riding
        mixed += riding > 0
        all_pairs += pairs
        all_context += context
        all_decode_context += riding_context
    for i in range(firsts):
        x.ttft[1, i] /= total_ms
    return Sketch(
        True,
        steps,
        runs,
        all_pairs,
        all_context,
        decodes,
        all_decode_context,
        mixed,
        step_ms / total_ms,
        firsts,
    )


@compiled
def summed(what: int, c: int, k: Sketch, x: Paper, t: Tables) -> float:
    """The sketch's steps priced at clock ``c``: one stage's milliseconds or joules."""
    a = t.attention
    value: float = (
        a[what, c, 0] * k.pairs + a[what, c, 1] * k.context + a[what, c, 2] * k.decode_context
    )
    value += a[what, c, 3] * k.decodes + a[what, c, 5] * k.mixed
    for i in range(k.runs):
        value += x.runs[1, i] * t.step[what, min(x.runs[0, i], t.step.shape[1] - 1), c]
    return value


class Estimate(NamedTuple):
    """What a sketch expects of one clock."""

    energy_j: float
    ttft_excess_ms: float
    ttft_violation: float
    tbt_excess_ms: float
    slow_ms: float


@compiled
def estimate(
    k: Sketch, c: int, lead_in_ms: float, first_ms: float, d: Decoding, after_w: float,
    after_tokens_per_ms: float, lookahead_ms: float, p: Prices, x: Paper, e: Engine, t: Tables,
) -> Estimate:  # fmt: skip
    """Price a sketch at one clock.

    ``lead_in_ms`` is what is in flight already, summed over the stages; ``first_ms`` when the
    first of them is free. ``d`` decodes meanwhile, ``after`` says what the steady phase that
    follows burns and makes.
    """
    busy_ms = e.prefill_scale * summed(MS, c, k, x, t)
    active_j = e.pp * summed(JOULE, c, k, x, t)
    total_ms = busy_ms + k.steps * e.gap_ms
    gap_ms = e.pp * total_ms / k.steps
    decodes = k.decodes
    if e.late_cuts and d.requests > 0 and gap_ms + e.tbt_margin_ms > d.tbt_ms:
        # Chunks are cut or decodes go ahead of them: reckoned as if they did of every chunk, a pass
        # more per step, and half as many ride.
        passes, b = split(d, e.pp)
        _, round_busy_ms, round_j = round_of(passes, b, c, e, t)
        extra_ms = round_busy_ms / e.pp
        gap_ms = (e.pp - 1) * total_ms / k.steps + 2 * (extra_ms + e.gap_ms)
        busy_ms += k.steps * extra_ms
        total_ms += k.steps * (extra_ms + e.gap_ms)
        active_j += k.steps * round_j
        decodes += k.decodes
    step_ms = k.last_share * total_ms
    span_ms = e.pp * (first_ms + total_ms) + e.pp * (e.pp - 1) / 2 * (step_ms + e.transfer_ms)
    prefill_ms = span_ms / e.pp
    rest_ms = max(0.0, lookahead_ms - prefill_ms)
    horizon_ms = max(prefill_ms, lookahead_ms)
    energy_j = active_j + t.idle_w[c] * (span_ms - lead_in_ms - e.pp * busy_ms) / 1e3
    energy_j += after_w * rest_ms / 1e3
    energy_j += settlement_j(p, horizon_ms, decodes + after_tokens_per_ms * rest_ms)
    worst_ms, violation = -math.inf, 0.0
    for i in range(k.firsts):
        excess_ms = x.ttft[0, i] + x.ttft[1, i] * total_ms
        worst_ms = max(worst_ms, excess_ms)
        violation += max(0.0, excess_ms) / x.ttft[2, i]
    tbt_ms = gap_ms + e.tbt_margin_ms - d.tbt_ms if d.requests > 0 else -math.inf
    return Estimate(energy_j, worst_ms, violation, tbt_ms, total_ms)
