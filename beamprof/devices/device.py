"""A GPU as the modelled backend sees it: clocks, peaks and fitted constants, from a TOML file.

Knows how to find and check a device file and which clocks the device offers. Does not talk to
a driver: what a real GPU supports comes from beam_runtime.clocks. Every constant's source and
error stand beside it in its file.
"""

import dataclasses
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from beam_runtime.errors import ClockUnavailableError
from beamprof.errors import DeviceError

_Section = TypeVar("_Section")


@dataclass(frozen=True, slots=True)
class Clocks:
    """The SM clocks that can be locked, and those a profile takes when none are asked for."""

    min_mhz: int
    max_mhz: int
    step_mhz: int
    profile_mhz: tuple[int, ...]

    @property
    def supported_mhz(self) -> tuple[int, ...]:
        """Every clock the device offers, ascending."""
        return tuple(range(self.min_mhz, self.max_mhz + 1, self.step_mhz))


@dataclass(frozen=True, slots=True)
class Compute:
    """The SMs. Rates are per SM clock, so a time is cycles over MHz.

    Attributes:
        sms: streaming multiprocessors.
        tensor_flops_per_clock: dense bf16 FLOPs of one SM in one clock.
        gemm_efficiency: share of that rate which a GEMM's main loop sustains.
        gemm_load_bytes_per_clock: operand bytes that one SM takes in per clock (from L2).
        attention_efficiency: share of the tensor rate in chunk attention.
        kv_bytes_per_clock: KV-cache bytes that one SM's decode attention takes in per clock.
        activation_bytes_per_clock: elementwise traffic of the whole GPU per clock (mostly L2).
    """

    sms: int
    tensor_flops_per_clock: int
    gemm_efficiency: float
    gemm_load_bytes_per_clock: float
    attention_efficiency: float
    kv_bytes_per_clock: float
    activation_bytes_per_clock: float


@dataclass(frozen=True, slots=True)
class Memory:
    """DRAM bandwidth against SM clock, linear between its knots.

    Attributes:
        clocks_mhz, bandwidth_tbps: the knots.
        overlap_exponent: p of (compute^p + memory^p)^(1/p); infinity would be perfect overlap.
    """

    clocks_mhz: tuple[float, ...]
    bandwidth_tbps: tuple[float, ...]
    overlap_exponent: float


@dataclass(frozen=True, slots=True)
class Launch:
    """What a kernel costs besides its work, inside a CUDA graph."""

    kernels_per_layer: int
    kernel_us: float


@dataclass(frozen=True, slots=True)
class AllReduce:
    """One all-reduce over a stage's GPUs: latency, and bandwidth of two ranks."""

    latency_us: float
    bandwidth_gbps: float


@dataclass(frozen=True, slots=True)
class Power:
    """Per-GPU power; see beamprof.devices.power for the law.

    Attributes:
        floor_w: P0, what does not follow the SM clock.
        knee_ghz: f0, up to where the core voltage is at its minimum.
        voltage_slope_per_ghz: s, relative rise of the voltage above the knee.
        clock_w_per_ghz: the clock tree of a GPU that waits.
        busy_w_per_ghz: on top, SMs that run kernels.
        stall_share: share of busy_w_per_ghz saved while the SMs wait for DRAM.
        tensor_w_per_ghz: on top, tensor cores at their peak.
        memory_w_per_tbps: DRAM traffic.
        link_w: links to the other GPUs of a tensor-parallel stage, while it runs.
        cap_w: the board's power limit.
    """

    floor_w: float
    knee_ghz: float
    voltage_slope_per_ghz: float
    clock_w_per_ghz: float
    busy_w_per_ghz: float
    stall_share: float
    tensor_w_per_ghz: float
    memory_w_per_tbps: float
    link_w: float
    cap_w: float


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU model. ``accuracy`` says in words how far its numbers can be trusted."""

    name: str
    nvml_names: tuple[str, ...]
    accuracy: str
    clocks: Clocks
    compute: Compute
    memory: Memory
    launch: Launch
    allreduce: AllReduce
    power: Power

    def check_clocks(self, clocks_mhz: Iterable[int]) -> None:
        """Refuse clocks that the device does not offer.

        Raises:
            ClockUnavailableError: the hint names the nearest clocks it does offer.
        """
        supported = self.clocks.supported_mhz
        wrong = sorted({clock for clock in clocks_mhz if clock not in set(supported)})
        if wrong:
            nearest = sorted({min(supported, key=lambda c: abs(c - clock)) for clock in wrong})
            raise ClockUnavailableError(
                f"{self.name} cannot lock {_listed(wrong)} MHz",
                cause=f"it offers {supported[0]}..{supported[-1]} MHz in steps of "
                f"{self.clocks.step_mhz}",
                hint=f"nearest: {_listed(nearest)} MHz",
            )


def device_names() -> list[str]:
    """The devices that ship with BEAM."""
    files = resources.files("beamprof.devices").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def resolve_device(name: str) -> Device:
    """A device that ships with BEAM, or the path of a device file of one's own.

    Raises:
        DeviceError: unknown name, or a file that cannot be read or understood.
    """
    if name.endswith(".toml"):
        path = Path(name).expanduser()
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DeviceError(
                f"cannot read the device file {name}", cause=str(error), hint=_known_hint()
            ) from None
        return parse_device(text, path.stem, name)
    if name.lower() not in device_names():
        raise DeviceError(
            f"unknown device {name!r}",
            cause="no device file of that name ships with BEAM",
            hint=_known_hint(),
        )
    file = f"{name.lower()}.toml"
    text = resources.files("beamprof.devices").joinpath(file).read_text("utf-8")
    return parse_device(text, name.lower(), file)


def detect_device(nvml_name: str) -> str | None:
    """The device file for a GPU as the driver names it, e.g. 'NVIDIA A100-SXM4-80GB'."""
    for name in device_names():
        if nvml_name.lower() in (known.lower() for known in resolve_device(name).nvml_names):
            return name
    return None


def parse_device(text: str, name: str, where: str) -> Device:
    """A device from the text of its file.

    Raises:
        DeviceError: not TOML; a section or constant that is missing, unknown or senseless.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DeviceError(f"{where} is not TOML", cause=str(error)) from None
    device = Device(
        name=name,
        nvml_names=tuple(map(str, data.pop("nvml_names", []))),
        accuracy=str(data.pop("accuracy", "not stated")),
        clocks=_section(Clocks, data, where),
        compute=_section(Compute, data, where),
        memory=_section(Memory, data, where),
        launch=_section(Launch, data, where),
        allreduce=_section(AllReduce, data, where),
        power=_section(Power, data, where),
    )
    if data:
        raise DeviceError(f"{where} has an unknown entry {next(iter(data))!r}")
    _check(device, where)
    return device


def _section(kind: type[_Section], data: dict[str, Any], where: str) -> _Section:
    section = kind.__name__.lower()
    table = data.pop(section, None)
    if not isinstance(table, dict):
        raise DeviceError(f"{where} lacks the section [{section}]", hint=_example_hint())
    wanted = {field.name: field.type for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in wanted.keys() ^ table.keys():
        fault = "lacks" if key in wanted else "has an unknown"
        raise DeviceError(f"{where}: [{section}] {fault} {key!r}", hint=_example_hint())
    values = {}
    for key, value in table.items():
        numbers = value if isinstance(value, list) else [value]
        is_list = str(wanted[key]).startswith("tuple")
        if is_list != isinstance(value, list) or not numbers or not all(map(_is_number, numbers)):
            expected = "a list of numbers" if is_list else "a number"
            raise DeviceError(
                f"{where}: [{section}] {key} must be {expected}, 0 or more, found {value!r}"
            )
        values[key] = tuple(value) if is_list else value
    return kind(**values)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9


def _check(device: Device, where: str) -> None:
    """Values that would divide by zero or make no sense together."""
    clocks, memory = device.clocks, device.memory
    if not 0 < clocks.min_mhz <= clocks.max_mhz or clocks.step_mhz < 1:
        raise DeviceError(f"{where}: [clocks] must have 0 < min_mhz <= max_mhz and step_mhz >= 1")
    if not set(clocks.profile_mhz) <= set(clocks.supported_mhz):
        raise DeviceError(f"{where}: [clocks] profile_mhz holds clocks outside the device's list")
    if len(memory.clocks_mhz) != len(memory.bandwidth_tbps):
        raise DeviceError(f"{where}: [memory] clocks_mhz and bandwidth_tbps differ in length")
    if list(memory.clocks_mhz) != sorted(set(memory.clocks_mhz)):
        raise DeviceError(f"{where}: [memory] clocks_mhz must ascend")
    rates = {
        **{f"compute.{k}": v for k, v in dataclasses.asdict(device.compute).items()},
        "memory.overlap_exponent": memory.overlap_exponent,
        "memory.bandwidth_tbps": min(memory.bandwidth_tbps),
        "allreduce.bandwidth_gbps": device.allreduce.bandwidth_gbps,
        "power.cap_w": device.power.cap_w,
    }
    for key, value in rates.items():
        if value <= 0:
            raise DeviceError(f"{where}: {key} must be above 0, found {value}")
    if device.power.stall_share > 1:
        raise DeviceError(
            f"{where}: power.stall_share must be 0 to 1, found {device.power.stall_share}"
        )


def _known_hint() -> str:
    return f"known devices: {_listed(device_names())}; or give the path of a device file (.toml)"


def _example_hint() -> str:
    return "compare it with a device file that ships in beamprof/devices/"


def _listed(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values)
