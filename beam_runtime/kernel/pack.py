"""Objects to arrays: a StepCost once, a Snapshot per decision."""

import numpy as np

from beam_runtime.emulator.schedule import cached_tokens, servable, shared_blocks
from beam_runtime.kernel.state import (
    ARRIVAL,
    CACHED,
    CHUNK_OWED,
    COMPUTED,
    DUE,
    FLY,
    FLY_COUNT,
    FREE_BLOCKS,
    GAP,
    GENERATED,
    KEY,
    LAST,
    LAST_STEP,
    N_FLYING,
    N_RUNNING,
    N_WAITING,
    READY_SINCE,
    ROOM,
    RUNNING,
    SHARED,
    STAGE_FREE,
    TBT_SLO,
    TOTAL,
    TTFT,
    TTFT_SLO,
    WAITING,
    Engine,
    State,
    Tables,
)
from beam_runtime.table.cost_fit import FEATURES
from beam_runtime.table.step_cost import FloatArray, StepCost
from beam_runtime.types import RequestState, Rules, Snapshot

# The order that kernel/composer.py's step_cost is written for.
_EXPECTED = (
    "prefill_pairs",
    "prefill_context_tokens",
    "decode_context_tokens",
    "decode_requests",
    "decode_only",
    "mixed",
)
if FEATURES != _EXPECTED:
    raise ImportError(f"kernel/composer.py computes {_EXPECTED}, cost_fit.FEATURES is {FEATURES}")


def pack_tables(cost: StepCost, max_tokens: int) -> Tables:
    """Every token count up to ``max_tokens`` looked up in advance."""
    return Tables(
        step=np.stack(
            [
                _dense(cost, cost.linear_latency_ms, max_tokens),
                _dense(cost, cost.linear_energy_j, max_tokens),
            ]
        ),
        attention=np.stack([cost.attention_latency_ms, cost.attention_energy_j]),
        idle_w=np.ascontiguousarray(cost.idle_power_w),
    )


def _dense(cost: StepCost, linear: FloatArray, max_tokens: int) -> FloatArray:
    edges = cost.edges_tokens
    tokens = np.arange(max_tokens + 1, dtype=float)
    right = np.clip(np.searchsorted(edges, tokens), 1, len(edges) - 1)
    weight = (tokens - edges[right - 1]) / (edges[right] - edges[right - 1])
    dense: FloatArray = (1 - weight) * linear[:, right - 1] + weight * linear[:, right]
    return np.ascontiguousarray(dense.T)


def pack_engine(state: Snapshot, rules: Rules) -> Engine:
    """What one decision takes as given, as scalars."""
    limits, correction = state.limits, state.correction
    return Engine(
        pp=limits.pp,
        block_size=limits.block_size,
        max_num_seqs=limits.max_num_seqs,
        max_batched=limits.max_batched_tokens,
        max_model_len=limits.max_model_len,
        max_in_flight=limits.max_steps_in_flight,
        slots=max(len(state.in_flight), limits.max_steps_in_flight) + 1,
        gap_ms=float(limits.host_gap_ms),
        transfer_ms=float(limits.transfer_ms),
        prefill_scale=float(correction.prefill_scale),
        decode_scale=float(correction.decode_scale),
        ttft_margin_ms=float(correction.ttft_margin_ms),
        tbt_margin_ms=float(correction.tbt_margin_ms),
        just_in_time=rules.just_in_time,
        ride_along=rules.ride_along,
        give_way=rules.give_way,
        late_cuts=rules.late_cuts_chunk,
        pace=rules.pace,
        lead_ms=float(rules.lead_ms),
        min_chunk=rules.min_chunk_tokens,
    )


def pack_state(state: Snapshot) -> tuple[State, tuple[RequestState, ...]]:
    """The snapshot's arrays, and which request each row is."""
    requests = (*state.running, *(r for r in state.waiting if servable(r, state)))
    n, running, flying = len(requests), len(state.running), len(state.in_flight)
    slots, size = max(flying, state.limits.max_steps_in_flight) + 1, state.limits.block_size
    rows = np.zeros((FLY + slots, n), dtype=np.int64)
    times = np.zeros((KEY + 1, n))
    # Row by row: numpy takes twice as long over a list of lists.
    rows[GENERATED] = [r.generated_tokens for r in requests]
    rows[TOTAL] = [r.prompt_tokens for r in requests]
    rows[TOTAL] += rows[GENERATED]
    rows[COMPUTED] = [r.computed_tokens for r in requests]
    rows[LAST_STEP] = [r.steps_ahead for r in requests]
    rows[ROOM] = -rows[COMPUTED] % size
    if any(r.cached_tokens for r in requests):
        rows[CACHED] = [cached_tokens(r, size) for r in requests]
        rows[SHARED] = [shared_blocks(r, size) for r in requests]
    rows[RUNNING] = np.arange(n)
    rows[WAITING, : n - running] = rows[RUNNING, running:]
    now_ms = state.now_ms
    slos = [r.slo for r in requests]
    times[ARRIVAL] = [r.arrival_ms for r in requests]
    times[LAST] = [now_ms if r.last_token_ms is None else r.last_token_ms for r in requests]
    times[TTFT_SLO] = [slo.ttft_ms for slo in slos]
    times[TBT_SLO] = [slo.tbt_ms for slo in slos]
    times[TTFT] = np.where(rows[GENERATED] > 0, np.nan, np.inf)
    times[GAP] = -1.0
    at = np.zeros(FLY_COUNT + slots, dtype=np.int64)
    at[N_RUNNING], at[N_WAITING], at[N_FLYING] = running, n - running, flying
    at[FREE_BLOCKS], at[CHUNK_OWED] = state.free_blocks, state.chunk_owed
    clock = np.zeros(STAGE_FREE + state.limits.pp + slots)
    clock[DUE] = clock[READY_SINCE] = np.inf
    clock[STAGE_FREE : STAGE_FREE + state.limits.pp] = state.stage_free_ms
    row_of = {r.request_id: row for row, r in enumerate(requests)} if flying else {}
    for slot, step in enumerate(state.in_flight):
        members = [row_of[name] for name in step.request_ids if name in row_of]
        clock[STAGE_FREE + state.limits.pp + slot] = step.finish_ms
        at[FLY_COUNT + slot] = len(members)
        rows[FLY + slot, : len(members)] = members
    return State(at, rows, times, clock), requests


def blank_like(state: State) -> State:
    """Room to play on."""
    return State(
        np.empty_like(state.at),
        np.empty_like(state.requests),
        np.empty_like(state.times),
        np.empty_like(state.clock),
    )
