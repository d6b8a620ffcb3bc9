"""Whether a step's decodes are in time, and how much of its chunk lets them be."""

import math
from typing import NamedTuple

from beam_runtime.emulator.compiler import compiled, merged
from beam_runtime.emulator.places import flight_slot
from beam_runtime.emulator.schedule import fill, shortened
from beam_runtime.emulator.setup import Batch, Setting, Tables, decode_batch, early_share, pass_ms
from beam_runtime.emulator.state import READY, Records, State
from beam_runtime.types import SAME_MS

# A step is cut to a multiple of so many tokens: GEMM tiles are no finer.
CUT_TOKENS = 16
# What follows a step takes as long as it does.
AS_LONG = -1.0


class Due(NamedTuple):
    """When decodes have to be back.

    Attributes:
        ahead_ms: the first of those in flight is late with its next token.
        next_ms: how long the step that they go in after this one is in each stage, or AS_LONG.
        gap_ms: the tightest gap SLO among those in flight.
    """

    ahead_ms: float
    next_ms: float
    gap_ms: float


@merged
def finish_ms(
    state: State, batch: Batch, issue_ms: float, setting: Setting, setup: Records, tables: Tables
) -> float:
    """When the step would be back, were it issued then (play.py draws it)."""
    after_ms = pass_ms(setting.clock, batch, setup, tables)
    before_ms = after_ms
    if setting.clock_before != setting.clock:
        before_ms = pass_ms(setting.clock_before, batch, setup, tables)
    ready_ms, end_ms = issue_ms, issue_ms
    for free_ms in state.stage_free_ms:
        start_ms = max(ready_ms, free_ms)
        early = early_share(start_ms, before_ms, setting)
        one_ms = early * before_ms + (1.0 - early) * after_ms
        end_ms = start_ms + (one_ms + setup.host_gap_ms)
        ready_ms = end_ms + setup.transfer_ms
    return end_ms


@compiled
def cut_in_time(
    state: State, mixed: Batch, riding: int, prompts: int, due: Due, now_ms: float,
    setting: Setting, setup: Records, tables: Tables,
) -> Batch:  # fmt: skip
    """The step with as much of its chunk as is in time; without a chunk if nothing of it is.

    Where passes grow with their tokens, what it is cut to does not depend on how long it was.
    """
    if kept(state, mixed, riding, due, now_ms, setting, setup, tables):
        return mixed
    all_shown = riding == state.engine.ready
    nothing = mixed.decodes // CUT_TOKENS
    fits, misses = nothing, -(-(mixed.decodes + mixed.chunk_tokens) // CUT_TOKENS)
    while misses - fits > 1:
        middle = (fits + misses) // 2
        less_tokens = mixed.decodes + mixed.chunk_tokens - middle * CUT_TOKENS
        if mixed.preempted == 0:
            cut = shortened(state, mixed, less_tokens)
        else:
            cut = fill(state, middle * CUT_TOKENS, all_shown, prompts, setup)
        if kept(state, cut, riding, due, now_ms, setting, setup, tables):
            fits = middle
        else:
            misses = middle
    if fits == nothing:
        return decode_batch(0, 0)
    return fill(state, fits * CUT_TOKENS, all_shown, prompts, setup)


@merged
def kept(
    state: State, step: Batch, riding: int, due: Due, now_ms: float, setting: Setting,
    setup: Records, tables: Tables,
) -> bool:  # fmt: skip
    """Whether all decodes can be in time if this step goes now.

    A step that takes longer than a gap errs by more, and keeps a margin as many times wider.
    """
    back_ms = finish_ms(state, step, now_ms, setting, setup, tables)
    margin_ms = setup.tbt_margin_ms * max(1.0, (back_ms - now_ms) / due.gap_ms)
    if riding > 0 and back_ms > state.engine.gap_due_ms - margin_ms + SAME_MS:
        return False
    next_ms = due.next_ms if due.next_ms != AS_LONG else (back_ms - now_ms) / setup.pp
    followed: bool = back_ms + next_ms <= due.ahead_ms - margin_ms + SAME_MS
    return followed


@compiled
def due_in_flight(state: State, next_ms: float) -> Due:
    """When the first decode in flight will be late with its next token."""
    first_ms = gap_ms = math.inf
    for number in range(state.engine.flying):
        flight = state.flights[flight_slot(state, number)]
        first_ms = min(first_ms, flight.finish_ms + flight.gap_ms)
        gap_ms = min(gap_ms, flight.gap_ms)
    return Due(first_ms, next_ms, gap_ms)


@compiled
def overdue(state: State, mixed: Batch, now_ms: float, setup: Records) -> bool:
    """Whether the first prompt in the step has waited so long that nobody may hold it up.

    Where more comes than the promises leave room for, decodes would go first for ever.
    """
    for item in range(mixed.items):
        request = state.requests[state.places[item].scheduled]
        if request.kind != READY:
            waited_ms = now_ms - request.arrival_ms
            late: bool = waited_ms > setup.patience_slos * request.ttft_slo_ms
            return late and request.generated_tokens == 0
    return False
