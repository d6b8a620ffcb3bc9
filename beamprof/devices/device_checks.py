"""Is a device file of a GPU that can be? Looked at once, where it is read."""

import dataclasses

import numpy as np

from beamprof.devices.constants import AllReduce
from beamprof.devices.device import Device
from beamprof.devices.power import Utilisation, running_w
from beamprof.devices.routing import TILE_ROWS
from beamprof.errors import DeviceError

# Measured bandwidth may fall a little as the clock rises: by 9 % where an A100 PCIe's memory system
# changes gear.
_LEAST_OF_LOWER = 0.85
_TOO_HIGH_MHZ = 100_000
# The most of each that a GPU of the next years may have, ten times what one has today or so: more
# is another unit, or the whole GPU's where one SM's is asked for.
_MOST = {
    "compute.sms": (2_000, "SMs of one GPU"),
    "compute.tensor_flops_per_clock": (100_000, "FLOPs of one SM in one clock"),
    "memory.size_gb": (3_000, "10^9 bytes"),
    "memory.l2_mb": (3_000, "10^6 bytes"),
    "memory.bandwidth_tbps": (200, "10^12 bytes per second"),
    "power.cap_w": (20_000, "watts of one GPU"),
}


def check(device: Device, where: str) -> None:
    """Refuse values that would divide by zero, make no sense together, or cannot be of a GPU.

    Raises:
        DeviceError: the first of them, by its section and name.
    """
    clocks, memory = device.clocks, device.memory
    if not 0 < clocks.min_mhz <= clocks.max_mhz < _TOO_HIGH_MHZ or clocks.step_mhz < 1:
        raise DeviceError(
            f"{where}: [clocks] must have 0 < min_mhz <= max_mhz < {_TOO_HIGH_MHZ} and "
            "step_mhz >= 1"
        )
    if not set(clocks.profile_mhz) <= set(clocks.supported_mhz):
        raise DeviceError(f"{where}: [clocks] profile_mhz holds clocks outside the device's list")
    if len(memory.clocks_mhz) != len(memory.bandwidth_tbps):
        raise DeviceError(f"{where}: [memory] clocks_mhz and bandwidth_tbps differ in length")
    if list(memory.clocks_mhz) != sorted(set(memory.clocks_mhz)):
        raise DeviceError(f"{where}: [memory] clocks_mhz must ascend")
    reduce = device.allreduce
    knots = len(reduce.message_bytes)
    if knots < 2 or any(len(us) != knots for us in (reduce.us_2, reduce.us_4, reduce.us_8)):
        raise DeviceError(f"{where}: [allreduce] us_2, us_4 and us_8 need a number for each knot")
    if list(reduce.message_bytes) != sorted(set(reduce.message_bytes)):
        raise DeviceError(f"{where}: [allreduce] message_bytes must ascend")
    rates = {
        **{f"compute.{k}": v for k, v in dataclasses.asdict(device.compute).items()},
        "memory.size_gb": memory.size_gb,
        "memory.bandwidth_tbps": min(memory.bandwidth_tbps),
        "power.cap_w": device.power.cap_w,
    }
    for section, kernels in (
        *((f"gemm.{form}", k) for form, k in device.gemm.items()),
        *((f"attention.{form}", k) for form, k in device.attention.items()),
        *((f"moe.{form}", k) for form, k in device.moe.items()),
        ("latent", device.latent),
        ("delta", device.delta),
    ):
        if kernels is not None:
            rates |= {f"{section}.{key}": _least(kernels, key) for key in _RATES & _keys(kernels)}
    for key, value in rates.items():
        if value <= 0:
            raise DeviceError(f"{where}: {key} must be above 0, found {value}")
    rates |= {"memory.l2_mb": memory.l2_mb, "memory.bandwidth_tbps": max(memory.bandwidth_tbps)}
    for key, (most, unit) in _MOST.items():
        if rates[key] > most:
            raise DeviceError(
                f"{where}: {key} must be {most:,} at most, found {rates[key]:,g}",
                hint=f"it is in {unit}",
            )
    _check_kernels(device, where)
    _check_allreduce(reduce, where)
    _check_physics(device, where)


def _check_physics(device: Device, where: str) -> None:
    """What no GPU does: less bandwidth at a higher clock, a limit that its lowest clock breaks."""
    power, memory = device.power, device.memory
    for name in ("stall_share", "reduce_idle_share"):
        if getattr(power, name) > 1:
            raise DeviceError(f"{where}: power.{name} must be 0 to 1, found {getattr(power, name)}")
    highest = np.maximum.accumulate(memory.bandwidth_tbps)
    for at, (tbps, before) in enumerate(zip(memory.bandwidth_tbps, highest, strict=True)):
        if tbps < _LEAST_OF_LOWER * before:
            raise DeviceError(
                f"{where}: [memory] bandwidth_tbps falls with the clock, from {before:g} to "
                f"{tbps:g} at {memory.clocks_mhz[at]:g} MHz",
                hint="it follows clocks_mhz, which ascend",
            )
    lowest = np.array([float(device.clocks.min_mhz)])
    most_tbps = float(np.interp(lowest[0], memory.clocks_mhz, memory.bandwidth_tbps))
    busy = Utilisation(np.ones(1), most_tbps * np.ones(1), np.ones(1), linked=True)
    needed_w = float(running_w(device, lowest, busy)[0])
    if needed_w > power.cap_w:
        raise DeviceError(
            f"{where}: [power] cap_w {power.cap_w:g} cannot be held: at its lowest clock, "
            f"{device.clocks.min_mhz} MHz, a busy GPU draws {needed_w:.0f} W by this file",
            hint=f"floor_w is {power.floor_w:g}: watts of one GPU, both",
        )


def _check_allreduce(reduce: AllReduce, where: str) -> None:
    """Times that fall with size would make passes of more tokens faster."""
    for gpus, us in ((2, reduce.us_2), (4, reduce.us_4), (8, reduce.us_8)):
        if list(us) != sorted(us):
            raise DeviceError(
                f"{where}: [allreduce] us_{gpus} falls: a larger message never takes less time"
            )


def _check_kernels(device: Device, where: str) -> None:
    """Numbers by head size, and tiles that exist."""
    for form, attention in device.attention.items():
        tuples = (attention.efficiency, attention.kv_bytes_per_clock, attention.slid_us)
        if any(column and len(column) != len(attention.head_dims) for column in tuples):
            raise DeviceError(
                f"{where}: [attention.{form}] efficiency, kv_bytes_per_clock and slid_us need a "
                "number for each of head_dims"
            )
    for form, moe in device.moe.items():
        if moe.least_rows > max(TILE_ROWS):
            raise DeviceError(
                f"{where}: moe.{form}.least_rows must be at most {max(TILE_ROWS)}, "
                f"found {moe.least_rows}"
            )


# Constants that something is divided by.
_RATES = {"efficiency", "load_bytes_per_clock", "overlap_exponent", "rate", "bandwidth_share",
          "row_bytes_per_clock", "kv_bytes_per_clock", "chunk_efficiency",
          "decode_efficiency", "query_bandwidth_share", "conv_bytes_per_clock", "query_rows",
          "chunk_exponent", "decode_exponent", "ragged_share"}  # fmt: skip


def _keys(kernels: object) -> set[str]:
    return {field.name for field in dataclasses.fields(kernels)}  # type: ignore[arg-type]


def _least(kernels: object, key: str) -> float:
    value = getattr(kernels, key)
    return float(min(value) if isinstance(value, tuple) else value)
