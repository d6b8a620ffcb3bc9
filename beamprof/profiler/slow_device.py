"""Whether a sweep can be held in its budget where a single pass outlasts a trial's window.

A plan counts windows. On a slow device a cell takes as long as its passes do, however short the
window: that is estimated from what this CPU moves and computes in a tenth of a second.
"""

import time
from collections.abc import Callable

import numpy as np

from beam_runtime.table.schema import RowKind
from beamprof.backends.pass_estimate import GUESSED_SPEEDS, PASSES_PER_CELL, PassEstimate
from beamprof.errors import SweepError
from beamprof.models.shape import StageShape
from beamprof.profiler.plan import TRIAL_OVERHEAD_S, Plan
from beamprof.units import format_duration

# The estimate is good to a factor of two or so: what is further over cannot be held.
_HOPELESS = 2.0
_MATRIX = 1024
_COPIED_BYTES = 1 << 26


def check_budget(plan: Plan, stage: StageShape, place: str, budget_s: float, name: str) -> str:
    """A line where a sweep may take longer than its budget; empty where it should not.

    Args:
        plan: to be measured.
        stage: what a pass goes through.
        place: "cpu" or "cuda".
        budget_s: what it was given.
        name: of the model.

    Raises:
        SweepError: it takes more than twice the budget, whatever the estimate is wrong by.
    """
    estimate = PassEstimate(stage, place, cpu_speeds() if place == "cpu" else None)
    order = [trial.cell for trial in plan.order()]
    passes_s = {
        cell: 0.0 if cell.kind is RowKind.IDLE else estimate.seconds(cell.shape) for cell in order
    }
    window_s = plan.window_s + TRIAL_OVERHEAD_S
    total_s = sum(max(window_s, PASSES_PER_CELL * passes_s[cell]) for cell in order)
    if total_s <= budget_s:
        return ""
    slowest_s, lightest_s = max(passes_s.values()), min(s for s in passes_s.values() if s)
    cause = (
        f"{len(order)} trials take about {format_duration(total_s)} here, by a first estimate: one "
        f"pass {format_duration(lightest_s)} to {format_duration(slowest_s)}"
    )
    if total_s > _HOPELESS * budget_s:
        raise SweepError(
            f"{name} cannot be measured on this {place.upper()} within {format_duration(budget_s)}",
            cause=cause,
            hint=f"--budget {_asked(total_s)}, a smaller --max-tokens or model, or --backend "
            "modelled, which needs no measuring",
        )
    return f"budget: {format_duration(budget_s)} may not be held: {cause}"


def cpu_speeds() -> tuple[float, float]:
    """FLOP/s and bytes/s of this CPU, the best of three short tries each; guesses at worst."""
    matrix = np.ones((_MATRIX, _MATRIX), np.float32)
    source = np.ones(_COPIED_BYTES, np.uint8)
    target = np.empty_like(source)
    out = np.empty_like(matrix)
    multiply_s = min(_timed(lambda: np.matmul(matrix, matrix, out=out)) for _ in range(3))
    copy_s = min(_timed(lambda: np.copyto(target, source)) for _ in range(3))
    flops, moved = GUESSED_SPEEDS["cpu"]
    return (
        2.0 * _MATRIX**3 / multiply_s if multiply_s > 0 else flops,
        2.0 * _COPIED_BYTES / copy_s if copy_s > 0 else moved,
    )


def _timed(work: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


def _asked(seconds: float) -> str:
    """Enough time, rounded up to what people write: 7m, 45m, 90m, 10h."""
    minutes = int(seconds / 60) + 1
    if minutes > 120:
        return f"{-(-minutes // 60)}h"
    step = 1 if minutes < 10 else 5 if minutes < 60 else 30
    return f"{-(-minutes // step) * step}m"
