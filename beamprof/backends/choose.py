"""Which backend measures, and why: chosen by what is here unless told, the reason kept.

--backend given                      that one
an NVIDIA GPU and torch with CUDA    torch: real passes
anything else                        modelled: computed from a device file
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

from beam_runtime.errors import ClockError
from beamprof.backends.base import MeasureBackend
from beamprof.devices.device import Device, detect_device, resolve_device
from beamprof.errors import BackendError
from beamprof.model_shape import ModelShape, StageShape
from beamprof.plan import ClockChoice, Plan
from beamprof.spec import SweepSpec

BACKENDS = ("modelled", "torch")
DEFAULT_DEVICE = "a100-sxm4-80gb"


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
    if spec.backend is not None and spec.backend not in BACKENDS:
        raise BackendError(
            f"unknown backend {spec.backend!r}", hint=f"backends are {', '.join(BACKENDS)}"
        )
    if spec.backend == "modelled":
        return _modelled(spec, model, stage, "modelled, as asked")
    if spec.backend == "torch":
        return _torch(spec, model, stage, find_gpu())
    gpu = find_gpu()
    if gpu is None:
        return _modelled(spec, model, stage, "modelled, as no NVIDIA GPU was found here")
    obstacle = _obstacle_to_torch(spec, gpu)
    if obstacle:
        return _modelled(spec, model, stage, f"modelled, as {obstacle}")
    return _torch(spec, model, stage, gpu)


def _obstacle_to_torch(spec: SweepSpec, gpu: Gpu) -> str:
    """Why the GPU here cannot be measured with torch, in words; empty if it can."""
    if spec.device is not None and spec.device != detect_device(gpu.name):
        return f"{spec.device} is asked for and {gpu.name} is here"
    if find_spec("torch") is None:
        return f"torch is not installed (to measure the {gpu.name} here: pip install " + (
            "'beamprof[torch]')"
        )
    if not _torch_sees_cuda():
        return f"this torch cannot use CUDA on the {gpu.name} here"
    return ""


def find_gpu() -> Gpu | None:
    """The first NVIDIA GPU that the driver shows, or None: no driver, no GPU."""
    from beam_runtime.clocks.nvml import NvmlGpus

    try:
        with NvmlGpus([0]) as gpus:
            name = gpus.identities()[0].name
            try:
                supported_mhz = gpus.supported_clocks_mhz()
            except ClockError:
                supported_mhz = ()  # a MIG slice or a virtual GPU: readable, not settable
    except ClockError:
        return None
    return Gpu(name, supported_mhz)


def _modelled(spec: SweepSpec, model: ModelShape, stage: StageShape, reason: str) -> Choice:
    device = resolve_device(spec.device or DEFAULT_DEVICE)

    def build(plan: Plan) -> MeasureBackend:
        del plan
        from beamprof.backends.modelled import ModelledBackend

        return ModelledBackend(model, stage, device)

    return Choice("modelled", reason, _clocks(device), device, build)


def _torch(spec: SweepSpec, model: ModelShape, stage: StageShape, gpu: Gpu | None) -> Choice:
    raise BackendError("the torch backend is not there yet", hint="--backend modelled")


def _clocks(device: Device) -> ClockChoice:
    return ClockChoice(device.name, device.clocks.supported_mhz, device.clocks.profile_mhz)


def _torch_sees_cuda() -> bool:
    import torch

    return bool(torch.cuda.is_available())
