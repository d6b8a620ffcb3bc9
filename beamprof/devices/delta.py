"""Time of a gated delta net in one layer, without its projections (those are GEMMs).

Decodes read and write one state for each value head; the context's length does not matter. A
prompt runs through its tokens in order: few heads leave SMs idle, many fill them.
"""

import numpy as np

from beamprof.devices.device import Device
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
        raise DeviceError(f"{device.name}'s file has no constants for gated delta nets")
    decoding = state_bytes(mixer, requests) / (
        kernels.bandwidth_share * bandwidth(device, clocks_mhz)
    )
    heads = mixer.state_size / MEASURED_STATE
    work = prompts * new_tokens * heads * kernels.head_token_clocks
    paced = np.maximum(new_tokens * kernels.token_clocks, work / device.compute.sms)
    conv = 2.0 * CONV_BYTES * prompts * new_tokens * mixer.conv_channels
    chunk = (paced + conv / kernels.conv_bytes_per_clock) / clocks_mhz
    starts_us = kernels.decode_fixed_us * np.minimum(requests, 1)  # each with kernels of its own
    starts_us = starts_us + kernels.fixed_us * np.minimum(new_tokens, 1)
    return np.asarray(starts_us + decoding + chunk)


def state_bytes(mixer: GatedDelta, requests: Number) -> Number:
    """States of so many requests, read and written."""
    return 2.0 * STATE_BYTES * requests * mixer.state_size
