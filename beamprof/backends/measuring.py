"""What every backend that measures has in common: set a clock, time passes, read energy.

    run(cell)   set the clock -> time_passes (pass_timing) -> was the clock held? -> Measurement

What a pass is and who runs it, the backends say. Knows neither torch nor vLLM.
"""

import contextlib
import time
from collections.abc import Callable
from typing import Protocol

from beam_runtime.clocks.base import CLOCK_LOSS, POWER_CAP
from beam_runtime.clocks.energy import EnergyMeter
from beam_runtime.clocks.guarded import GuardedActuator
from beam_runtime.clocks.lock import ClockLock
from beam_runtime.table.schema import RowKind
from beam_runtime.types import Source, StepShape
from beamprof.backends.base import Measurement
from beamprof.backends.cell import Cell
from beamprof.backends.pass_estimate import PASSES_PER_CELL, PassEstimate
from beamprof.backends.pass_timing import (
    PassRunner,
    PassTimes,
    TimingRules,
    time_passes,
    time_waiting,
)
from beamprof.backends.sensors import Sensors
from beamprof.console import note
from beamprof.errors import BackendError, UnheldClockError
from beamprof.models.shape import StageShape

IDLE_WINDOW_MS = 1000.0
CELL_TRIES = 3
COOL_DOWN_S = 10.0


class StageRunner(PassRunner, Protocol):
    """A PassRunner (pass_timing) for any step of a stage."""

    def prepare(self, step: StepShape) -> None:
        """Make the step's pass the one to run. Raises BackendError if it does not fit."""
        ...

    def close(self) -> None:
        """Free the pass."""
        ...


class MeasuringBackend:
    """The measuring half of a MeasureBackend. A subclass opens and closes what it measures.

    Args:
        stage: the shard.
        place: "cuda" or "cpu".
        rules: how long to measure; TimingRules.within(window) for a sweep's fixed window.
        assume_power_w: of one device, used where no energy counter can be read. Idle power
            is then the same number: an assumption knows no load.
        say: tells a person of rejected cells.
        now_s, sleep_s: replaced in tests.
    """

    name = ""

    def __init__(
        self,
        stage: StageShape,
        *,
        place: str,
        rules: TimingRules | None = None,
        assume_power_w: float | None = None,
        say: Callable[[str], None] = note,
        now_s: Callable[[], float] = time.perf_counter,
        sleep_s: Callable[[float], None] = time.sleep,
    ) -> None:
        self.stage = stage
        self._place = place
        self._rules = rules or TimingRules()
        self._assume_power_w = assume_power_w
        self._say = say
        self._now_s = now_s
        self._sleep_s = sleep_s
        self._estimate = PassEstimate(stage, place)
        self._runner: StageRunner | None = None
        self._sensors: Sensors | None = None
        self._lock: ClockLock | None = None

    def run(self, cell: Cell) -> Measurement:
        """Measure one cell at its clock.

        Raises:
            BackendError: it does not fit into memory, or its clock or energy stay wrong.
            UnheldClockError, ClockNotAppliedError: the GPU does not run at its clock.
            ClockError: clocks cannot be set, or this GPU is another's by now.
        """
        runner, sensors = self._opened()
        if cell.kind is RowKind.IDLE:
            self._set_clock(cell.clock_mhz)
            return self._measure_idle(sensors)
        if cell.shape.tokens == 0:
            raise BackendError("a forward pass needs at least one new token", cause=f"found {cell}")
        return self._measure(cell, runner, sensors)

    def estimate_s(self, cell: Cell) -> float:
        """The rules' time, or that of a few passes where they take longer."""
        if cell.kind is RowKind.IDLE:
            return self._rules.discard_s + self._rules.window_s
        return max(self._rules.planned_s, PASSES_PER_CELL * self._estimate.seconds(cell.shape))

    @property
    def _devices_per_metered(self) -> float:
        """How many of the stage's tp devices each metered one stands for."""
        return 1.0

    def _measure(self, cell: Cell, runner: StageRunner, sensors: Sensors) -> Measurement:
        times = self._time(cell, runner, sensors)
        return self._measurement(times, sensors, times.mean_ms)

    def _time(self, cell: Cell, runner: StageRunner, sensors: Sensors) -> PassTimes:
        """The cell's pass at its clock, tried again where the clock was not held."""
        begun_s = self._now_s()
        runner.prepare(cell.shape)
        for _ in range(CELL_TRIES):
            self._set_clock(cell.clock_mhz, while_waiting=lambda: _one_pass(runner))
            times = time_passes(
                runner, self._meter(sensors), sensors.gauge, self._rules, now_s=self._now_s
            )
            if not _clock_lost(cell.clock_mhz, times):
                self._estimate.learn(cell.shape, times.mean_ms / 1e3)
                return times
            self._say(_rejection(cell, times))
            self._sleep_s(COOL_DOWN_S)
        spent_s = self._now_s() - begun_s
        raise UnheldClockError(
            f"{cell.clock_mhz} MHz is not held: {CELL_TRIES} windows in {spent_s:.0f} s were "
            f"rejected",
            cause=_rejection(cell, times),
            hint="cool the GPU, see that it is yours alone, or leave this clock out of --clocks",
        )

    def _measurement(self, times: PassTimes, sensors: Sensors, counted_ms: float) -> Measurement:
        """A row's numbers; ``counted_ms`` of mean power make up the energy of one pass."""
        power_w = times.power_w if times.power_w is not None else sensors.assumed_power_w or 0.0
        energy_j = power_w * counted_ms / 1e3 * self._devices_per_metered
        relative = times.power_relative_ci or 0.0
        # The mean pass is known about as well as the median.
        relative = (relative**2 + (times.median_ci_ms / times.median_ms) ** 2) ** 0.5
        return Measurement(
            latency_ms=times.median_ms,
            latency_ci_ms=times.median_ci_ms,
            energy_j=energy_j,
            energy_ci_j=relative * energy_j,
            source=Source.MEASURED,
            clock_reached_mhz=times.clock_mhz,
            temperature_c=times.temperature_c,
            throttle="|".join(times.throttle),
            passes=times.passes,
        )

    def _measure_idle(self, sensors: Sensors) -> Measurement:
        meter = self._meter(sensors)
        if meter is None:
            power_w, relative, state = sensors.assumed_power_w or 0.0, 0.0, sensors.gauge()
        else:
            window, state = time_waiting(
                meter, sensors.gauge, self._rules, now_s=self._now_s, sleep_s=self._sleep_s
            )
            power_w, relative = window.power_w, window.relative_ci
        energy_j = power_w * IDLE_WINDOW_MS / 1e3 * self._devices_per_metered
        return Measurement(
            latency_ms=IDLE_WINDOW_MS,
            energy_j=energy_j,
            energy_ci_j=relative * energy_j,
            source=Source.MEASURED,
            clock_reached_mhz=state.clock_mhz,
            temperature_c=state.temperature_c,
            throttle="|".join(state.throttle),
        )

    def _opened(self) -> tuple[StageRunner, Sensors]:
        if self._runner is None or self._sensors is None:
            raise BackendError(f"the {self.name} backend is not open", hint="call open() first")
        return self._runner, self._sensors

    def _take_lock(self, sensors: Sensors) -> None:
        """From now on clocks may be set; they are given back by ``_release``."""
        if sensors.actuator is not None:
            self._lock = ClockLock(sensors.actuator)
            self._lock.__enter__()

    def _release(self, leaving: contextlib.ExitStack) -> None:
        """Have runner and clocks given back: clocks first, and whatever else fails."""
        if self._runner is not None:
            leaving.callback(self._runner.close)
        sensors = self._sensors
        if sensors is not None and isinstance(sensors.actuator, GuardedActuator):
            leaving.callback(sensors.actuator.close)
        if self._lock is not None:
            leaving.callback(self._lock.close)
        self._runner = self._sensors = self._lock = None

    def _set_clock(self, clock_mhz: int, while_waiting: Callable[[], object] | None = None) -> None:
        if self._lock is None:
            if clock_mhz:
                raise BackendError(
                    "a CPU's clock cannot be locked",
                    cause=f"the cell asks for {clock_mhz} MHz",
                    hint="--clocks current",
                )
        elif clock_mhz:
            self._lock.set(clock_mhz, while_waiting=while_waiting)
        else:
            self._lock.release()

    def _meter(self, sensors: Sensors) -> EnergyMeter | None:
        return EnergyMeter(sensors.counter, now_s=self._now_s) if sensors.counter else None


def _one_pass(runner: PassRunner) -> None:
    runner.enqueue(1)
    runner.collect()


def _clock_lost(clock_mhz: int, times: PassTimes) -> bool:
    if not clock_mhz or times.clock_mhz is None or POWER_CAP in times.throttle:
        return False
    return times.clock_mhz < (1 - CLOCK_LOSS) * clock_mhz


def _rejection(cell: Cell, times: PassTimes) -> str:
    why = ", ".join(times.throttle) or "NVML gives no reason"
    return (
        f"rejected a window: the clock fell to {times.clock_mhz:.0f} MHz under its lock at "
        f"{cell.clock_mhz} MHz ({why})"
    )
