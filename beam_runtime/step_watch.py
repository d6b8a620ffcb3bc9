"""Follows every step from issue to return, and lets calibration learn from it."""

from beam_runtime.calibration import Calibration, Drift, StepKind
from beam_runtime.cost import StepCost
from beam_runtime.pipeline import clock_index
from beam_runtime.pipeline_times import PipelineTimes
from beam_runtime.types import EngineLimits, StepShape


class StepWatch:
    """What the pipeline holds, when it will be out, and how far that was from the table.

    Args:
        cost: step costs; None = no table, nothing is learnt.
        limits: of the engine.
        calibration: learns.
    """

    def __init__(
        self, cost: StepCost | None, limits: EngineLimits, calibration: Calibration
    ) -> None:
        self._cost = cost
        self._limits = limits
        self._calibration = calibration
        self._times = PipelineTimes(limits.pp, limits.transfer_ms)
        self._expected: list[tuple[StepKind, float, float]] = []  # kind, table's ms, issued
        self._progress_ms = float("-inf")

    def issued(self, shape: StepShape, at_ms: float, clock_mhz: int) -> None:
        """A step enters the pipeline while the GPUs run at this clock."""
        if not self._times.in_flight:
            self._progress_ms = at_ms  # a stall is counted from when there was work
        kind = StepKind.PREFILL if shape.prefill_tokens else StepKind.DECODE
        predicted_ms = 0.0
        if self._cost is not None:
            at = clock_index(self._cost, clock_mhz)
            predicted_ms = float(self._cost.latency_ms(shape)[at])
        correction = self._calibration.correction
        scale = correction.prefill_scale if shape.prefill_tokens else correction.decode_scale
        self._times.issue(at_ms, scale * predicted_ms + self._limits.host_gap_ms)
        self._expected.append((kind, predicted_ms, at_ms))

    def finished(self, at_ms: float, settled_ms: float) -> Drift | None:
        """The oldest step is back.

        Args:
            at_ms: when.
            settled_ms: since when the clock has been the one asked for; infinite while it is
                not. A step that met two clocks teaches nothing.

        Returns:
            Drift, where this step completes its report.
        """
        self._progress_ms = at_ms
        stage_ms = self._times.finish(at_ms)
        if not self._expected:
            return None
        kind, predicted_ms, issued_ms = self._expected.pop(0)
        if stage_ms is None or issued_ms < settled_ms:
            return None
        return self._calibration.observe_step(
            kind, predicted_ms, stage_ms - self._limits.host_gap_ms
        )

    def silent_ms(self, now_ms: float) -> float:
        """How long steps have been in flight without one coming back; 0 where none are."""
        return now_ms - self._progress_ms if self._times.in_flight else 0.0

    def finishes_ms(self, now_ms: float) -> list[float]:
        """When each step in flight is expected back, oldest first; what is overdue, now."""
        return [max(now_ms, at_ms) for at_ms in self._times.finishes_ms()]

    def stage_free_ms(self) -> tuple[float, ...]:
        """For each stage, when it is done with all steps issued so far."""
        return self._times.stage_free_ms()
