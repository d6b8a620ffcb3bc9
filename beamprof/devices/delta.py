"""Time of a gated delta net in one layer, without its projections (those are GEMMs).

Decodes read and write one state for each value head; the context's length does not matter. A
prompt runs through its tokens in order: few heads leave SMs idle, many fill them. Its own state is
moved as well, whatever its length: once a chunk.
"""

import numpy as np

from beamprof.devices.constants import DeltaKernels
from beamprof.devices.device import Device, devices_with
from beamprof.devices.gemm import Array, bandwidth
from beamprof.errors import DeviceError
from beamprof.models.recurrent import GatedDelta

STATE_BYTES = 4  # float32
CONV_BYTES = 2
MEASURED_STATE = 128 * 128  # numbers of one head's state, in all operators that were fitted
Number = float | Array


def delta_us(
    device: Device,
    mixer: GatedDelta,
    requests: Number,
    prompts: Number,
    new_tokens: Number,
    clocks_mhz: Array,
) -> Array:
    """Microseconds of one layer (M,), or of R of them (R, M) where numbers are columns (R, 1).

    ``requests`` decodes, and prompts of new_tokens each.

    Raises:
        DeviceError: the device file has no constants for it.
    """
    kernels = device.delta
    if kernels is None:
        raise DeviceError(
            f"{device.name}'s file has no constants for gated delta nets",
            hint=devices_with("delta"),
        )
    work_clocks = scan_clocks(device, kernels, mixer.state_size, prompts * new_tokens)
    paced_clocks = np.maximum(new_tokens * kernels.token_clocks, work_clocks)
    states = requests + prompt_states(kernels, prompts, new_tokens)
    bytes_moved = state_bytes(mixer, states)
    bytes_moved = bytes_moved + spilt_bytes(device, mixer.state_size, prompts * new_tokens)
    starts = starts_us(kernels, requests, new_tokens)
    decoding = bytes_moved / (kernels.bandwidth_share * bandwidth(device, clocks_mhz))
    conv = conv_clocks(kernels, mixer.conv_channels, prompts * new_tokens)
    return np.asarray(starts + decoding + (paced_clocks + conv) / clocks_mhz)


def scan_clocks(device: Device, kernels: DeltaKernels, state_size: int, tokens: Number) -> Number:
    """Of all SMs, for so many prompt tokens through states of so many numbers."""
    heads = state_size / MEASURED_STATE
    return tokens * heads * kernels.head_token_clocks / device.compute.sms


def prompt_states(kernels: DeltaKernels, prompts: Number, new_tokens: Number) -> Number:
    """States that so many prompts move, in those that a decode does."""
    return kernels.prompt_states * prompts * np.minimum(new_tokens, 1)


def spilt_bytes(device: Device, state_size: int, tokens: Number) -> Number:
    """What kernels of a prompt hand to each other through DRAM."""
    kernels = device.delta
    between = (kernels.spill_bytes if kernels else 0.0) * tokens * state_size / MEASURED_STATE
    return np.maximum(between - device.memory.l2_mb * 1e6, 0.0)


def conv_clocks(kernels: DeltaKernels, channels: int, tokens: Number) -> Number:
    """Of the short convolution before it: every channel read and written."""
    return 2.0 * CONV_BYTES * tokens * channels / kernels.conv_bytes_per_clock


def starts_us(kernels: DeltaKernels, requests: Number, new_tokens: Number) -> Array:
    """Decodes and prompts have kernels of their own, each with its start."""
    decodes_us = kernels.decode_fixed_us * np.minimum(requests, 1)
    return np.asarray(decodes_us + kernels.fixed_us * np.minimum(new_tokens, 1))


def state_bytes(mixer: GatedDelta, requests: Number) -> Number:
    """States of so many requests, read and written."""
    return 2.0 * STATE_BYTES * requests * mixer.state_size
