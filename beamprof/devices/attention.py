"""Time of softmax attention in one layer: decodes that stream their KV cache, chunks that multiply.

Decode attention runs one thread block per (request, KV head), so its time has small steps where
B * kv_heads crosses a multiple of the SMs; below that the cache is split over idle SMs (flash
decoding). Contexts of a batch are taken as equal: only their sum is known. A sliding window bounds
each of them.

Chunk attention runs one thread block per 128 rows of (query, head of a KV head's group). Work over
rate paces it, and its longest block where there are too few to fill the SMs. Along the diagonal a
tile of queries computes what its last (and, within a window, its first) query sees, and starts with
a prologue, which counts as a few more keys.
"""

from dataclasses import dataclass

import numpy as np

from beamprof.devices.device import Device
from beamprof.devices.gemm import Array, bandwidth, soft_max
from beamprof.models.formats import KV_BYTES

QUERY_TILE = 128  # rows of one thread block in chunk attention
SPLIT_BELOW = 0.8  # flash decoding splits the cache while blocks < 0.8 * SMs
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
    device: Device,
    heads: Heads,
    requests: Array,
    context_tokens: Array,
    clocks_mhz: Array,
    cold: Array | float = 1.0,
) -> Array:
    """Microseconds of one layer's decode attention over real, separate KV caches (R, M).

    ``context_tokens`` (R,) is of all requests together, without the new tokens. ``cold`` is the
    share of the cache that comes from DRAM: all of it in a server, where other layers' weights and
    caches pass through L2 in between; less where a benchmark repeats one layer.
    """
    kernels, sms = device.attention_kernels(heads.kv), device.compute.sms
    each = np.minimum(context_tokens / requests + 1, heads.window_tokens)
    blocks = requests * heads.kv_heads
    blocks = np.where(blocks < SPLIT_BELOW * sms, sms, blocks)
    block_bytes = (heads.cache_bytes(each * requests) / blocks)[:, None]
    block_us = block_bytes / (kernels.kv_bytes_per_clock * clocks_mhz)
    dram_bytes = block_bytes * np.reshape(cold, (-1, 1))
    dram_us = dram_bytes / (kernels.bandwidth_share * bandwidth(device, clocks_mhz))
    waves, rest = (part[:, None] for part in np.divmod(blocks, sms))
    busy_us = block_us + kernels.block_us
    total = waves * np.maximum(busy_us, sms * dram_us)
    total = total + (rest > 0) * np.maximum(busy_us, rest * dram_us)
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
    slid = context_tokens + tokens > heads.window_tokens
    ragged = np.minimum(QUERY_TILE / group, tokens) * np.where(slid, 1.0, 0.5)
    started = kernels.prologue_keys + ragged
    keys = mean_keys(tokens, context_tokens, heads.window_tokens) + started
    most = np.minimum(context_tokens + tokens, heads.window_tokens) + started
    efficiency = np.interp(heads.head_dim, kernels.head_dims, kernels.efficiency)
    key_clocks = 4.0 * heads.head_dim / (compute.tensor_flops_per_clock * efficiency)
    mean_clocks = tiles * QUERY_TILE * keys * key_clocks / compute.sms
    busy_clocks = mean_clocks
    if kernels.balance_exponent:
        longest_clocks = QUERY_TILE * most * key_clocks
        busy_clocks = soft_max(mean_clocks, longest_clocks, kernels.balance_exponent)
    busy_us = busy_clocks[:, None] / clocks_mhz
    # Queries and outputs; keys and values read and written to the cache, before they are attended.
    sizes = (heads.heads + 2.0 * heads.kv_heads) * heads.head_dim
    own_bytes = 2 * ACTIVATION_BYTES * requests * tokens * sizes
    seen = np.minimum(context_tokens, heads.window_tokens) + tokens
    moved = own_bytes / kernels.query_bandwidth_share + heads.cache_bytes(
        requests * seen / kernels.bandwidth_share
    )
    moved_us = moved[:, None] / bandwidth(device, clocks_mhz)
    return np.asarray(kernels.chunk_fixed_us + busy_us + moved_us)


def mean_keys(tokens: Array, context_tokens: Array, window_tokens: Array) -> Array:
    """Keys that a chunk's queries see on average, each up to itself and within its window."""
    first, last = context_tokens + 1, context_tokens + tokens
    growing = np.clip(np.minimum(last, window_tokens) - first + 1, 0, None)  # below the window
    inside = growing * (first + np.minimum(last, window_tokens)) / 2
    capped = (tokens - growing) * np.where(np.isinf(window_tokens), 0.0, window_tokens)
    return np.asarray((inside + capped) / np.maximum(tokens, 1))
