"""Whether a step's decodes are in time, and how much of its chunk lets them be."""

import math
from typing import NamedTuple

from beam_runtime.emulator.compiler import compiled
from beam_runtime.emulator.places import flight_slot
from beam_runtime.emulator.promises import GAP
from beam_runtime.emulator.schedule import fill, shortened
from beam_runtime.emulator.setup import Batch, Setting, Tables, early_share, pass_ms
from beam_runtime.emulator.state import READY, Records, State
from beam_runtime.types import SAME_MS

# A chunk is cut to within so many tokens of what is in time: GEMM tiles are no finer.
CUT_TOKENS = 16
# The wide margin is kept where a chunk cut to it holds this share of what the other would leave:
# a stair of the table costs more, a millisecond on a slope less (docs/how-it-works.md).
WIDE_SHARE = 0.97
# What follows a step takes as long as it does.
AS_LONG = -1.0


class Due(NamedTuple):
    """When decodes have to be back.

    Attributes:
        ahead_ms: the first of those in flight is late with its next token.
        margin_ms: to be kept before that, and before those that ride are late; by a step that
            takes longer than a gap as many times more, for it errs by that.
        next_ms: how long the step that they go in after this one is in each stage, or AS_LONG.
        gap_ms: the tightest gap SLO among those in flight.
    """

    ahead_ms: float
    margin_ms: float
    next_ms: float
    gap_ms: float


@compiled
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
def tokens_in_time(
    state: State, mixed: Batch, riding: int, prompts: int, wide: Due, now_ms: float,
    setting: Setting, setup: Records, tables: Tables,
) -> int:  # fmt: skip
    """Of a chunk that is too long for the wide margin, how many tokens go; 0 if none can.

    A step's decodes are lost together, so the margin is wide, unless that costs prompts much: a
    chunk may fall off one of the table's stairs for a millisecond.
    """
    narrow = Due(wide.ahead_ms, setup.tbt_margin_ms, wide.next_ms, wide.gap_ms)
    tokens = mixed.chunk_tokens
    if not kept(state, mixed, riding, narrow, now_ms, setting, setup, tables):
        tokens = fitting(state, mixed, riding, prompts, narrow, now_ms, setting, setup, tables)
    wide_tokens = fitting(state, mixed, riding, prompts, wide, now_ms, setting, setup, tables)
    return wide_tokens if wide_tokens >= WIDE_SHARE * tokens else tokens


@compiled
def fitting(
    state: State, mixed: Batch, riding: int, prompts: int, due: Due, now_ms: float,
    setting: Setting, setup: Records, tables: Tables,
) -> int:  # fmt: skip
    """Tokens of a chunk cut to what is in time."""
    all_shown = riding == state.engine.ready
    fits, misses = 0, mixed.chunk_tokens
    while misses - fits > CUT_TOKENS:
        middle = (fits + misses) // 2
        if mixed.preempted == 0:
            cut = shortened(state, mixed, mixed.chunk_tokens - middle)
        else:
            cut = fill(state, mixed.decodes + middle, all_shown, prompts, setup)
        if kept(state, cut, riding, due, now_ms, setting, setup, tables):
            fits = middle
        else:
            misses = middle
    if fits > 0 and mixed.preempted == 0:
        fits = most_per_ms(state, mixed, fits, setting, setup, tables)
    return fits


@compiled
def most_per_ms(
    state: State, mixed: Batch, fits: int, setting: Setting, setup: Records, tables: Tables
) -> int:
    """Of a chunk that is cut to ``fits`` tokens or fewer, how many give the most per time.

    A pass takes longer by stairs (GEMM tiles): just above one, fewer tokens get more done.
    """
    best_tokens, best_per_ms, tokens = fits, 0.0, fits
    while tokens > 0:
        cut = shortened(state, mixed, mixed.chunk_tokens - tokens)
        per_ms = tokens / (pass_ms(setting.clock, cut, setup, tables) + setup.host_gap_ms)
        if per_ms > best_per_ms:
            best_tokens, best_per_ms = tokens, per_ms
        tokens = (mixed.decodes + tokens - 1) // CUT_TOKENS * CUT_TOKENS - mixed.decodes
    return best_tokens


@compiled
def kept(
    state: State, step: Batch, riding: int, due: Due, now_ms: float, setting: Setting,
    setup: Records, tables: Tables,
) -> bool:  # fmt: skip
    """Whether all decodes can be in time if this step goes now."""
    back_ms = finish_ms(state, step, now_ms, setting, setup, tables)
    margin_ms = due.margin_ms * max(1.0, (back_ms - now_ms) / due.gap_ms)
    if riding > 0 and back_ms > state.engine.gap_due_ms - margin_ms + SAME_MS:
        return False
    next_ms = due.next_ms if due.next_ms != AS_LONG else (back_ms - now_ms) / setup.pp
    followed: bool = back_ms + next_ms <= due.ahead_ms - margin_ms + SAME_MS
    return followed


@compiled
def due_in_flight(state: State, next_ms: float, setup: Records) -> Due:
    """When the first decode in flight will be late with its next token, by the wide margin."""
    first_ms = gap_ms = math.inf
    for number in range(state.engine.flying):
        slot = flight_slot(state, number)
        back_ms = state.flights[slot].finish_ms
        for member in range(state.flights[slot].tokens):
            request = state.requests[state.members[slot, member]]
            if request.slo_kind == GAP:
                first_ms = min(first_ms, back_ms + request.token_slo_ms)
                gap_ms = min(gap_ms, request.token_slo_ms)
    return Due(first_ms, setup.wide_margin_ms, next_ms, gap_ms)


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
