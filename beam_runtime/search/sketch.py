"""A sketch of the prefill phase: what a chunk size costs at every clock, in one quick pass.

The order in which prompts go through the pipeline hardly depends on the clock. So it is played
once per chunk size, in aggregate: decodes ride in as many groups as there are stages, each
coming round every pp-th step. What the steps hold is summed up, and a dot product with the
table prices the sum at each clock.

    time(c)    T   = sum of the steps' passes + host gaps
    TTFT(c)    of a prompt = wait so far + (its share of T) + (the last stages of its step)

A sketch is 1-3 % off and cheap; best.py uses it to decide which candidates deserve a play.
"""

import math
from typing import NamedTuple

from beam_runtime.emulator.compiler import compiled
from beam_runtime.emulator.deadlines import first_margin_ms, first_risk, queue_risk
from beam_runtime.emulator.places import flight_slot, waiting_place
from beam_runtime.emulator.play import MAX_STEPS, Decoding
from beam_runtime.emulator.schedule import admissible, held_blocks
from beam_runtime.emulator.setup import JOULE, MS, Batch, Tables, pass_ms, scale_of
from beam_runtime.emulator.state import PREFILL, READY, Records, State, record_type
from beam_runtime.emulator.steady import Prices, round_of, settlement_j, split
from beam_runtime.types import SAME_MS

SHEET = record_type(
    "prompt_row prompt_tokens "  # the i-th prompt to be computed, in order of service
    "run_tokens run_steps",  # the i-th run of steps with so many tokens each
    "wait_excess_ms share slo_ms",  # the i-th first token: wait less SLO, share of T, SLO
)
RIDERS = record_type(  # the decodes that ride in every pp-th step
    "first_decodes first_context_tokens decodes context_tokens",
)


class Paper(NamedTuple):
    """Room for one sketch: (requests + 4) of SHEET, (pp) of RIDERS."""

    sheet: Records
    riders: Records


class Sketch(NamedTuple):
    """Sums over the steps of a prefill phase.

    Attributes:
        done: whether all prompts went through.
        steps: how many.
        runs: of equal steps, in the sheet.
        pairs: (query, key) pairs that the chunks attend.
        chunk_context_tokens: KV tokens that the chunks read.
        decodes: tokens of riding decodes.
        decode_context_tokens: KV tokens that those read.
        mixed: steps with both.
        last_share: of the last step, in the time of all.
        firsts: prompts that get their first token, in the sheet.
    """

    done: bool
    steps: int
    runs: int
    pairs: float
    chunk_context_tokens: float
    decodes: int
    decode_context_tokens: float
    mixed: int
    last_share: float
    firsts: int


@compiled
def line_up(state: State, paper: Paper, setup: Records) -> int:
    """Note who waits for prefill and how the decodes are grouped; returns how many wait."""
    sheet, riders = paper.sheet, paper.riders
    prompts = 0
    for stage in range(setup.pp):
        riders[stage].first_decodes = riders[stage].first_context_tokens = 0
    for at in range(state.engine.running):
        row = state.places[at].running
        request = state.requests[row]
        if request.kind == READY:
            riders[0].first_decodes += 1
            riders[0].first_context_tokens += request.computed_tokens
        elif request.kind == PREFILL:
            sheet[prompts].prompt_row = row
            sheet[prompts].prompt_tokens = request.total_tokens - request.computed_tokens
            prompts += 1
    flying = state.engine.flying
    for number in range(flying):
        # The oldest is back when the first new step goes if the pipeline is full, else later.
        group = riders[max(0, number + setup.pp - flying) % setup.pp]
        slot = flight_slot(state, number)
        for member in range(state.flights[slot].tokens):
            group.first_decodes += 1
            request = state.requests[state.members[slot, member]]
            group.first_context_tokens += request.computed_tokens
    free_blocks = state.engine.free_blocks
    for number in range(state.engine.waiting):
        row = state.places[waiting_place(state, number)].waiting
        request = state.requests[row]
        if not admissible(request, state.engine.running + number, free_blocks, setup):
            break
        free_blocks -= held_blocks(request, request.total_tokens, setup)
        sheet[prompts].prompt_row = row
        sheet[prompts].prompt_tokens = request.total_tokens - request.cached_tokens
        prompts += 1
    return prompts


@compiled
def draw(
    state: State, prompts: int, chunk_tokens: int, clock: int, now_ms: float, paper: Paper,
    setup: Records, tables: Tables,
) -> Sketch:  # fmt: skip
    """Play the prefill phase in aggregate; shares of time are those at ``clock``."""
    sheet, riders = paper.sheet, paper.riders
    for stage in range(setup.pp):
        riders[stage].decodes = riders[stage].first_decodes
        riders[stage].context_tokens = riders[stage].first_context_tokens
    start_ms = max(0.0, state.stage_free_ms[0] - now_ms) + (setup.pp - 1) * setup.transfer_ms
    steps, runs, decodes, mixed, firsts = 0, 0, 0, 0, 0
    all_pairs, all_context, all_decode_context = 0.0, 0.0, 0.0
    decoding = state.engine.decoding
    total_ms, step_ms = 0.0, 0.0
    at, done = 0, 0  # the prompt being served, and its tokens so far
    while at < prompts:
        if steps == MAX_STEPS:  # a play would not come to an end, either
            return Sketch(False, steps, runs, 0.0, 0.0, 0, 0.0, 0, 0.0, 0)
        group = riders[steps % setup.pp]
        riding, riding_context = group.decodes, group.context_tokens
        left = legal_chunk(decoding, chunk_tokens, setup) - riding
        if left <= 0:
            return Sketch(False, steps, runs, 0.0, 0.0, 0, 0.0, 0, 0.0, 0)
        tokens, context, pairs, begun = 0, 0, 0.0, firsts
        while left > 0 and at < prompts:
            request = state.requests[sheet[at].prompt_row]
            computed = request.total_tokens - sheet[at].prompt_tokens + done
            take = min(left, request.total_tokens - computed)
            tokens += take
            context += computed
            pairs += take * (computed + (take + 1) / 2)
            left -= take
            done += take
            if computed + take == request.total_tokens:
                at += 1
                done = 0
                decoding += 1
                group.decodes += 1
                group.context_tokens += request.total_tokens
                if request.ttft_ms == math.inf and request.broken == 0:
                    waited_ms = now_ms - request.arrival_ms + start_ms
                    margin_ms = first_margin_ms(request.ttft_slo_ms, setup)
                    sheet[firsts].wait_excess_ms = waited_ms + margin_ms - request.ttft_slo_ms
                    sheet[firsts].slo_ms = request.ttft_slo_ms
                    firsts += 1
        batch = Batch(0, 0, 0, 0, tokens, context, pairs, riding, riding_context, 0)
        step_ms = pass_ms(clock, batch, setup, tables) + setup.host_gap_ms
        total_ms += step_ms
        for first in range(begun, firsts):
            sheet[first].share = total_ms + (setup.pp - 1) * step_ms
        if runs > 0 and sheet[runs - 1].run_tokens == tokens + riding:
            sheet[runs - 1].run_steps += 1
        else:
            sheet[runs].run_tokens = tokens + riding
            sheet[runs].run_steps = 1
            runs += 1
        group.context_tokens += riding
        steps += 1
        decodes += riding
        mixed += riding > 0
        all_pairs += pairs
        all_context += context
        all_decode_context += riding_context
    for first in range(firsts):
        sheet[first].share /= total_ms
    return Sketch(
        True, steps, runs, all_pairs, all_context, decodes, all_decode_context, mixed,
        step_ms / total_ms, firsts,
    )  # fmt: skip


@compiled
def legal_chunk(decoding: int, chunk_tokens: int, setup: Records) -> int:
    """composer.chunk_budget for so many decodes."""
    least = decoding + setup.min_chunk_tokens if setup.min_chunk_tokens > 0 else 0
    budget: int = min(max(chunk_tokens, least), setup.max_batched_tokens)
    return budget


@compiled
def priced(what: int, clock: int, sketch: Sketch, paper: Paper, tables: Tables) -> float:
    """The sketch's steps at one clock: one stage's milliseconds or joules."""
    per = tables.attention[what, clock]
    value: float = per.prefill_pairs * sketch.pairs
    value += per.prefill_context_tokens * sketch.chunk_context_tokens
    value += per.decode_context_tokens * sketch.decode_context_tokens
    value += per.decode_requests * sketch.decodes + per.mixed * sketch.mixed
    for number in range(sketch.runs):
        run = paper.sheet[number]
        tokens = min(run.run_tokens, tables.linear.shape[1] - 1)
        value += run.run_steps * tables.linear[what, tokens, clock]
    return value


@compiled
def mean_scale(sketch: Sketch, paper: Paper, setup: Records) -> float:
    """Calibration's factor, on average over the sketch's steps."""
    scales = 0.0
    for number in range(sketch.runs):
        run = paper.sheet[number]
        scales += run.run_steps * scale_of(run.run_tokens, 0, setup)
    return scales / sketch.steps


class Estimate(NamedTuple):
    """What is expected of one candidate before it is played.

    Attributes:
        energy_j: over equal work.
        ttft_excess_ms: worst TTFT + margin - SLO.
        broken: requests expected to miss their TTFT.
        tbt_excess_ms: TBT + margin - SLO.
        slow_ms: the time that a clock is slower by than another.
    """

    energy_j: float
    ttft_excess_ms: float
    broken: float
    tbt_excess_ms: float
    slow_ms: float


@compiled
def estimate(
    sketch: Sketch, clock: int, lead_in_ms: float, first_ms: float, meanwhile: Decoding,
    after: Records, lookahead_ms: float, prices: Prices, paper: Paper, setup: Records,
    tables: Tables,
) -> Estimate:  # fmt: skip
    """Price a sketch at one clock.

    Args:
        sketch: of one chunk size.
        clock: the index of the clock.
        lead_in_ms: what is in flight already, summed over the stages.
        first_ms: when the first of them is free.
        meanwhile: what decodes while prompts go through.
        after: the steady phase that follows.
        lookahead_ms: the horizon is at least this long.
        prices: of equal work.
        paper: that the sketch was drawn on.
        setup: limits, rules, corrections.
        tables: step costs.
    """
    pp, steps = setup.pp, sketch.steps
    busy_ms = mean_scale(sketch, paper, setup) * priced(MS, clock, sketch, paper, tables)
    active_j = pp * priced(JOULE, clock, sketch, paper, tables)
    total_ms = busy_ms + steps * setup.host_gap_ms
    gap_ms = pp * total_ms / steps
    decodes = sketch.decodes
    allowed_ms = meanwhile.tbt_ms - setup.tbt_margin_ms
    if setup.late_cuts_chunk and meanwhile.requests > 0 and gap_ms > allowed_ms:
        # Chunks are cut to what is in time: as many times more steps as they are too long, each
        # with the part of a pass that does not depend on its tokens; at worst the decodes go
        # ahead of every chunk.
        passes, batch = split(meanwhile, pp)
        extra = round_of(passes, batch, clock, setup, tables)
        extra_ms = extra.busy_ms / pp
        more = min(1.0, gap_ms / max(allowed_ms, SAME_MS) - 1.0)
        alone_ms = (pp - 1) * total_ms / steps + 2 * (extra_ms + setup.host_gap_ms)
        fits = pp * (extra_ms + setup.host_gap_ms) <= allowed_ms
        gap_ms = allowed_ms if fits else alone_ms
        busy_ms += more * steps * extra_ms
        total_ms += more * steps * (extra_ms + setup.host_gap_ms)
        active_j += more * steps * extra.energy_j
        decodes += int(more * sketch.decodes)
    step_ms = sketch.last_share * total_ms
    span_ms = pp * (first_ms + total_ms) + pp * (pp - 1) / 2 * (step_ms + setup.transfer_ms)
    prefill_ms = span_ms / pp
    rest_ms = max(0.0, lookahead_ms - prefill_ms)
    horizon_ms = max(prefill_ms, lookahead_ms)
    energy_j = active_j + tables.idle_w[clock] * (span_ms - lead_in_ms - pp * busy_ms) / 1e3
    energy_j += after.power_w * rest_ms / 1e3
    energy_j += settlement_j(prices, horizon_ms, decodes + after.tokens_per_ms * rest_ms)
    worst_ms = -math.inf
    broken = queue_risk(prefill_ms, prices.first_token_ms, prices.next_ms, setup)
    for number in range(sketch.firsts):
        first = paper.sheet[number]
        excess_ms = first.wait_excess_ms + first.share * total_ms
        worst_ms = max(worst_ms, excess_ms)
        broken += first_risk(excess_ms, first_margin_ms(first.slo_ms, setup))
    tbt_excess_ms = -math.inf
    if meanwhile.requests > 0:
        tbt_excess_ms = gap_ms + setup.tbt_margin_ms - meanwhile.tbt_ms
    slow_ms = total_ms + (pp - 1) * step_ms
    return Estimate(energy_j, worst_ms, broken, tbt_excess_ms, slow_ms)
