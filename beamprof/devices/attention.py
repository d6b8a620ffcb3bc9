"""Time of softmax attention in one layer: decodes that stream their KV cache, chunks that multiply.

Decode attention runs one thread block per (request, KV head), so its time has small steps where
B * kv_heads crosses a multiple of the SMs; below that the cache is split over idle SMs (flash
decoding). Contexts of a batch are taken as equal: only their sum is known. A sliding window bounds
each of them.

Chunk attention runs one thread block per 128 rows of (query, head of a KV head's group). Work over
rate paces it, and its longest block where there are too few to fill the SMs. Along the diagonal a
block computes whole tiles, half of them masked: a few more keys for each (prologue_keys).
"""

from dataclasses import dataclass

import numpy as np

from beamprof.devices.device import Device
from beamprof.devices.gemm import Array, bandwidth, soft_max
from beamprof.models.formats import KV_BYTES

QUERY_TILE = 128  # rows of one thread block in chunk attention
SPLIT_BELOW = 0.8  # flash decoding splits the cache while blocks < 0.8 * SMs
BYTES_EXPONENT = 4.0
ACTIVATION_BYTES = 2


@dataclass(frozen=True, slots=True)
class Heads:
    """What attends, in columns of equal length: heads on this GPU, their size, their window."""

    heads: Array
    kv_heads: Array
    head_dim: Array
    window_tokens: Array  # infinity = the whole context
    kv: str  # the cache's format

    @classmethod
    def of(cls, heads: int, kv_heads: int, head_dim: int, window: int, kv: str) -> "Heads":
        """One layer's."""
        columns = np.array([[heads], [kv_heads], [head_dim], [window or np.inf]], dtype=np.float64)
        return cls(columns[0], columns[1], columns[2], columns[3], kv)

    def cache_bytes(self, tokens: Array) -> Array:
        """Keys and values of that many tokens."""
        return np.asarray(2.0 * self.kv_heads * self.head_dim * KV_BYTES[self.kv] * tokens)


def decode_us(
    device: Device, heads: Heads, requests: Array, context_tokens: Array, clocks_mhz: Array
) -> Array:
    """Microseconds of one layer's decode attention over real, separate KV caches (R, M).

    ``context_tokens`` (R,) is of all requests together, without the new tokens.
    """
    kernels, sms = device.attention_kernels(heads.kv), device.compute.sms
    each = np.minimum(context_tokens / requests + 1, heads.window_tokens)
    blocks = requests * heads.kv_heads
    blocks = np.where(blocks < SPLIT_BELOW * sms, sms, blocks)
    block_bytes = (heads.cache_bytes(each * requests) / blocks)[:, None]
    block_us = block_bytes / (kernels.kv_bytes_per_clock * clocks_mhz)
    dram_us = block_bytes / (kernels.bandwidth_share * bandwidth(device, clocks_mhz))
    waves, rest = (part[:, None] for part in np.divmod(blocks, sms))
    total = waves * (np.maximum(block_us, sms * dram_us) + kernels.block_us)
    total = total + (rest > 0) * (np.maximum(block_us, rest * dram_us) + kernels.block_us)
    return np.asarray(total + kernels.decode_fixed_us)


def chunk_us(
    device: Device,
    heads: Heads,
    requests: Array,
    tokens: Array,
    context_tokens: Array,
    clocks_mhz: Array,
) -> Array:
    """Microseconds of one layer's attention of prefill chunks over their context and themselves.

    ``requests`` equal chunks in one pass, ``tokens`` new tokens of each, ``context_tokens`` before
    each: (R,). Returns (R, M).
    """
    kernels, compute = device.attention_kernels(heads.kv), device.compute
    group = heads.heads / heads.kv_heads
    tiles = heads.kv_heads * np.ceil(tokens * group / QUERY_TILE) * requests
    keys = mean_keys(tokens, context_tokens, heads.window_tokens) + kernels.prologue_keys
    most = np.minimum(context_tokens + tokens, heads.window_tokens) + kernels.prologue_keys
    efficiency = np.interp(heads.head_dim, kernels.head_dims, kernels.efficiency)
    key_clocks = 4.0 * heads.head_dim / (compute.tensor_flops_per_clock * efficiency)
    mean_clocks = tiles * QUERY_TILE * keys * key_clocks / compute.sms
    busy_clocks = mean_clocks
    if kernels.balance_exponent:
        longest_clocks = QUERY_TILE * most * key_clocks
        busy_clocks = soft_max(mean_clocks, longest_clocks, kernels.balance_exponent)
    busy_us = busy_clocks[:, None] / clocks_mhz
    queries_bytes = 2 * ACTIVATION_BYTES * requests * tokens * heads.heads * heads.head_dim
    seen = np.minimum(context_tokens, heads.window_tokens) + tokens
    moved = queries_bytes / kernels.query_bandwidth_share + heads.cache_bytes(
        requests * seen / kernels.bandwidth_share
    )
    moved_us = moved[:, None] / bandwidth(device, clocks_mhz)
    return np.asarray(kernels.chunk_fixed_us + soft_max(busy_us, moved_us, BYTES_EXPONENT))


def mean_keys(tokens: Array, context_tokens: Array, window_tokens: Array) -> Array:
    """Keys that a chunk's queries see on average, each up to itself and within its window."""
    first, last = context_tokens + 1, context_tokens + tokens
    growing = np.clip(np.minimum(last, window_tokens) - first + 1, 0, None)  # below the window
    inside = growing * (first + np.minimum(last, window_tokens)) / 2
    capped = (tokens - growing) * np.where(np.isinf(window_tokens), 0.0, window_tokens)
    return np.asarray((inside + capped) / np.maximum(tokens, 1))
