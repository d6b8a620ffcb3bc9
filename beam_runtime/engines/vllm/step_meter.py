"""What a step costs: as it is, as BEAM would have it, and as vLLM's own settings would.

The same steps at two clocks, by the same table, with what stages draw while they wait:

    E = sum over steps of  active(clock) + waiting power(clock) * (stages * time - busy(clock))

where the time is from one step's issue to the next. That is the clock's part of the saving; what
chunks, microbatches and pace save by making other steps is not in it, nor the time after the last
step. A table that does not know what waiting draws leaves that out of both.
"""

import math

from beam_runtime.control.orders import Orders
from beam_runtime.emulator.passes import Passes
from beam_runtime.engines.vllm.tally import Tally
from beam_runtime.engines.vllm.view import Flying
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import Correction, EngineLimits

# The table as it is: what calibration learns of time says nothing about energy.
_AS_IS = Correction()


class StepMeter:
    """Prices one engine's steps, on its thread.

    Args:
        cost: step costs.
        passes: the same, for one step at a time.
        tally: where the sums go.
        limits: of the engine.
    """

    def __init__(self, cost: StepCost, passes: Passes, tally: Tally, limits: EngineLimits) -> None:
        self._passes = passes
        self._tally = tally
        self._stages, self._host_gap_ms = limits.pp, limits.host_gap_ms
        self._own_mhz = int(cost.clocks_mhz[-1])
        waiting_w = zip(cost.clocks_mhz.tolist(), cost.idle_power_w.tolist(), strict=True)
        self._waiting_w = {int(mhz): 0.0 if math.isnan(w) else w for mhz, w in waiting_w}
        self._last_ms: float | None = None

    def step(
        self, step: Flying, orders: Orders, may_steer: bool, now_ms: float
    ) -> tuple[float, float]:
        """(ms of one stage's pass, calibrated; active joules of all stages) of a step issued now.

        Args:
            step: what is in it.
            orders: in force.
            may_steer: whether they are followed.
            now_ms: when it is issued.
        """
        stages = self._stages
        pass_ms, pass_j = self._price(step, orders.knobs.clock_mhz, orders.correction)
        tally = self._tally
        tally.active_energy_j += stages * pass_j
        decided = orders.decision
        beam_mhz = orders.knobs.clock_mhz
        if not may_steer and decided is not None:
            beam_mhz = decided.knobs.clock_mhz
        last_ms, self._last_ms = self._last_ms, now_ms
        since_ms = 0.0 if last_ms is None else now_ms - last_ms
        own_j = self._whole_j(step, self._own_mhz, stages, since_ms)
        tally.own_energy_j += own_j
        tally.beam_energy_j += (
            own_j if beam_mhz == self._own_mhz else self._whole_j(step, beam_mhz, stages, since_ms)
        )
        return pass_ms, stages * pass_j

    def _whole_j(self, step: Flying, clock_mhz: int, stages: int, since_ms: float) -> float:
        """Active and waiting energy of all stages, from the step before to this one."""
        busy_ms, active_j = self._price(step, clock_mhz, _AS_IS)
        waiting_ms = max(0.0, stages * (since_ms - (busy_ms - self._host_gap_ms)))
        return stages * active_j + self._waiting_w.get(clock_mhz, 0.0) * waiting_ms / 1e3

    def _price(self, step: Flying, clock_mhz: int, correction: Correction) -> tuple[float, float]:
        if step.shape is None:
            count = len(step.decodes)
            return self._passes.decodes(count, step.context_tokens, clock_mhz, correction)
        return (
            self._passes.pass_ms(step.shape, clock_mhz, correction),
            self._passes.energy_j(step.shape, clock_mhz),
        )
