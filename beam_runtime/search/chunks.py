"""Which chunk sizes the search chooses from: those on the table's stairs."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import EngineLimits, Rules, StepShape


def chunk_candidates(
    cost: StepCost, limits: EngineLimits, rules: Rules, most: int
) -> tuple[int, ...]:
    """Chunk sizes on the edges of the table's staircase, where a token costs least.

    The edge just behind a step is never worth it: those where a token costs more energy than at
    the edge before are left out, at the middle clock. If too many remain, they are thinned
    evenly.
    """
    largest = limits.max_batched_tokens
    edges = [int(e) for e in cost.edges_tokens if rules.min_chunk_tokens * 2 <= e <= largest]
    middle = len(cost.clocks_mhz) // 2

    def token_j(tokens: int) -> float:
        return float(cost.energy_j(StepShape(prefill_tokens=tokens))[middle]) / tokens

    kept = [e for before, e in pairwise([0, *edges]) if not before or token_j(e) <= token_j(before)]
    if not kept or kept[-1] != largest:
        kept.append(largest)
    return tuple(_thinned(kept, most))


def _thinned(values: Sequence[int], most: int) -> list[int]:
    """At most so many of them, evenly, with the first and the last."""
    if len(values) <= most:
        return list(values)
    return [values[i] for i in np.linspace(0, len(values) - 1, most).round().astype(int)]
