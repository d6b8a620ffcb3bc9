"""compose, issue and finish for whoever plays step by step from Python."""

from beam_runtime.emulator.compiler import brief_entry
from beam_runtime.emulator.composer import chunk_budget, classify, compose
from beam_runtime.emulator.places import opened
from beam_runtime.emulator.play import Passes, finish, issue
from beam_runtime.emulator.schedule import prefill_pending
from beam_runtime.emulator.setup import Batch, Setting, Tables
from beam_runtime.emulator.state import Records, State


@brief_entry
def composed(
    arrays: State, setting: Setting, now_ms: float, setup: Records, tables: Tables
) -> tuple[int, float, Batch, bool, int]:
    """What ``compose`` answers, of a state whose kinds are not known.

    Returns:
        (answer, until when, the step, whether prompts that it has nothing of must not be seen, a
        chunk's budget).
    """
    state, given = opened(arrays), setup[0]
    classify(state, given)
    answer, until_ms, batch = compose(state, setting, now_ms, given, tables)
    # A step that preempts is for vLLM to fill: what it frees may be all that a prompt needs.
    alone = batch.decodes > 0 and batch.chunk_tokens == 0 and batch.preempted == 0
    ahead = alone and prefill_pending(state, given)
    # Between steps with decodes prompts are left their last token.
    short = given.together == 1 and batch.decodes == 0 and batch.chunk_tokens > 0
    hides = ahead or short
    return answer, until_ms, batch, hides, chunk_budget(state, setting.chunk_tokens, given)


@brief_entry
def issued(
    arrays: State, batch: Batch, now_ms: float, setting: Setting, setup: Records,
    tables: Tables,
) -> Passes:  # fmt: skip
    """``issue``: the step enters the pipeline."""
    return issue(opened(arrays), batch, now_ms, setting, setup[0], tables)


@brief_entry
def finished(arrays: State, now_ms: float, setup: Records) -> None:
    """``finish``: the oldest step is back."""
    finish(opened(arrays), now_ms, setup[0])
