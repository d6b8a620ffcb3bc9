"""Where things stand in a State: its record, and places in its rings."""

from beam_runtime.emulator.compiler import compiled, inlined
from beam_runtime.emulator.state import State


@inlined
def opened(state: State) -> State:
    """The same with the engine's record at hand: ``state.engine.running``."""
    return State(
        state.engine[0],
        state.requests,
        state.places,
        state.flights,
        state.members,
        state.stage_free_ms,
    )


@compiled
def flight_slot(state: State, number: int) -> int:
    """Where the ``number``-th of the steps in flight stands, the oldest being 0."""
    slot: int = (state.engine.flying_head + number) % len(state.flights)
    return slot


@compiled
def waiting_place(state: State, number: int) -> int:
    """Where the ``number``-th of the waiting requests stands in their ring."""
    place: int = (state.engine.waiting_head + number) % len(state.places)
    return place


@compiled
def restore(state: State, start: State) -> None:
    """Make ``state`` equal to ``start`` again, what a composer scribbles aside."""
    state.engine.rows = start.engine.rows
    state.engine.running = start.engine.running
    state.engine.waiting = start.engine.waiting
    state.engine.waiting_head = start.engine.waiting_head
    state.engine.ready = start.engine.ready
    state.engine.prefilling = start.engine.prefilling
    state.engine.decoding = start.engine.decoding
    state.engine.flying = start.engine.flying
    state.engine.flying_head = start.engine.flying_head
    state.engine.steps_back = start.engine.steps_back
    state.engine.free_blocks = start.engine.free_blocks
    state.engine.due_ms = start.engine.due_ms
    state.engine.gap_due_ms = start.engine.gap_due_ms
    state.engine.ready_since_ms = start.engine.ready_since_ms
    for stage in range(len(start.stage_free_ms)):
        state.stage_free_ms[stage] = start.stage_free_ms[stage]
    for row in range(start.engine.rows):
        state.requests[row] = start.requests[row]
        state.places[row].running = start.places[row].running
        state.places[row].waiting = start.places[row].waiting
    for number in range(start.engine.flying):
        slot = flight_slot(start, number)
        state.flights[slot] = start.flights[slot]
        for member in range(start.flights[slot].tokens):
            state.members[slot, member] = start.members[slot, member]
