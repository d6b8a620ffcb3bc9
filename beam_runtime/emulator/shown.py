"""A step with some of the ready decodes: those that are due first."""

import math

from beam_runtime.emulator.compiler import compiled
from beam_runtime.emulator.deadlines import due_ms
from beam_runtime.emulator.schedule import fill
from beam_runtime.emulator.setup import Batch
from beam_runtime.emulator.state import READY, Records, State


@compiled
def fill_with(
    state: State, decodes: int, budget_tokens: int, prompts: int, setup: Records
) -> Batch:
    """Fill a step with so many of the ready decodes, those that are due first."""
    all_shown = decodes == state.engine.ready
    if not all_shown:
        show_earliest_due(state, decodes)
    return fill(state, budget_tokens, all_shown, prompts, setup)


@compiled
def show_earliest_due(state: State, size: int) -> None:
    """Show the ``size`` ready decodes that are due first; more than that are ready."""
    requests, places = state.requests, state.places
    found = 0
    for at in range(state.engine.running):
        row = places[at].running
        if requests[row].kind == READY:
            places[found].ready, places[found].due_ms = row, due_ms(requests[row])
            places[found].due_by_rank_ms = places[found].due_ms
            found += 1
    limit_ms = smallest(places, found, size) if size > 0 else -math.inf
    ties = size
    for number in range(found):
        ties -= places[number].due_ms < limit_ms
    for number in range(found):
        request = requests[places[number].ready]
        request.shown = places[number].due_ms < limit_ms
        if ties > 0 and places[number].due_ms == limit_ms:
            request.shown = 1
            ties -= 1


@compiled
def smallest(places: Records, count: int, rank: int) -> float:
    """The rank-th smallest of the first ``count`` due times (quickselect)."""
    low, high, wanted = 0, count - 1, rank - 1
    while low < high:
        pivot_ms = places[(low + high) // 2].due_by_rank_ms
        i, j = low, high
        while i <= j:
            while places[i].due_by_rank_ms < pivot_ms:
                i += 1
            while places[j].due_by_rank_ms > pivot_ms:
                j -= 1
            if i <= j:
                swapped_ms = places[i].due_by_rank_ms
                places[i].due_by_rank_ms = places[j].due_by_rank_ms
                places[j].due_by_rank_ms = swapped_ms
                i += 1
                j -= 1
        if wanted <= j:
            high = j
        elif wanted >= i:
            low = i
        else:
            break
    found: float = places[wanted].due_by_rank_ms
    return found
