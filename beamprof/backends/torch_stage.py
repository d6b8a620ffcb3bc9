"""The torch backend: real passes of a stage's shard, on one GPU, on tp GPUs, or on a CPU.

    beam profile --backend torch                  one device; all-reduces from a device file
    torchrun --nproc-per-node TP -m beamprof ...  one device per rank; all-reduces measured

Times kernels as PyTorch has them: a serving engine's fused and paged kernels differ by some
percent, and its host time between steps is not in here.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from beam_runtime.errors import BeamError
from beamprof.backends.base import Measurement
from beamprof.backends.cell import Cell
from beamprof.backends.measuring import MeasuringBackend, StageRunner
from beamprof.backends.pass_timing import TimingRules
from beamprof.backends.rapl import POWERCAP
from beamprof.backends.sensors import Sensors, cpu_sensors, gpu_sensors
from beamprof.backends.torchrun import started_ranks
from beamprof.console import note
from beamprof.errors import BackendError
from beamprof.models.shape import ModelShape, StageShape

if TYPE_CHECKING:
    from beamprof.backends.torch_ranks import Ranks


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


class TorchBackend(MeasuringBackend):
    """A MeasureBackend. ``open`` imports torch and takes the device; making it costs nothing.

    Args:
        model, stage: the model and its shard.
        place: "cuda" or "cpu".
        device: name for the table, e.g. a100-sxm4-80gb; the driver's own name when empty.
        rules, assume_power_w, say: see MeasuringBackend.
        allreduce: added to each pass when tp > 1 and there is one process.
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
        super().__init__(
            stage,
            place=place,
            rules=rules,
            assume_power_w=assume_power_w,
            say=say,
            now_s=now_s,
            sleep_s=sleep_s,
        )
        self.model = model
        self._device = device
        self._allreduce = allreduce
        self._nvml = nvml
        self._rapl_root = rapl_root
        self._ranks: Ranks | None = None

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

    def close(self) -> None:
        """Release clocks, free memory, leave the ranks. May be called twice."""
        with contextlib.ExitStack() as leaving:
            if self._ranks is not None:
                leaving.callback(self._ranks.close)
            if self.follows:
                self._runner = None  # follow() has closed it
            self._release(leaving)
            self._ranks = None

    # Opening

    def _join_ranks(self) -> None:
        from beamprof.backends.torch_ranks import Ranks

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
        if not self.follows:
            self._take_lock(self._sensors)
        return {
            "device": self._device or self._sensors.device,
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

    @property
    def _devices_per_metered(self) -> float:
        """With one process one device is measured and stands for all."""
        return self.stage.tp / (self._ranks.size if self._ranks else 1)

    def _measure(self, cell: Cell, runner: StageRunner, sensors: Sensors) -> Measurement:
        row = super()._measure(cell, runner, sensors)
        if self.stage.tp == 1 or self._ranks is not None or self._allreduce is None:
            return row
        clock_mhz = row.clock_reached_mhz or float(cell.clock_mhz)
        added_ms = self._allreduce.latency_ms(cell.shape.tokens)
        added_j = self._allreduce.power_w(clock_mhz) * added_ms / 1e3 * self.stage.tp
        return dataclasses.replace(
            row, latency_ms=row.latency_ms + added_ms, energy_j=row.energy_j + added_j
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
