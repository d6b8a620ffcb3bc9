"""Time of attention in one layer: decodes that stream their KV cache, chunks that multiply.

Decode attention runs one thread block per (request, KV head), so its time has small steps where
B * kv_heads crosses a multiple of the SMs; below that the cache is split over idle SMs (flash
decoding). Contexts of a batch are taken as equal: only their sum is known.
"""

import numpy as np

from beam_runtime.types import StepShape
from beamprof.devices.device import Device
from beamprof.devices.gemm import Array, bandwidth
from beamprof.models.shape import StageShape

QUERY_TILE = 128  # query rows of one thread block in chunk attention
SPLIT_BELOW = 0.8  # flash decoding splits the cache while blocks < 0.8 * SMs


def kv_bytes_per_layer(stage: StageShape, context_tokens: float) -> float:
    """Keys and values of that many tokens in one layer on this GPU."""
    return 2.0 * stage.kv_heads * stage.head_dim * stage.dtype_bytes * context_tokens


def decode_us(device: Device, stage: StageShape, step: StepShape, clocks_mhz: Array) -> Array:
    """Microseconds of one layer's decode attention over real, separate KV caches."""
    total = np.zeros_like(clocks_mhz)
    if step.decode_requests == 0:
        return total
    sms = device.compute.sms
    context_tokens = step.decode_context_tokens + step.decode_requests
    blocks = step.decode_requests * stage.kv_heads
    if blocks < SPLIT_BELOW * sms:
        blocks = sms
    block_bytes = kv_bytes_per_layer(stage, context_tokens) / blocks
    block_us = block_bytes / (device.compute.kv_bytes_per_clock * clocks_mhz)
    dram_us = block_bytes / bandwidth(device, clocks_mhz)
    waves, rest = divmod(blocks, sms)
    if waves:
        total = total + waves * np.maximum(block_us, sms * dram_us)
    if rest:
        total = total + np.maximum(block_us, rest * dram_us)
    return total


def chunk_us(device: Device, stage: StageShape, step: StepShape, clocks_mhz: Array) -> Array:
    """Microseconds of one layer's attention of a prefill chunk over its context and itself.

    Work over rate: current kernels split long contexts over idle SMs, and measured times are
    linear in (query, key) pairs from chunks of 64 tokens up. Along the diagonal a thread block
    computes whole tiles, half of them masked.
    """
    pairs = float(step.prefill_pairs or 0.0) + step.prefill_tokens * QUERY_TILE / 2
    flops = 4.0 * stage.heads * stage.head_dim * pairs
    compute = device.compute
    rate = compute.sms * compute.tensor_flops_per_clock * compute.attention_efficiency
    return flops / (rate * clocks_mhz)
