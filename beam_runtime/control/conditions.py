"""What has to hold while BEAM steers: the engine moves, and the table knows what it does."""

from beam_runtime.control.fallback import Fault
from beam_runtime.control.observer import Observer
from beam_runtime.table.step_cost import StepCost


def conditions(
    seen: Observer, cost: StepCost, now_ms: float, *, stall_ms: float, coverage: float
) -> dict[Fault, str]:
    """What stands against steering, in words; an empty text = nothing does.

    Args:
        seen: what is known of the engine.
        cost: step costs.
        now_ms: the moment.
        stall_ms: steps in flight and none back for this long: the engine hangs.
        coverage: how far beyond its largest measured batch and context a table is believed.
    """
    return {
        Fault.STALL: _stalled(seen.silent_ms(now_ms), stall_ms),
        Fault.COVERAGE: _uncovered(*seen.load, cost, coverage),
        Fault.MODEL: "" if seen.calibration.trusted else "a scale has reached its clamp",
    }


def _stalled(silent_ms: float, stall_ms: float) -> str:
    if silent_ms < stall_ms:
        return ""
    return f"a step is in flight and none came back for {silent_ms / 1e3:.0f} s"


def _uncovered(requests: int, context_tokens: int, cost: StepCost, coverage: float) -> str:
    for name, value in (
        ("decode_requests", requests),
        ("decode_context_tokens", context_tokens),
    ):
        largest = cost.fit.largest[name]
        if value > coverage * largest:
            return f"{value} {name.replace('_', ' ')}, measured up to {largest:.0f}"
    return ""
