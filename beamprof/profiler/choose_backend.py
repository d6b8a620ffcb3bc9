"""Which backend measures, and why: chosen by what is here unless told, the reason kept.

--backend given                      that one
tp NVIDIA GPUs and vLLM              vllm: real passes of the engine that will serve
an NVIDIA GPU and torch with CUDA    torch: real passes of the model's kernels
anything else                        modelled: computed from a device file
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from beam_runtime.errors import ClockError
from beamprof.backends.base import MeasureBackend
from beamprof.backends.torchrun import started_ranks
from beamprof.devices.device import Device, detect_device, resolve_device
from beamprof.errors import BackendError
from beamprof.models.shape import ModelShape, StageShape
from beamprof.profiler.plan import ClockChoice, Plan
from beamprof.profiler.spec import SweepSpec

BACKENDS = ("modelled", "torch", "vllm")
DEFAULT_DEVICE = "a100-sxm4-80gb"
CPU = "cpu"


@dataclass(frozen=True, slots=True)
class Choice:
    """A backend, ready to be built once the plan is known.

    Attributes:
        backend: its name.
        reason: why this one, as a sentence for people.
        clocks: the device's name and clocks.
        device_file: what stands behind a modelled device; None where a GPU without one is measured.
        build: makes the backend for a plan; nothing heavy happens before.
    """

    backend: str
    reason: str
    clocks: ClockChoice
    device_file: Device | None
    build: Callable[[Plan], MeasureBackend]

    @property
    def modelled(self) -> bool:
        """Whether numbers are computed rather than measured."""
        return self.backend == "modelled"


@dataclass(frozen=True, slots=True)
class Gpu:
    """The first NVIDIA GPU: what the driver calls it and which clocks it offers."""

    name: str
    supported_mhz: tuple[int, ...]


def choose_backend(spec: SweepSpec, model: ModelShape, stage: StageShape) -> Choice:
    """Choose by what the spec says and what is found here.

    Raises:
        BackendError: an unknown backend, or one asked for that cannot run here.
        DeviceError: an unknown device.
    """
    if spec.device is not None and spec.device != CPU:
        # A misspelt name must not end as "another GPU is here", nor must one written otherwise.
        device = resolve_device(spec.device)
        if not spec.device.endswith(".toml"):
            spec = dataclasses.replace(spec, device=device.name)
    if spec.backend is not None and spec.backend not in BACKENDS:
        raise BackendError(
            f"unknown backend {spec.backend!r}", hint=f"backends are {', '.join(BACKENDS)}"
        )
    if model.quantised and spec.backend is None and spec.device == CPU:
        raise BackendError(
            f"{model.name} is not measured on a CPU: {model.precision}",
            hint="model it: --backend modelled",
        )
    if spec.backend == "modelled":
        return _modelled(spec, model, stage, "modelled, as asked")
    gpu = find_gpu()
    if spec.backend == "vllm":
        _check_vllm(stage)
    if spec.backend is not None:
        return _measured(spec.backend, spec, model, stage, gpu)
    if spec.device == CPU:
        return _measured("torch", spec, model, stage, gpu)
    obstacle = _obstacle_to_torch(spec, gpu)
    if gpu is None or obstacle:
        return _modelled(spec, model, stage, f"modelled, as {obstacle}")
    obstacle = _obstacle_to_vllm(stage)
    if obstacle:
        return _measured("torch", spec, model, stage, gpu, f" ({obstacle})")
    return _measured("vllm", spec, model, stage, gpu, ", as vLLM is installed")


def _obstacle_to_torch(spec: SweepSpec, gpu: Gpu | None) -> str:
    """Why no GPU can be measured with torch here, in words; empty if one can."""
    if gpu is None:
        return "no NVIDIA GPU was found here"
    if spec.device is not None and spec.device != detect_device(gpu.name):
        return f"{spec.device} is asked for and {gpu.name} is here"
    if find_spec("torch") is None:
        return f"torch is not installed (to measure the {gpu.name} here: pip install " + (
            "'beamprof[torch]')"
        )
    if not _torch_sees_cuda():
        return f"this torch cannot use CUDA on the {gpu.name} here"
    return ""


def _obstacle_to_vllm(stage: StageShape) -> str:
    """Why vLLM cannot run the stage's shards on the GPUs here, in words; empty if it can."""
    if find_spec("vllm") is None:
        return "vLLM is not installed here: through it the engine's own steps would be measured"
    if started_ranks() > 1:
        return "torchrun started this; vLLM starts its own workers"
    if stage.dp > 1:
        return f"vLLM is profiled with one data-parallel group, not {stage.dp}"
    gpus = _torch_sees_gpus()
    if gpus < stage.tp:
        return f"vLLM needs {stage.tp} GPUs for tp {stage.tp}, {gpus} can be seen"
    return ""


def _check_vllm(stage: StageShape) -> None:
    if find_spec("vllm") is None:
        raise BackendError(
            "the vllm backend needs vLLM",
            cause="it is not installed beside this beam",
            hint="install beamprof into vLLM's environment: pip install beamprof; or use "
            "--backend torch",
        )
    if started_ranks() > 1:
        raise BackendError(
            "vLLM starts its tensor-parallel workers itself",
            cause="torchrun started this process",
            hint=f"the same without torchrun: beam profile --backend vllm --tp {stage.tp} ...",
        )
    if stage.dp > 1:
        raise BackendError(
            f"the vllm backend profiles one data-parallel group, not {stage.dp}",
            cause="it steps one engine, and the others would have to step with it",
            hint="model it: --backend modelled",
        )


def find_gpu() -> Gpu | None:
    """The GPU that a pass will run on, or None: no driver, no GPU.

    That is torch's first one, which need not be NVML's: a display card may come before it, or
    CUDA_VISIBLE_DEVICES leave others out.
    """
    from beam_runtime.clocks.nvml import NvmlGpus, gpu_count
    from beam_runtime.clocks.visible import visible_gpus

    try:
        if not gpu_count():
            return None
        named = _torchs_first() or visible_gpus()[:1]
        if not named:
            return None
        with NvmlGpus(named) as gpus:
            name = gpus.identities()[0].name
            try:
                supported_mhz = gpus.supported_clocks_mhz()
            except ClockError:
                supported_mhz = ()  # a MIG slice or a virtual GPU: readable, not settable
    except ClockError:
        return None
    return Gpu(name, supported_mhz)


def _torchs_first() -> list[str]:
    """Torch's first GPU, by UUID or else by PCI address; empty where torch has or tells none."""
    if find_spec("torch") is None or not _torch_sees_cuda():
        return []
    import torch

    seen = torch.cuda.get_device_properties(0)
    uuid = str(getattr(seen, "uuid", "") or "")
    if uuid:
        return [uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"]
    try:
        return [f"{seen.pci_domain_id:08x}:{seen.pci_bus_id:02x}:{seen.pci_device_id:02x}.0"]
    except AttributeError:
        return []


def _modelled(spec: SweepSpec, model: ModelShape, stage: StageShape, reason: str) -> Choice:
    device = resolve_device(spec.device or DEFAULT_DEVICE)

    def build(plan: Plan) -> MeasureBackend:
        del plan
        from beamprof.backends.modelled import ModelledBackend

        return ModelledBackend(model, stage, device)

    return Choice("modelled", reason, _clocks(device), device, build)


def _measured(
    backend: str,
    spec: SweepSpec,
    model: ModelShape,
    stage: StageShape,
    gpu: Gpu | None,
    why: str = "",
) -> Choice:
    """Real passes with ``backend``, on the GPU here or on the CPU; ``why`` ends the reason."""
    if spec.device == CPU or (gpu is None and spec.device is None):
        on = f"{backend} on this CPU" + (", as asked" if spec.device else ": no GPU is here")
        clocks = ClockChoice(CPU, running_mhz=cpu_clock_mhz())
        return _measured_choice(backend, spec, model, stage, on, clocks, None)
    if gpu is None:
        raise BackendError(
            f"--backend {backend} --device {spec.device}: no GPU is here",
            cause="the NVIDIA driver shows none, or there is no driver",
            hint=f"model it with --backend modelled, or measure this CPU with --device {CPU}",
        )
    known = detect_device(gpu.name)
    if spec.device is not None and spec.device != known:
        raise BackendError(
            f"--backend {backend} --device {spec.device}: the GPU here is another one",
            cause=f"the driver calls it {gpu.name}" + (f", device {known}" if known else ""),
            hint="leave --device out to measure the GPU here, or use --backend modelled",
        )
    device = resolve_device(known) if known else None
    profile_mhz = device.clocks.profile_mhz if device else ()
    clocks = ClockChoice(
        known or _slug(gpu.name),
        gpu.supported_mhz,
        tuple(mhz for mhz in profile_mhz if mhz in gpu.supported_mhz),
    )
    reason = f"{backend}, measuring the {gpu.name} here{why}"
    return _measured_choice(backend, spec, model, stage, reason, clocks, device)


def _measured_choice(
    backend: str,
    spec: SweepSpec,
    model: ModelShape,
    stage: StageShape,
    reason: str,
    clocks: ClockChoice,
    device: Device | None,
) -> Choice:
    place = "cpu" if clocks.device == CPU else "cuda"

    def build_torch(plan: Plan) -> MeasureBackend:
        from beamprof.backends.allreduce import ModelledAllReduce
        from beamprof.backends.pass_timing import TimingRules
        from beamprof.backends.torch_stage import TorchBackend

        return TorchBackend(
            model,
            stage,
            place=place,
            device=clocks.device,
            rules=TimingRules.within(plan.window_s),
            assume_power_w=spec.assume_power_w,
            allreduce=ModelledAllReduce(device, stage) if device and stage.tp > 1 else None,
        )

    def build_vllm(plan: Plan) -> MeasureBackend:
        from beamprof.backends.pass_timing import TimingRules
        from beamprof.backends.vllm_stage import VllmBackend

        return VllmBackend(
            model,
            stage,
            named=spec.model or model.name,
            steps=plan.steps,
            place=place,
            device=clocks.device,
            rules=TimingRules.within(plan.window_s),
            assume_power_w=spec.assume_power_w,
        )

    build = build_vllm if backend == "vllm" else build_torch
    return Choice(backend, reason, clocks, device, build)


def cpu_clock_mhz(cpuinfo: Path = Path("/proc/cpuinfo")) -> int:
    """The fastest core's clock now, as Linux on x86 tells it; 1 where nobody does."""
    try:
        lines = cpuinfo.read_text("utf-8").splitlines()
    except OSError:
        return 1
    clocks = [float(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")]
    return max(1, round(max(clocks, default=1.0)))


def _slug(gpu_name: str) -> str:
    return gpu_name.removeprefix("NVIDIA ").lower().replace(" ", "-")


def _clocks(device: Device) -> ClockChoice:
    return ClockChoice(device.name, device.clocks.supported_mhz, device.clocks.profile_mhz)


def _torch_sees_cuda() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _torch_sees_gpus() -> int:
    import torch

    return int(torch.cuda.device_count())
