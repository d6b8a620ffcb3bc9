"""How a step travels through the pipeline's stages, and which clock it meets there.

    stage 0  [ step 1 ][ step 2 ]
    stage 1            [ step 1 ][ step 2 ]
    stage 2                      [ step 1 ][ step 2 ]

Stage s starts when stage s-1 of this step has sent its activations and stage s has finished
the step before. All stages are taken to cost the same: a table describes one stage, so what
the embedding and the sampler add to the first and the last one is not known here.
"""

from dataclasses import dataclass
from typing import Self

from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import SAME_MS, Correction, EngineLimits, Snapshot, StepShape


@dataclass(frozen=True, slots=True)
class ClockPlan:
    """Which clock the GPUs run at: ``before_mhz`` until ``switch_ms``, then ``after_mhz``."""

    before_mhz: int
    after_mhz: int
    switch_ms: float

    @classmethod
    def asking_for(cls, clock_mhz: int, state: Snapshot) -> Self:
        """What happens if ``clock_mhz`` is asked for now, in the light of an earlier request."""
        effective_ms = state.clock_since_ms + state.limits.clock_delay_ms
        previous = state.previous_clock_mhz
        under_way = previous is not None and state.now_ms < effective_ms
        now_mhz = previous if previous is not None and under_way else state.knobs.clock_mhz
        if clock_mhz == state.knobs.clock_mhz:
            return cls(now_mhz, clock_mhz, effective_ms)
        return cls(now_mhz, clock_mhz, state.now_ms + state.limits.clock_delay_ms)

    def early_share(self, start_ms: float, before_ms: float) -> float:
        """How much of a pass is done before the clock changes; all of it takes ``before_ms``."""
        return min(1.0, max(0.0, (self.switch_ms - start_ms) / max(before_ms, SAME_MS)))


@dataclass(frozen=True, slots=True)
class Pass:
    """One stage's pass over a step: when it ends, how long its GPUs worked, and their energy."""

    end_ms: float
    busy_ms: float
    energy_j: float


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Step costs, corrected by calibration, laid out over the stages.

    Attributes:
        cost: what one stage's pass costs.
        limits: number of stages, host gap, transfer.
        correction: factors on the table's latencies.
        clock: which clock is in effect when.
    """

    cost: StepCost
    limits: EngineLimits
    correction: Correction
    clock: ClockPlan

    def travel(
        self,
        step: StepShape,
        issue_ms: float,
        stage_free_ms: tuple[float, ...],
    ) -> tuple[Pass, ...]:
        """The step's pass on every stage, were it issued at ``issue_ms``."""
        latency_ms, energy_j = self.cost.latency_ms(step), self.cost.energy_j(step)
        before = clock_index(self.cost, self.clock.before_mhz)
        after = clock_index(self.cost, self.clock.after_mhz)
        scale = self.scale(step)
        passes = []
        ready_ms = issue_ms
        for free_ms in stage_free_ms:
            start_ms = max(ready_ms, free_ms)
            early = self.clock.early_share(start_ms, scale * float(latency_ms[before]))
            mean_ms, mean_j = (
                early * float(of[before]) + (1.0 - early) * float(of[after])
                for of in (latency_ms, energy_j)
            )
            busy_ms = scale * mean_ms
            end_ms = start_ms + (busy_ms + self.limits.host_gap_ms)
            passes.append(Pass(end_ms, busy_ms, mean_j))
            ready_ms = end_ms + self.limits.transfer_ms
        return tuple(passes)

    def scale(self, step: StepShape) -> float:
        """Calibration's factor for this kind and size of step."""
        return self.correction.scale(step.prefill_tokens, step.decode_requests)


def clock_index(cost: StepCost, clock_mhz: float) -> int:
    """The served clock nearest to ``clock_mhz``: an engine may run at one nobody profiled."""
    return int(abs(cost.clocks_mhz - clock_mhz).argmin())
