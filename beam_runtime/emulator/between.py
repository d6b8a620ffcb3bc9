"""Chunks alone between two steps with all decodes.

At a tight gap SLO a step can hold few tokens, and decodes that ride in every one leave little of
each to prompts. Where that costs more than it gives (search/together.py) all decodes go in one
step of a round through the pipeline:

    [ decodes, first tokens ][ chunk ][ chunk ][ chunk ][ decodes, first tokens ] ...

They stay together only if first tokens, too, come in that step: whoever gets one between goes on
alone, and every such group cuts the chunks around it. So prompts are kept one token short until
then. Decodes that are not together yet wait for the others where they are in time all the same.
"""

from beam_runtime.emulator.compiler import compiled
from beam_runtime.emulator.in_time import (
    Due,
    cut_in_time,
    due_in_flight,
    finish_ms,
    overdue,
)
from beam_runtime.emulator.schedule import SHORT
from beam_runtime.emulator.setup import (
    GO,
    HOLD,
    STEP,
    Batch,
    Setting,
    Tables,
    decode_batch,
    pass_ms,
)
from beam_runtime.emulator.shown import fill_with
from beam_runtime.emulator.state import DECODING, READY, Records, State
from beam_runtime.types import SAME_MS


@compiled
def between(
    state: State, budget_tokens: int, now_ms: float, setting: Setting, setup: Records,
    tables: Tables,
) -> tuple[int, float, Batch]:  # fmt: skip
    """What the engine does while some of its decodes are in flight.

    Args:
        state: the engine; a decode is not ready.
        budget_tokens: most tokens of a step.
        now_ms: the moment.
        setting: clock to follow.
        setup: limits, rules, corrections.
        tables: what steps cost.

    Returns:
        As compose, or (GO, -, -): the decodes that are ready go now.
    """
    engine = state.engine
    nothing = decode_batch(0, 0)
    if engine.flying == 0:  # those not ready have reached the model's length
        return GO, now_ms, nothing
    head = state.flights[engine.flying_head]
    # Asked ahead of its time: what comes back by then may be what the others wait for.
    if head.tokens > 0 and head.finish_ms <= state.stage_free_ms[0] + SAME_MS:
        return HOLD, head.finish_ms, nothing
    chunk = fill_with(state, 0, budget_tokens, SHORT, setup)
    everyone = all_decodes(state)
    if chunk.chunk_tokens > 0 and chunk.preempted == 0:
        next_ms = pass_ms(setting.clock, everyone, setup, tables) + setup.host_gap_ms
        ahead = due_in_flight(state, next_ms)
        due = Due(min(ahead.ahead_ms, engine.gap_due_ms), next_ms, ahead.gap_ms)
        if not overdue(state, chunk, now_ms, setup):
            chunk = cut_in_time(state, chunk, 0, SHORT, due, now_ms, setting, setup, tables)
        if chunk.chunk_tokens > 0:
            return STEP, now_ms, chunk
    if engine.ready > 0:
        end_ms = finish_ms(state, everyone, head.finish_ms, setting, setup, tables)
        if end_ms > engine.gap_due_ms - setup.wide_margin_ms + SAME_MS:
            return GO, now_ms, nothing
    return HOLD, head.finish_ms, nothing


@compiled
def all_decodes(state: State) -> Batch:
    """The step in which every decode goes."""
    context_tokens = 0
    for at in range(state.engine.running):
        request = state.requests[state.places[at].running]
        if request.kind == READY or request.kind == DECODING:
            context_tokens += request.computed_tokens
    return decode_batch(state.engine.decoding, context_tokens)
