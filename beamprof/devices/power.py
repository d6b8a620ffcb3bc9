"""Power of one GPU at a clock, and the clock it can hold under its power cap.

    v(f) = 1 for f <= f0, else 1 + s (f - f0)
    P(f) = P0 + e_mem BW + f v(f)^2 (k_clock + k_busy busy + k_tensor u)        f in GHz

busy is 1 while kernels run and 0 while the GPU waits with its clock locked; u is the share of
the tensor cores' peak used over the pass; BW is DRAM traffic over the pass. Temperature and
differences between boards (a few percent) are not modelled.
"""

import numpy as np

from beamprof.devices.device import Device
from beamprof.devices.gemm import Array


def clock_factor_ghz(device: Device, clocks_mhz: Array) -> Array:
    """F v(f)^2: what dynamic power is proportional to."""
    ghz = clocks_mhz / 1e3
    power = device.power
    voltage = 1.0 + power.voltage_slope_per_ghz * np.maximum(0.0, ghz - power.knee_ghz)
    return ghz * voltage**2


def waiting_w(device: Device, clocks_mhz: Array) -> Array:
    """One GPU that waits with its clock locked and a context present."""
    factor = clock_factor_ghz(device, clocks_mhz)
    return device.power.floor_w + factor * device.power.clock_w_per_ghz


def running_w(device: Device, clocks_mhz: Array, tensor_share: Array, dram_tbps: Array) -> Array:
    """One GPU over a pass, as if there were no cap."""
    power = device.power
    dynamic = power.busy_w_per_ghz + power.tensor_w_per_ghz * tensor_share
    return (
        waiting_w(device, clocks_mhz)
        + power.memory_w_per_tbps * dram_tbps
        + clock_factor_ghz(device, clocks_mhz) * dynamic
    )


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
