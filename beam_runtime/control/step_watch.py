"""Follows every step from issue to return, and lets calibration learn from it.

A step that met two clocks teaches as well, where it hardly matters when exactly the one became
the other: a controller may change clocks faster than a step travels.

An engine that has not served yet may compile for minutes in its first step: that is no stall, and
nothing is learnt of it.
"""

from collections import deque

from beam_runtime.control.calibration import Calibration, Drift
from beam_runtime.control.clock_state import ClockState
from beam_runtime.control.pipeline_times import PipelineTimes
from beam_runtime.emulator.passes import Passes
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import EngineLimits, StepShape

# How much of a step's predicted time may hang on when exactly the clock changed under it. It
# adds to what calibration takes for noise, which is about that much in a quiet engine.
CLOCK_DOUBT = 0.02


class StepWatch:
    """What the pipeline holds, when it will be out, and how far that was from the table.

    Args:
        cost: step costs; None = no table, nothing is learnt.
        limits: of the engine.
        clock: what the GPUs run at.
        calibration: learns.
    """

    def __init__(
        self,
        cost: StepCost | None,
        limits: EngineLimits,
        clock: ClockState,
        calibration: Calibration,
    ) -> None:
        self._passes = None if cost is None else Passes(cost, limits)
        self._limits = limits
        self._clock = clock
        self._calibration = calibration
        self._times = PipelineTimes(limits.pp, limits.transfer_ms)
        self._expected: deque[StepShape] = deque()
        self._progress_ms = float("-inf")
        self._served = False

    def issued(self, shape: StepShape, at_ms: float) -> None:
        """A step enters the pipeline."""
        if not self._times.in_flight:
            self._progress_ms = at_ms  # a stall is counted from when there was work
        predicted_ms = 0.0
        if self._passes is not None:
            predicted_ms = self._passes.table_ms(shape, self._clock.running_mhz)
            predicted_ms *= self._calibration.scale(shape)
        self._times.issue(at_ms, predicted_ms + self._limits.host_gap_ms)
        self._expected.append(shape)

    def finished(self, at_ms: float) -> Drift | None:
        """The oldest step is back.

        Returns:
            Drift, where this step completes its report.
        """
        self._progress_ms = at_ms
        measured = self._times.finish(at_ms)
        if not self._expected:
            return None
        shape = self._expected.popleft()
        self._calibration.observe_tokens(shape.decode_requests)
        first, self._served = not self._served, True
        if measured is None or self._passes is None or first:
            return None
        predicted_ms = self._predicted_ms(self._passes, shape, measured.since_ms, at_ms)
        if predicted_ms is None:
            return None
        return self._calibration.observe_step(
            shape, predicted_ms, measured.stage_ms - self._limits.host_gap_ms
        )

    def lost(self) -> None:
        """The oldest step is back, and nobody said so: nothing is learnt of it."""
        self._times.lose()
        if self._expected:
            self._expected.popleft()

    def _predicted_ms(
        self, passes: Passes, shape: StepShape, from_ms: float, to_ms: float
    ) -> float | None:
        """The table's time for a stage, at the clocks of that time; None where they are unknown.

        A clock that changes meanwhile changes the pace: passes per time add up, not times.
        """
        shares = self._clock.share_before(from_ms, to_ms)
        if shares is None:
            return None
        now_ms = passes.table_ms(shape, self._clock.asked_mhz)
        if shares == (0.0, 0.0):
            return now_ms if now_ms > 0.0 else None  # of no tokens, or nonsense
        before_ms = passes.table_ms(shape, self._clock.before_mhz)
        if not (now_ms > 0.0 and before_ms > 0.0):
            return None
        now, before = 1.0 / now_ms, 1.0 / before_ms
        one_ms, other_ms = (1.0 / (share * before + (1.0 - share) * now) for share in shares)
        if abs(one_ms - other_ms) > CLOCK_DOUBT * min(one_ms, other_ms):
            return None
        return (one_ms + other_ms) / 2.0

    def silent_ms(self, now_ms: float) -> float:
        """How long steps have been in flight without one coming back; 0 where none are.

        Nor before the first one ever is back.
        """
        waits = self._times.in_flight and self._served
        return now_ms - self._progress_ms if waits else 0.0

    def finishes_ms(self, now_ms: float) -> list[float]:
        """When each step in flight is expected back, oldest first; what is overdue, now."""
        return [max(now_ms, at_ms) for at_ms in self._times.finishes_ms()]

    def stage_free_ms(self) -> tuple[float, ...]:
        """For each stage, when it is done with all steps issued so far."""
        return self._times.stage_free_ms()
