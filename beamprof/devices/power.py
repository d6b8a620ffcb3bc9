"""Power of one GPU at a clock, and the clock it can hold under its power cap.

    v(f) = 1 + s max(0, f - f0), its corner rounded over knee_width
    P(f) = P0 + e_mem BW + link
         + f v(f)^2 (k_clock + k_busy (1 - stall m) (1 - idle c) + k_tensor u)

f in GHz; u is the share of the tensor cores' peak used over the pass, BW the DRAM traffic and m
its share of the bandwidth at that clock: SMs that wait for DRAM draw less; c is the share of the
pass that goes to all-reduces and to waiting for the GPU whose experts have the most work, which
leave most SMs idle. A GPU that waits with its clock locked draws P0 + f v(f)^2 k_clock. Temperature
and the differences between boards (a few percent, and the knee f0 within 50 MHz) are not modelled.
"""

from dataclasses import dataclass

import numpy as np

from beamprof.devices.device import Device
from beamprof.devices.gemm import Array


@dataclass(frozen=True, slots=True)
class Utilisation:
    """What a pass uses of a GPU on average, at each clock.

    Attributes:
        tensor_share: FLOPs over the tensor cores' peak at that clock.
        dram_tbps: DRAM traffic; dram_share: the same over the bandwidth at that clock.
        reduce_share: share of the pass that goes to all-reduces and to waiting for a busier GPU.
        linked: the GPU is one of several of a tensor-parallel stage.
    """

    tensor_share: Array
    dram_tbps: Array
    dram_share: Array
    linked: bool
    reduce_share: Array | float = 0.0


def clock_factor_ghz(device: Device, clocks_mhz: Array) -> Array:
    """F v(f)^2: what dynamic power is proportional to."""
    ghz = clocks_mhz / 1e3
    power = device.power
    above, width = ghz - power.knee_ghz, power.knee_width_ghz
    above = width * np.logaddexp(0.0, above / width) if width else np.maximum(0.0, above)
    return np.asarray(ghz * (1.0 + power.voltage_slope_per_ghz * above) ** 2)


def waiting_w(device: Device, clocks_mhz: Array) -> Array:
    """One GPU that waits with its clock locked and a context present."""
    factor = clock_factor_ghz(device, clocks_mhz)
    return device.power.floor_w + factor * device.power.clock_w_per_ghz


def running_w(device: Device, clocks_mhz: Array, use: Utilisation) -> Array:
    """One GPU over a pass, as if there were no cap."""
    power = device.power
    busy = power.busy_w_per_ghz * (1.0 - power.stall_share * use.dram_share)
    busy = busy * (1.0 - power.reduce_idle_share * use.reduce_share)
    dynamic = busy + power.tensor_w_per_ghz * use.tensor_share
    fixed_w = power.memory_w_per_tbps * use.dram_tbps + power.link_w * use.linked
    return waiting_w(device, clocks_mhz) + fixed_w + clock_factor_ghz(device, clocks_mhz) * dynamic


def capped_mhz(clocks_mhz: Array, power_w: Array, cap_w: float) -> float:
    """The largest clock whose power is within the cap, between the given ascending clocks.

    Power is taken as linear from one clock to the next. Where even the lowest clock is above
    the cap, that lowest clock.
    """
    over = np.flatnonzero(power_w > cap_w)
    if over.size == 0:
        return float(clocks_mhz[-1])
    first = int(over[0])
    if first == 0:
        return float(clocks_mhz[0])
    share = (cap_w - power_w[first - 1]) / (power_w[first] - power_w[first - 1])
    return float(clocks_mhz[first - 1] + share * (clocks_mhz[first] - clocks_mhz[first - 1]))
