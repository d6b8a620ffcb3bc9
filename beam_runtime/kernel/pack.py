"""Objects to arrays: a StepCost once, a Snapshot per decision."""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from beam_runtime.cost import FloatArray, StepCost
from beam_runtime.cost_fit import FEATURES
from beam_runtime.kernel.state import (
    FIRST,
    FLY,
    FLY_COUNT,
    GAP,
    KEY,
    MEMBER,
    MEMBER_TOKENS,
    STAGE_FREE,
    TBT_SLO,
    TTFT,
    Engine,
    State,
    Tables,
)
from beam_runtime.schedule import cached_tokens, servable
from beam_runtime.types import RequestState, Rules, Snapshot

# KV blocks: more than any play takes.
PLENTY = 1 << 60

# The order that latency_ms and energy_j of kernel/composer.py are written for.
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


def pack_engine(state: Snapshot, rules: Rules, shared: int = 0) -> Engine:
    """What one decision takes as given, as scalars.

    Args:
        state: the snapshot.
        rules: the composer's.
        shared: requests without a row of their own; each has its seat all the same.
    """
    limits, correction = state.limits, state.correction
    return Engine(
        pp=limits.pp,
        block_size=limits.block_size,
        max_num_seqs=limits.max_num_seqs - shared,
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


class Rows(NamedTuple):
    """Whom the rows of a packed state stand for.

    Attributes:
        requests: all that take part.
        order: indices of requests by row, each row's in the engine's order.
        rows: how many are in use.
    """

    requests: Sequence[RequestState]
    order: Sequence[int]
    rows: int

    def name(self, member: int) -> str | None:
        """The request at a place of ``order``; None for -1."""
        return self.requests[self.order[member]].request_id if member >= 0 else None


def pack_state(state: Snapshot, *, apart: bool = False) -> tuple[State, Rows]:
    """The snapshot's arrays (``classify`` sets the rest), and whom their rows stand for.

    Args:
        state: the snapshot.
        apart: a row for each request, even where several are in the same position.
    """
    limits, running = state.limits, state.running
    requests = [*running, *(r for r in state.waiting if servable(r, state))]
    flying = {name: i for i, step in enumerate(state.in_flight) for name in step.request_ids}
    flights: list[list[int]] = [[] for _ in state.in_flight]
    members_of: list[list[int]] = []  # of each row
    # Decodes that may share a row, by their position.
    positions: dict[tuple[int, int, float | None, float], int] = {}
    apart = apart or len(running) > limits.max_num_seqs
    n_running = 0
    for i, r in enumerate(requests):
        slot = flying.get(r.request_id, -1)
        pending = r.prompt_tokens + r.generated_tokens - r.computed_tokens
        row = len(members_of)
        if r.generated_tokens and r.computed_tokens and 0 <= pending <= 1 and i < len(running):
            if not apart and r.computed_tokens + 1 < limits.max_model_len:
                key = (pending, slot, r.last_token_ms, r.slo.tbt_ms)
                row = positions.setdefault(key, row)
        elif pending > 0:
            positions.clear()  # behind a prompt a decode may find no budget left
        if row < len(members_of):
            members_of[row].append(i)
            continue
        members_of.append([i])
        n_running += i < len(running)
        if slot >= 0:
            flights[slot].append(row)

    order = [i for members in members_of for i in members]
    computed = [r.computed_tokens for r in requests]
    longest = [requests[max(members, key=computed.__getitem__)] for members in members_of]
    n, n_rows = len(requests), len(members_of)
    slots = max(len(state.in_flight), limits.max_steps_in_flight) + 1
    rows = np.zeros((FLY + slots, n), dtype=np.int64)
    times = np.zeros((KEY + 1, n))
    at = np.zeros(FLY_COUNT + slots, dtype=np.int64)
    clock = np.zeros(STAGE_FREE + limits.pp + slots)
    rows[: FIRST + 1, :n_rows] = (
        [r.prompt_tokens + r.generated_tokens for r in longest],
        [r.computed_tokens for r in longest],
        [cached_tokens(r) if r.cached_tokens else 0 for r in longest],
        [r.generated_tokens for r in longest],
        [r.steps_ahead for r in longest],
        [len(members) - 1 for members in members_of],
        [
            sum(map(computed.__getitem__, members)) - r.computed_tokens if len(members) > 1 else 0
            for members, r in zip(members_of, longest, strict=True)
        ],
        list(accumulate(map(len, members_of), initial=0))[:n_rows],
    )
    rows[MEMBER] = order
    rows[MEMBER_TOKENS] = list(accumulate(map(computed.__getitem__, order)))
    times[: TBT_SLO + 1, :n_rows] = (
        [r.arrival_ms for r in longest],
        [state.now_ms if r.last_token_ms is None else r.last_token_ms for r in longest],
        [r.slo.ttft_ms for r in longest],
        [r.slo.tbt_ms for r in longest],
    )
    times[TTFT], times[GAP] = np.nan, -1.0
    shared = n_rows < n
    free, scarce = (PLENTY, PLENTY - state.free_blocks) if shared else (state.free_blocks, -PLENTY)
    at[:FLY_COUNT] = (
        n_running, n_rows - n_running, 0, free, state.chunk_owed, len(state.in_flight), 0, 0, 0, 0,
        scarce, 0, 0, n_rows,
    )  # fmt: skip
    clock[STAGE_FREE : STAGE_FREE + limits.pp] = state.stage_free_ms
    for slot, step in enumerate(state.in_flight):
        clock[STAGE_FREE + limits.pp + slot] = step.finish_ms
        at[FLY_COUNT + slot] = len(flights[slot])
        rows[FLY + slot, : len(flights[slot])] = flights[slot]
    return State(at, rows, times, clock), Rows(requests, order, n_rows)


def blank_like(state: State) -> State:
    """Room to play on."""
    return State(
        np.empty_like(state.at),
        np.empty_like(state.requests),
        np.empty_like(state.times),
        np.empty_like(state.clock),
    )
