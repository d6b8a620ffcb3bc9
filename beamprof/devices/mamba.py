"""Time of a Mamba-2 layer, without its projections (those are GEMMs).

No Mamba-2 kernel has been measured for the device files. Decodes read and write a state, as those
of gated delta nets do, at the same share of the bandwidth: bytes decide them. A prompt's scan is
taken as the work of a gated delta net with as large a state; it is not paced token by token, since
the chunks of a prompt are worked on side by side and only their states are handed on in order
(arXiv 2405.21060, section 6). assumed.py says so wherever such numbers are used.
"""

import numpy as np

from beamprof.devices.delta import Number, conv_clocks, prompt_states, scan_clocks, starts_us
from beamprof.devices.device import Device, devices_with
from beamprof.devices.gemm import Array, bandwidth
from beamprof.errors import DeviceError
from beamprof.models.recurrent import Mamba2


def mamba_us(
    device: Device,
    mixer: Mamba2,
    requests: Number,
    prompts: Number,
    new_tokens: Number,
    clocks_mhz: Array,
) -> Array:
    """Microseconds of one layer (M,), or of R of them (R, M) where numbers are columns (R, 1).

    ``requests`` decodes, and prompts of new_tokens each.

    Raises:
        DeviceError: the device file has no constants for states.
    """
    kernels = device.delta
    if kernels is None:
        raise DeviceError(
            f"{device.name}'s file has no constants for gated delta nets, by which Mamba-2 layers "
            "are modelled",
            hint=devices_with("delta"),
        )
    scan = scan_clocks(device, kernels, mixer.state_size, prompts * new_tokens)
    conv = conv_clocks(kernels, mixer.conv_channels, prompts * new_tokens)
    states = requests + prompt_states(kernels, prompts, new_tokens)
    bytes_moved = mamba_state_bytes(mixer, states)
    starts = starts_us(kernels, requests, new_tokens)
    decoding = bytes_moved / (kernels.bandwidth_share * bandwidth(device, clocks_mhz))
    return np.asarray(starts + decoding + (scan + conv) / clocks_mhz)


def mamba_state_bytes(mixer: Mamba2, requests: Number) -> Number:
    """States of so many requests, read and written."""
    return 2.0 * mixer.state_bytes * requests * mixer.state_size
