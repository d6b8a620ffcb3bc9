"""A request without KV blocks: it gives its own back, waits, and comes back, as in vLLM."""

from plain_composer import Step, compose
from plain_moves import finish

from beam_runtime.types import EngineLimits, Knobs, RequestState, Rules, Snapshot, StepInFlight


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


def test_a_preempted_request_is_passed_over_until_its_steps_are_back() -> None:
    preempted = RequestState("preempted", 64, 0.0, generated_tokens=3, steps_ahead=2)
    new = RequestState("new", 48, 1.0)
    flying = (StepInFlight(5.0, ("preempted",)), StepInFlight(9.0))
    state = Snapshot(
        0.0, EngineLimits(pp=4), Knobs(1410, 256), waiting=(preempted, new), in_flight=flying
    )

    def admitted(state: Snapshot) -> tuple[str, ...]:
        move = compose(state, state.knobs, 0.0, lambda *_: 0.0, Rules.vanilla())
        assert isinstance(move, Step)
        return move.admitted

    assert admitted(state) == ("new",)
    state = finish(state, 5.0)
    assert state.waiting[0].generated_tokens == 4, "what was in flight still counts"
    assert admitted(state) == ("new",)
    assert admitted(finish(state, 9.0)) == ("preempted", "new")
