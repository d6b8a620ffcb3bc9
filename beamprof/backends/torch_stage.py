"""The torch backend: real passes of a stage's shard, on one GPU, on tp GPUs, or on a CPU.

    beam profile ...                              one device; all-reduces from a device file
    torchrun --nproc-per-node TP -m beamprof ...  one device per rank; all-reduces measured

Times kernels as PyTorch has them: a serving engine's fused and paged kernels differ by some
percent, and its host time between steps is not in here.
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from beam_runtime.clocks.base import POWER_CAP
from beam_runtime.clocks.energy import EnergyMeter
from beam_runtime.clocks.lock import ClockLock
from beam_runtime.errors import BeamError
from beam_runtime.schema import RowKind
from beam_runtime.types import Source
from beamprof.backends.base import Measurement
from beamprof.backends.rapl import POWERCAP
from beamprof.backends.torch_estimate import PassEstimate
from beamprof.backends.torch_sensors import Sensors, cpu_sensors, gpu_sensors
from beamprof.backends.torch_timing import PassTimes, TimingRules, time_passes, time_waiting
from beamprof.cells import Cell
from beamprof.console import note
from beamprof.errors import BackendError
from beamprof.model_shape import ModelShape, StageShape

if TYPE_CHECKING:
    from beamprof.backends.torch_ranks import Ranks
    from beamprof.backends.torch_runner import StageRunner

IDLE_WINDOW_MS = 1000.0
CLOCK_LOSS = 0.01  # a pass whose clock fell further below its lock is not that clock's
CELL_TRIES = 3
COOL_DOWN_S = 10.0
_PASSES_PER_CELL = 6  # warm-up and window, where a single pass outlasts both


class AllReduce(Protocol):
    """The exchange between shards that one device alone cannot show (see allreduce.py)."""

    @property
    def name(self) -> str:
        """Where its numbers come from."""
        ...

    def latency_ms(self, tokens: int) -> float:
        """All all-reduces of one pass of so many new tokens."""
        ...

    def power_w(self, clock_mhz: float) -> float:
        """One device's power meanwhile."""
        ...


class TorchBackend:
    """A MeasureBackend. ``open`` imports torch and takes the device; making it costs nothing.

    Args:
        model, stage: the model and its shard.
        place: "cuda" or "cpu".
        device: name for the table, e.g. a100-sxm4-80gb; the driver's own name when empty.
        rules: how long to measure; TimingRules.within(window) for a sweep's fixed window.
        assume_power_w: of one device, used where no energy counter can be read. Idle power
            is then the same number: an assumption knows no load.
        allreduce: added to each pass when tp > 1 and there is one process.
        say: tells a person of rejected cells.
        nvml, rapl_root, now_s, sleep_s: replaced in tests.
    """

    name = "torch"

    def __init__(
        self,
        model: ModelShape,
        stage: StageShape,
        *,
        place: str,
        device: str = "",
        rules: TimingRules | None = None,
        assume_power_w: float | None = None,
        allreduce: AllReduce | None = None,
        say: Callable[[str], None] = note,
        nvml: Any = None,
        rapl_root: Path = POWERCAP,
        now_s: Callable[[], float] = time.perf_counter,
        sleep_s: Callable[[float], None] = time.sleep,
    ) -> None:
        self.model = model
        self.stage = stage
        self._place = place
        self._device = device
        self._rules = rules or TimingRules()
        self._assume_power_w = assume_power_w
        self._allreduce = allreduce
        self._say = say
        self._nvml = nvml
        self._rapl_root = rapl_root
        self._now_s = now_s
        self._sleep_s = sleep_s
        self._estimate = PassEstimate(stage, place)
        self._ranks: Ranks | None = None
        self._runner: StageRunner | None = None
        self._sensors: Sensors | None = None
        self._lock: ClockLock | None = None

    def open(self) -> Mapping[str, str]:
        """Take the device, build the stage, let it check itself.

        Raises:
            BackendError: no torch, no GPU, too little memory, wrong ranks, a failed check.
            ClockUnavailableError: NVML does not work here.
        """
        torch = _import_torch()
        _check_place(torch, self._place)
        self._join_ranks()
        error: BeamError | None = None
        try:
            metadata = self._take_device(torch)
        except BeamError as failure:
            error = failure
        try:
            if self._ranks is not None:
                self._ranks.agree(error)
            elif error is not None:
                raise error
        except BeamError:
            self._runner = None  # nobody follows: close() has no orders to give
            self.close()
            raise
        return metadata

    @property
    def follows(self) -> bool:
        """Whether this process is a rank that only follows rank 0. Known once open."""
        return self._ranks is not None and self._ranks.rank > 0

    def follow(self) -> None:
        """On ranks above 0: run what rank 0 measures, until it closes."""
        from beamprof.backends.torch_ranks import follow

        runner, _ = self._opened()
        if self._ranks is not None:
            follow(self._ranks, runner)

    def run(self, cell: Cell) -> Measurement:
        """Measure one cell at its clock.

        Raises:
            BackendError: it does not fit into memory, or its clock or energy stay wrong.
            ClockError: its clock cannot be set.
        """
        runner, sensors = self._opened()
        if cell.kind is RowKind.IDLE:
            self._set_clock(cell.clock_mhz)
            return self._measure_idle(sensors)
        if cell.shape.tokens == 0:
            raise BackendError("a forward pass needs at least one new token", cause=f"found {cell}")
        begun_s = self._now_s()
        runner.prepare(cell.shape)
        for _ in range(CELL_TRIES):
            self._set_clock(cell.clock_mhz, while_waiting=lambda: _one_pass(runner))
            times = time_passes(
                runner, self._meter(sensors), sensors.gauge, self._rules, now_s=self._now_s
            )
            if not _clock_lost(cell.clock_mhz, times):
                self._estimate.learn(cell.shape, times.mean_ms / 1e3)
                return self._measurement(cell, times, sensors)
            self._say(_rejection(cell, times))
            self._sleep_s(COOL_DOWN_S)
        spent_s = self._now_s() - begun_s
        raise BackendError(
            f"{cell.clock_mhz} MHz is not held: {CELL_TRIES} windows in {spent_s:.0f} s were "
            f"rejected",
            cause=_rejection(cell, times),
            hint="cool the GPU, see that it is yours alone, or leave this clock out of --clocks",
        )

    def estimate_s(self, cell: Cell) -> float:
        """The rules' time, or that of a few passes where they take longer."""
        if cell.kind is RowKind.IDLE:
            return self._rules.discard_s + self._rules.window_s
        return max(self._rules.planned_s, _PASSES_PER_CELL * self._estimate.seconds(cell.shape))

    def close(self) -> None:
        """Release clocks, free memory, leave the ranks. May be called twice."""
        with contextlib.ExitStack() as leaving:
            # Last in, first out: clocks are given back even if freeing memory fails.
            if self._ranks is not None:
                leaving.callback(self._ranks.close)
            if self._runner is not None and not self.follows:
                leaving.callback(self._runner.close)
            if self._lock is not None:
                leaving.callback(self._lock.close)
            self._ranks = self._runner = self._sensors = self._lock = None

    # Opening

    def _join_ranks(self) -> None:
        from beamprof.backends.torch_ranks import Ranks, started_ranks

        size = started_ranks()
        if size == 1:
            return
        if size != self.stage.tp:
            raise BackendError(
                f"torchrun started {size} ranks, --tp is {self.stage.tp}",
                cause="each rank holds one shard of the stage",
                hint=f"torchrun --nproc-per-node {self.stage.tp}, or no torchrun at all",
            )
        self._ranks = Ranks(self._place)

    def _take_device(self, torch: Any) -> dict[str, str]:
        from beamprof.backends.torch_check import check_chunks
        from beamprof.backends.torch_pass import Stage
        from beamprof.backends.torch_runner import CpuRunner, CudaRunner

        ranks = self._ranks
        where = f"cuda:{ranks.local_rank if ranks else 0}" if self._place == "cuda" else "cpu"
        self._sensors = self._find_sensors(torch, where)
        whole = Stage(
            self.model,
            self.stage,
            where,
            reduce=ranks.reduce if ranks else lambda partial: partial,
            seed=ranks.rank if ranks else 0,
        )
        check_chunks(whole)
        own = CudaRunner(whole) if self._place == "cuda" else CpuRunner(whole)
        self._runner = own
        if ranks is not None and ranks.rank == 0:
            from beamprof.backends.torch_ranks import LeadingRunner

            self._runner = LeadingRunner(ranks, own)
        if self._sensors.actuator is not None and not self.follows:
            self._lock = ClockLock(self._sensors.actuator)
            self._lock.__enter__()
        name = self._sensors.metadata["gpu_name"] or "cpu"
        return {
            "device": self._device or name.removeprefix("NVIDIA ").lower().replace(" ", "-"),
            "engine": "torch",
            "engine_version": str(torch.__version__),
            "allreduce": self._allreduce_source(),
            **self._sensors.metadata,
        }

    def _find_sensors(self, torch: Any, where: str) -> Sensors:
        if self._place == "cpu":
            return cpu_sensors(self._assume_power_w, self._rapl_root)
        uuid = f"GPU-{torch.cuda.get_device_properties(where).uuid}"
        # Rank 0 reads and locks the GPUs of all ranks: NVML sees the whole machine.
        uuids = self._ranks.gather(uuid) if self._ranks else [uuid]
        return gpu_sensors(uuids, self._assume_power_w, self._nvml)

    def _allreduce_source(self) -> str:
        if self.stage.tp == 1:
            return "none (tp 1)"
        if self._ranks is not None:
            return "measured"
        return self._allreduce.name if self._allreduce else "left out: no device file"

    # Measuring

    def _opened(self) -> "tuple[StageRunner, Sensors]":
        if self._runner is None or self._sensors is None:
            raise BackendError("the torch backend is not open", hint="call open() first")
        return self._runner, self._sensors

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

    @property
    def _devices_per_metered(self) -> float:
        """A stage has tp devices; with one process one of them is measured and stands for all."""
        return self.stage.tp / (self._ranks.size if self._ranks else 1)

    def _measurement(self, cell: Cell, times: PassTimes, sensors: Sensors) -> Measurement:
        power_w = times.power_w if times.power_w is not None else sensors.assumed_power_w or 0.0
        energy_j = power_w * times.mean_ms / 1e3 * self._devices_per_metered
        relative = times.power_relative_ci or 0.0
        # The mean pass is known about as well as the median.
        relative = (relative**2 + (times.median_ci_ms / times.median_ms) ** 2) ** 0.5
        added_ms = added_j = 0.0
        if self.stage.tp > 1 and self._ranks is None and self._allreduce is not None:
            clock_mhz = times.clock_mhz or float(cell.clock_mhz)
            added_ms = self._allreduce.latency_ms(cell.shape.tokens)
            added_j = self._allreduce.power_w(clock_mhz) * added_ms / 1e3 * self.stage.tp
        return Measurement(
            latency_ms=times.median_ms + added_ms,
            latency_ci_ms=times.median_ci_ms,
            energy_j=energy_j + added_j,
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


def _import_torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise BackendError(
            "the torch backend needs PyTorch",
            cause=str(error),
            hint="pip install 'beamprof[torch]', or use --backend modelled",
        ) from error
    return torch


def _check_place(torch: Any, place: str) -> None:
    if place == "cuda" and not torch.cuda.is_available():
        raise BackendError(
            "no GPU that PyTorch can use",
            cause=f"torch {torch.__version__} finds no CUDA device",
            hint="check nvidia-smi and that torch was built for CUDA; or measure this CPU with "
            "--device cpu, or compute with --backend modelled",
        )


def _one_pass(runner: "StageRunner") -> None:
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
