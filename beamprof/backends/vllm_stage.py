"""The vllm backend: passes of a stage as vLLM itself runs them, engine step by engine step.

    cell -> requests (vllm_cells) -> one step each in vLLM (vllm_engine, its own process)
    tp   by vLLM: its workers, its all-reduces
    pp   by an engine without a pipeline that has one stage's layers (vllm_layers)

A pass is what lies between vLLM's schedule() and its update_from_output(): preparing the batch,
the model, sampling (greedy). What lies between two passes is the host gap, told in the table's
metadata; a serving engine's API server comes on top of it. Weights are random, and so is the KV
cache: outputs mean nothing. Sending activations from stage to stage is not measured.
"""

import contextlib
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from beam_runtime.types import StepShape
from beamprof.backends.base import Measurement
from beamprof.backends.cell import Cell
from beamprof.backends.measuring import MeasuringBackend, StageRunner
from beamprof.backends.pass_timing import TimingRules
from beamprof.backends.rapl import POWERCAP
from beamprof.backends.sensors import Sensors, cpu_sensors, gpu_sensors
from beamprof.backends.vllm_cells import envelope
from beamprof.backends.vllm_layers import layer_counts, stage_of
from beamprof.backends.vllm_model import model_folder
from beamprof.backends.vllm_process import VllmProcess
from beamprof.console import note
from beamprof.models.shape import ModelShape, StageShape

# The decodes by which the host gap is measured, and the context of each.
GAP_DECODES, GAP_CONTEXT_TOKENS, GAP_PASSES = 16, 64, 60
# What vLLM leaves to others of a GPU's memory by default.
GPU_MEMORY_SHARE = 0.9
_GIB = 1 << 30
BIND = "VLLM_CPU_OMP_THREADS_BIND"


class VllmBackend(MeasuringBackend):
    """A MeasureBackend. ``open`` starts vLLM, which takes a minute; making it costs nothing.

    Args:
        model, stage: the model and its shard.
        named: how the user named the model; a folder is given to vLLM as it is.
        steps: the sweep's passes, which the engine is started for.
        place: "cuda" or "cpu".
        device: name for the table; the driver's own name when empty.
        rules, assume_power_w, say: see MeasuringBackend.
        clock: "wall", or "cpu" for the time that vLLM's thread had of its core: benchmarks on a
            machine that is shared.
        nvml, rapl_root, now_s, sleep_s: replaced in tests.
    """

    name = "vllm"

    def __init__(
        self,
        model: ModelShape,
        stage: StageShape,
        *,
        named: str,
        steps: Sequence[StepShape],
        place: str,
        device: str = "",
        rules: TimingRules | None = None,
        assume_power_w: float | None = None,
        say: Callable[[str], None] = note,
        clock: str = "wall",
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
        self._named = named
        self._steps = (*steps, _gap_step(steps))
        self._device = device
        self._clock = clock
        self._nvml = nvml
        self._rapl_root = rapl_root
        self._layers = layer_counts(stage.layers, stage.pp)
        self._engines: list[VllmProcess] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def open(self) -> Mapping[str, str]:
        """Start vLLM, once for each layer count, and measure its host gap.

        Raises:
            BackendError: vLLM does not start here or lacks something; no energy can be read.
            ClockUnavailableError: NVML does not work here.
        """
        if self._place == "cpu":  # before a minute of starting
            self._sensors = cpu_sensors(self._assume_power_w, self._rapl_root)
        self._folder = tempfile.TemporaryDirectory(prefix="beam-vllm-")
        folder = model_folder(self._named, self.model, Path(self._folder.name))
        for layers in self._layers:
            self._say(f"starting vLLM with {layers} of {self.model.layers} layers")
            self._engines.append(
                VllmProcess(self._options(folder, layers), self._environment())
            )  # fmt: skip
        first = self._runner = self._engines[0]
        if self._sensors is None:
            self._sensors = gpu_sensors(first.report["uuids"], self._assume_power_w, self._nvml)
        self._take_lock(self._sensors)
        return {
            "device": self._device or self._sensors.device,
            "engine": "vllm",
            "engine_version": str(first.report["version"]),
            "allreduce": "measured" if self.stage.tp > 1 else "none (tp 1)",
            "host_gap_ms": f"{self._host_gap_ms(first):.4g}",
            **self._sensors.metadata,
        }

    def close(self) -> None:
        """Release clocks, end vLLM. May be called twice."""
        with contextlib.ExitStack() as leaving:
            if self._folder is not None:
                leaving.callback(self._folder.cleanup)
            for engine in self._engines[1:]:
                leaving.callback(engine.close)
            self._runner = self._engines[0] if self._engines else None
            self._release(leaving)
            self._engines, self._folder = [], None

    def estimate_s(self, cell: Cell) -> float:
        """Once for every engine."""
        return super().estimate_s(cell) * max(1, len(self._engines))

    def _measure(self, cell: Cell, runner: StageRunner, sensors: Sensors) -> Measurement:
        rows = []
        for engine in self._engines:
            times = self._time(cell, engine, sensors)
            # A counter goes on through gaps and admissions, so the energy of a step does too.
            counted_ms = times.mean_ms if times.power_w is None else engine.step_ms
            rows.append(self._measurement(times, sensors, counted_ms))
        return stage_of(rows, self._layers, self.stage.pp)

    def _host_gap_ms(self, engine: VllmProcess) -> float:
        for _ in range(2):  # the first time everything is cold
            engine.prepare(self._steps[-1])
            engine.enqueue(GAP_PASSES)
            engine.collect()
        return engine.gap_ms

    def _options(self, folder: Path, layers: int) -> dict[str, Any]:
        needs = envelope(self._steps)
        more: dict[str, Any] = {"enable_expert_parallel": self.stage.ep > 1}
        if self._place == "cpu":
            more["enforce_eager"] = True  # vLLM compiles CPU kernels with a compiler of the host's
        elif len(self._layers) > 1:
            more["gpu_memory_utilization"] = GPU_MEMORY_SHARE / len(self._layers)
        return {
            "model": str(folder),
            "layers": layers,
            "tp": self.stage.tp,
            "dtype": self.model.dtype,
            "max_model_len": needs.max_model_len,
            "max_positions": max(needs.max_model_len, self.model.max_model_len),
            "max_batched_tokens": max(needs.max_batched_tokens, needs.max_seqs),
            "max_seqs": needs.max_seqs,
            "clock": self._clock,
            "more": more,
        }

    def _environment(self) -> dict[str, str]:
        if self._place != "cpu":
            return {}
        kv_bytes = envelope(self._steps).kv_tokens * self.stage.kv_bytes_per_token
        per_layer = kv_bytes / self.stage.layers
        # Half as much again for blocks that vLLM keeps to itself; it takes whole GiB.
        gib = math.ceil(1.5 * per_layer * max(self._layers) / _GIB)
        environment = {"VLLM_CPU_KVCACHE_SPACE": str(gib)}
        if self.stage.tp > 1 and BIND not in os.environ:
            # Left to itself, vLLM wants a NUMA node for every worker.
            environment[BIND] = "|".join(str(core) for core in range(self.stage.tp))
        return environment


def _gap_step(steps: Sequence[StepShape]) -> StepShape:
    decodes = min(GAP_DECODES, max((step.decode_requests for step in steps), default=1) or 1)
    return StepShape(
        decode_requests=decodes, decode_context_tokens=decodes * GAP_CONTEXT_TOKENS
    )  # fmt: skip
