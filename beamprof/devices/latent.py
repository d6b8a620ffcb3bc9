"""Time of multi-head latent attention in one layer, without its projections (those are GEMMs).

Decodes absorb the projection of keys and values: every head multiplies with the latent cache
itself, kv_rank + rope_dim elements a token, read once for all heads. Chunks expand the latent
cache to keys and values and attend as others do.
"""

import numpy as np

from beamprof.devices.attention import mean_keys
from beamprof.devices.device import Device, devices_with
from beamprof.devices.gemm import Array, bandwidth, soft_max
from beamprof.errors import DeviceError
from beamprof.models.formats import KV_BYTES
from beamprof.models.layers import LatentAttention

EXPONENT = 4.0
Number = float | Array


def latent_us(
    device: Device,
    mixer: LatentAttention,
    kv: str,
    decodes: tuple[Number, Number],
    chunk: tuple[Number, Number, Number],
    clocks_mhz: Array,
) -> Array:
    """Microseconds of one layer (M,), or of R of them (R, M) where numbers are columns (R, 1).

    ``decodes`` are requests, and their context tokens together; ``chunk`` is prompts, new tokens of
    each (0 = none), tokens before each.

    Raises:
        DeviceError: the device file has no constants for it.
    """
    kernels = device.latent
    if kernels is None:
        raise DeviceError(
            f"{device.name}'s file has no constants for latent attention (MLA)",
            hint=devices_with("latent"),
        )
    rate = device.compute.sms * device.compute.tensor_flops_per_clock * clocks_mhz
    decode_flops, chunk_flops = latent_flops(mixer, decodes, chunk)
    prompts, new_tokens, before = chunk
    prompts = prompts * np.minimum(new_tokens, 1)
    cached = decodes[1] + decodes[0] + prompts * (new_tokens + before)
    moved = cached * mixer.kv_per_token * KV_BYTES[kv]
    moved_us = moved / (kernels.bandwidth_share * bandwidth(device, clocks_mhz))
    busy_us = decode_flops / (rate * kernels.decode_efficiency)
    busy_us = busy_us + chunk_flops / (rate * kernels.chunk_efficiency)
    tokens = decodes[0] + prompts * new_tokens
    rows = tokens * mixer.heads * (mixer.nope_dim + mixer.rope_dim + mixer.value_dim)
    # Absorbed queries and outputs are as wide as the latent cache, for each head.
    rows = rows + 2.0 * decodes[0] * mixer.heads * mixer.kv_rank
    expanded = prompts * (new_tokens + before) * mixer.heads * (mixer.nope_dim + mixer.value_dim)
    rows_us = 2.0 * (rows + expanded) / (kernels.row_bytes_per_clock * clocks_mhz)
    fixed_us = kernels.fixed_us + (kernels.fp8_us if KV_BYTES[kv] == 1 else 0.0)
    tokens_us = kernels.token_clocks * tokens / clocks_mhz + kernels.request_us * decodes[0]
    body_us = soft_max(busy_us, moved_us, EXPONENT)
    return np.asarray(fixed_us + body_us + rows_us + tokens_us)


def latent_flops(
    mixer: LatentAttention, decodes: tuple[Number, Number], chunk: tuple[Number, Number, Number]
) -> tuple[Number, Number]:
    """FLOPs of attention proper: of the decodes, and of the chunk."""
    latent = 2.0 * mixer.heads * (2 * mixer.kv_rank + mixer.rope_dim)
    prompts, new_tokens, before = chunk
    columns = (np.asarray(value, dtype=np.float64) for value in (new_tokens, before, np.inf))
    pairs = mean_keys(*columns) * prompts * new_tokens
    full = 2.0 * mixer.heads * (mixer.nope_dim + mixer.rope_dim + mixer.value_dim)
    return latent * (decodes[1] + decodes[0]), full * pairs
