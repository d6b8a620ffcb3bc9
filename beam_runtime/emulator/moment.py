"""The engine at one moment, for whoever decides: its state in columns, and what comes with it.

Snapshot is the same for people, JSON and tests; it is converted here, at the edge.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from beam_runtime.emulator.promises import promise, promised, settle_times, tightest_gap_ms
from beam_runtime.emulator.state import REQUEST, Ints, Records, State, empty_state
from beam_runtime.types import (
    Correction,
    EngineLimits,
    Knobs,
    RequestState,
    Snapshot,
    StepInFlight,
)

# States of a few sizes only, so that those who play need no new room for each.
LEAST_ROOM = 16


class ClockPlan(NamedTuple):
    """Which clock the GPUs run at: ``before_mhz`` until ``switch_ms``, then the one asked for."""

    before_mhz: int
    switch_ms: float


@dataclass(frozen=True, slots=True, eq=False)
class Moment:
    """All that a decision depends on.

    Attributes:
        now_ms: the moment; all times are on this axis.
        limits: what does not change.
        knobs: the settings in force (clock_mhz is the one asked for last).
        correction: what calibration learnt so far.
        state: requests and steps in flight; row i is the i-th running request, the waiting ones
            follow. Whoever plays from it finds kinds and due times anew.
        names: the request of each row.
        rejected: waiting requests that the model is too short for: they get no first token.
        clock_since_ms: when knobs.clock_mhz was asked for.
        previous_clock_mhz: see Snapshot.
    """

    now_ms: float
    limits: EngineLimits
    knobs: Knobs
    correction: Correction
    state: State
    names: Sequence[str]
    rejected: tuple[str, ...] = ()
    clock_since_ms: float = -math.inf
    previous_clock_mhz: int | None = None

    @classmethod
    def of(cls, snapshot: Snapshot) -> Self:
        """The same moment in columns."""
        state, requests = columns_of(snapshot)
        longest = snapshot.limits.max_model_len
        return cls(
            snapshot.now_ms,
            snapshot.limits,
            snapshot.knobs,
            snapshot.correction,
            state,
            [request.request_id for request in requests],
            tuple(
                r.request_id
                for r in snapshot.waiting
                if r.prompt_tokens > longest and not r.generated_tokens
            ),
            snapshot.clock_since_ms,
            snapshot.previous_clock_mhz,
        )

    @property
    def requests(self) -> int:
        """How many requests there are."""
        return len(self.names) + len(self.rejected)

    @property
    def running(self) -> int:
        """How many of them run."""
        return int(self.state.engine["running"][0])

    @property
    def tightest_gap_ms(self) -> float:
        """The tightest gap that was promised and holds; inf without any."""
        return tightest_gap_ms(self.state.requests[: len(self.names)])

    def clock_plan(self, clock_mhz: int) -> ClockPlan:
        """What happens if ``clock_mhz`` is asked for now, in the light of an earlier request."""
        delay_ms = self.limits.clock_delay_ms
        effective_ms = self.clock_since_ms + delay_ms
        before_mhz = self.knobs.clock_mhz
        if self.previous_clock_mhz is not None and self.now_ms < effective_ms:
            before_mhz = self.previous_clock_mhz
        if clock_mhz == self.knobs.clock_mhz:
            return ClockPlan(before_mhz, effective_ms)
        return ClockPlan(before_mhz, self.now_ms + delay_ms)


def snapshot_of(moment: Moment) -> Snapshot:
    """The same moment for people. Those rejected, and when first tokens came, are not in it."""
    state, engine = moment.state, moment.state.engine[0]
    steps_back, running = int(engine["steps_back"]), moment.running
    size = moment.limits.block_size
    slots = [
        (int(engine["flying_head"]) + number) % len(state.flights)
        for number in range(engine["flying"])
    ]
    requests = [
        _request(name, state.requests[row], steps_back, size)
        for row, name in enumerate(moment.names)
    ]
    return Snapshot(
        now_ms=moment.now_ms,
        limits=moment.limits,
        knobs=moment.knobs,
        running=tuple(requests[:running]),
        waiting=tuple(requests[running:]),
        in_flight=tuple(
            StepInFlight(
                float(state.flights["finish_ms"][slot]),
                tuple(
                    moment.names[row]
                    for row in state.members[slot, : state.flights["tokens"][slot]].tolist()
                ),
            )
            for slot in slots
        ),
        stage_free_ms=tuple(state.stage_free_ms.tolist()),
        free_blocks=int(engine["free_blocks"]),
        clock_since_ms=moment.clock_since_ms,
        previous_clock_mhz=moment.previous_clock_mhz,
        correction=moment.correction,
    )


def _request(name: str, record: Records, steps_back: int, block_size: int) -> RequestState:
    generated, cached = int(record["generated_tokens"]), int(record["cached_tokens"])
    return RequestState(
        name,
        int(record["total_tokens"]) - generated,
        float(record["arrival_ms"]),
        promised(record),
        int(record["computed_tokens"]),
        generated,
        cached,
        float(record["first_token_ms"]) if generated else None,
        float(record["last_token_ms"]) if generated else None,
        max(0, int(record["last_step"]) - steps_back),
        cached - int(record["shared_blocks"]) * block_size,
        bool(record["broken"]),
    )


def gathered(state: State, running: Ints, waiting: Ints, now_ms: float) -> State:
    """A state to play on: a copy with the requests of these rows, in this order.

    Args:
        state: of an engine that is held for long, with gaps between its rows.
        running: rows of running requests, in the engine's order.
        waiting: rows of waiting ones, first come first.
        now_ms: the moment, from which what nobody timed counts.
    """
    order = np.concatenate([running, waiting])
    count, slots = len(order), len(state.flights)
    room = max(LEAST_ROOM, 1 << (count - 1).bit_length() if count else 0)
    copy = empty_state(room, slots - 1, len(state.stage_free_ms))
    copy.engine[:] = state.engine
    engine = copy.engine[0]
    engine["rows"], engine["running"], engine["waiting"] = count, len(running), len(waiting)
    engine["waiting_head"] = engine["flying_head"] = 0
    # As integers: numpy copies whole rows of these at once, but records field by field.
    words = REQUEST.itemsize // 8
    theirs = state.requests.view(np.int64).reshape(-1, words)
    copy.requests.view(np.int64).reshape(-1, words)[:count] = theirs[order]
    # What a play notes is not what the engine saw.
    requests = copy.requests[:count]
    requests["ttft_ms"] = np.where(requests["generated_tokens"] > 0, np.nan, np.inf)
    requests["worst_gap_ms"], requests["late_ms"] = -1.0, -math.inf
    settle_times(requests, now_ms)
    numbers = np.arange(room)
    copy.places["running"] = numbers
    copy.places["waiting"][: len(waiting)] = numbers[len(running) : count]
    copy.stage_free_ms[:] = state.stage_free_ms
    flying, head = int(engine["flying"]), int(state.engine["flying_head"][0])
    if flying:
        row_now = np.full(len(state.requests), -1)
        row_now[order] = numbers[:count]
    for number in range(flying):
        slot = (head + number) % slots
        members = state.members[slot, : state.flights["tokens"][slot]]
        members = row_now[members[members >= 0]]
        members = members[members >= 0]
        copy.flights[number] = (len(members), state.flights["finish_ms"][slot], math.inf)
        copy.members[number, : len(members)] = members
    return copy


def columns_of(snapshot: Snapshot) -> tuple[State, tuple[RequestState, ...]]:
    """A state to play on, and which request each row is: running ones, then waiting ones.

    Requests that the model is too short for are left out: the engine rejects them.
    """
    limits = snapshot.limits
    waiting = (r for r in snapshot.waiting if r.prompt_tokens <= limits.max_model_len)
    requests = (*snapshot.running, *waiting)
    count, running = len(requests), len(snapshot.running)
    steps = max(len(snapshot.in_flight), limits.max_steps_in_flight)
    room = max(LEAST_ROOM, 1 << (count - 1).bit_length() if count else 0)
    state = empty_state(room, steps, limits.pp, snapshot.free_blocks)
    engine, rows = state.engine, state.requests[:count]
    engine["rows"], engine["running"], engine["waiting"] = count, running, count - running
    state.places["running"] = np.arange(room)
    state.places["waiting"][: count - running] = np.arange(running, count)
    state.stage_free_ms[:] = snapshot.stage_free_ms
    if requests:
        _fill(rows, requests, snapshot.now_ms, limits.block_size)
    row_of = {request.request_id: row for row, request in enumerate(requests)}
    for slot, step in enumerate(snapshot.in_flight):
        members = [row_of[name] for name in step.request_ids if name in row_of]
        state.flights[slot] = (len(members), step.finish_ms, math.inf)
        state.members[slot, : len(members)] = members
    engine["flying"] = len(snapshot.in_flight)
    return state, requests


def _fill(rows: Records, requests: Sequence[RequestState], now_ms: float, block_size: int) -> None:
    """Field by field: many times as fast as record by record."""
    rows["generated_tokens"] = [r.generated_tokens for r in requests]
    rows["total_tokens"] = [total_tokens(r) for r in requests]
    rows["computed_tokens"] = [r.computed_tokens for r in requests]
    rows["last_step"] = [r.steps_ahead for r in requests]
    rows["arrival_ms"] = [r.arrival_ms for r in requests]
    rows["last_token_ms"] = [_or_nan(r.last_token_ms) for r in requests]
    rows["first_token_ms"] = [_or_nan(r.first_token_ms) for r in requests]
    rows["broken"] = [r.broken for r in requests]
    for row, request in zip(rows, requests, strict=True):
        promise(row, request.slo)
    settle_times(rows, now_ms)
    rows["ttft_ms"] = np.where(rows["generated_tokens"] > 0, np.nan, np.inf)
    rows["worst_gap_ms"], rows["late_ms"] = -1.0, -math.inf
    if any(r.cached_tokens for r in requests):
        rows["cached_tokens"] = [whole_hit_tokens(r, block_size) for r in requests]
        unheld = np.maximum([r.unheld_tokens for r in requests], 0)
        rows["shared_blocks"] = np.maximum(rows["cached_tokens"] - unheld, 0) // block_size


def _or_nan(ms: float | None) -> float:
    return math.nan if ms is None else ms


def whole_hit_tokens(request: RequestState, block_size: int) -> int:
    """Prefix-cache hit on admission, whole blocks: of those who run what it was.

    The last token is always computed, for its logits. A preempted request's answer may be in
    the cache, too.
    """
    most = request.computed_tokens or total_tokens(request) - 1
    return max(0, min(request.cached_tokens, most)) // block_size * block_size


def total_tokens(request: RequestState) -> int:
    """Prompt and answer so far: what has to be in the cache before the next token."""
    return request.prompt_tokens + request.generated_tokens
