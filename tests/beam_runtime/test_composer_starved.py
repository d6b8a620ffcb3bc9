"""A prompt that finds no KV block for its next chunk gives its own back, as in vLLM."""

from beam_runtime.composer import Step, compose
from beam_runtime.types import EngineLimits, Knobs, RequestState, Rules, Snapshot


def test_a_starved_prompt_preempts_itself_even_where_nothing_is_left_of_the_step() -> None:
    decoding = RequestState("decoding", 16, 0.0, computed_tokens=17, generated_tokens=1)
    starved = RequestState("starved", 100, 0.0, computed_tokens=32)
    state = Snapshot(
        0.0, EngineLimits(pp=2), Knobs(1410, 256), running=(decoding, starved), free_blocks=0
    )
    move = compose(state, state.knobs, 0.0, lambda *_: 0.0, Rules.vanilla())
    assert isinstance(move, Step)
    assert move.preempted == ("starved",)
    assert (move.decodes, move.chunks, move.blocks) == ((), (), -2)
