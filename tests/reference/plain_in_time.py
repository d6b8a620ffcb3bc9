"""Whether a step's decodes are in time, and how much of its chunk lets them be.

The oracle of emulator/in_time.py, on dataclasses.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import plain_promises as promises
from plain_schedule import Step, fill, new_tokens

from beam_runtime.types import SAME_MS, Phase, RequestState, Snapshot, StepShape, StreamKind

Finish = Callable[[StepShape, float], float]

# A step is cut to a multiple of so many tokens: GEMM tiles are no finer.
CUT_TOKENS = 16
# All steps in flight are back by then.
LATER_MS = 1e7


def cut_in_time(
    mixed: Step,
    riding: Sequence[RequestState],
    state: Snapshot,
    now_ms: float,
    finish_ms: Finish,
    waiting: Sequence[RequestState] = (),
    next_ms: float | None = None,
    short: bool = False,
) -> Step | None:
    """The step with as much of its chunk as lets every decode be in time; None: nothing of it.

    Steps are cut to a multiple of CUT_TOKENS.
    """

    def kept(step: Step) -> bool:
        return in_time(step, riding, state, now_ms, finish_ms, waiting, next_ms)

    if kept(mixed):
        return mixed
    whole = len(mixed.decodes) + mixed.shape.prefill_tokens
    nothing, misses = len(mixed.decodes) // CUT_TOKENS, math.ceil(whole / CUT_TOKENS)
    fits, best = nothing, None
    while misses - fits > 1:
        middle = (fits + misses) // 2
        cut = fill(state, middle * CUT_TOKENS, riding, prefill=True, short=short)
        if kept(cut):
            fits, best = middle, cut
        else:
            misses = middle
    return best


def in_time(
    step: Step,
    riding: Sequence[RequestState],
    state: Snapshot,
    now_ms: float,
    finish_ms: Finish,
    waiting: Sequence[RequestState] = (),
    next_ms: float | None = None,
) -> bool:
    """Whether all decodes can be in time if this step goes now.

    Those in flight count as well, and those that wait for them: they can only be in a step after
    this one. A step longer than a gap keeps a margin as many times wider.
    """
    gap_ms, back_ms = _gap_in_flight_ms(state), finish_ms(step.shape, now_ms)
    margin_ms = state.correction.tbt_margin_ms * max(1.0, (back_ms - now_ms) / gap_ms)
    flying_ms = min(_ahead_due_ms(state), gap_due_ms(waiting, state))
    ready_ms = gap_due_ms([r for r in decodes_of(state) if new_tokens(r, state)], state)
    late = riding and back_ms > ready_ms - margin_ms + SAME_MS
    after_ms = step_after_ms(step, state, now_ms, finish_ms)
    if next_ms is not None:
        after_ms = back_ms + next_ms
    return not late and after_ms <= flying_ms - margin_ms + SAME_MS


def step_after_ms(step: Step, state: Snapshot, now_ms: float, finish_ms: Finish) -> float:
    """When the step after this one is back: a stage's time later."""
    back_ms = finish_ms(step.shape, now_ms)
    return back_ms + (back_ms - now_ms) / state.limits.pp


def _ahead_due_ms(state: Snapshot) -> float:
    """When the first request in flight would be late with its next token."""
    everyone = (*state.running, *state.waiting) if state.in_flight else ()
    slo_ms = {r.request_id: r.slo.tbt_ms for r in everyone if r.slo.tbt_ms is not None}
    latest = (
        step.finish_ms + slo_ms[name]
        for step in state.in_flight
        for name in step.request_ids
        if name in slo_ms
    )
    return min(latest, default=math.inf)


def _gap_in_flight_ms(state: Snapshot) -> float:
    """The tightest gap SLO among requests in flight."""
    flying = {name for step in state.in_flight for name in step.request_ids}
    slos = (r.slo.tbt_ms for r in _everyone(state) if r.request_id in flying)
    return min((ms for ms in slos if ms is not None), default=math.inf)


def overdue(mixed: Step, state: Snapshot, now_ms: float) -> bool:
    """Whether the first prompt in the step has waited so long that nobody may hold it up."""
    first = next(r for r in _everyone(state) if r.request_id == mixed.chunks[0][0])
    overdue_ms = state.correction.patience_slos * first.slo.ttft_ms
    return not first.generated_tokens and now_ms - first.arrival_ms > overdue_ms


def due_ms(decodes: Iterable[RequestState], state: Snapshot) -> float:
    """When the first of these decodes would be late."""
    return min((promises.due_ms(r, state) for r in decodes), default=math.inf)


def gap_due_ms(decodes: Iterable[RequestState], state: Snapshot) -> float:
    """The same of those for whom a late token breaks a promise."""
    return due_ms([r for r in decodes if r.slo.kind is StreamKind.GAP], state)


def decodes_of(state: Snapshot) -> list[RequestState]:
    return [r for r in state.running if r.phase is Phase.DECODE]


def _everyone(state: Snapshot) -> tuple[RequestState, ...]:
    return (*state.running, *state.waiting)
