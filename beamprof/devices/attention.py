"""Time of softmax attention in one layer: decodes that stream their KV cache, chunks that multiply.

Decode attention runs one thread block per (request, KV head), in whole waves over the SMs; where
they are few, the cache is split over idle SMs (flash decoding). A block costs its start, and its
keys at an SM's rate, few of them as much as a tile; all together cost what DRAM needs. Up to
MERGED_REQUESTS a second kernel merges the splits, be there one or several. FlashAttention 2 gives
each query head a block of its own, and splits nothing, where a group has one head or a window
bounds it. Contexts of a batch are taken as equal: only their sum is known.

Chunk attention runs one thread block per query_rows of (query, head of a KV head's group), or of
one head's queries. Work over rate paces it, its longest block where there are too few to fill the
SMs, and whole waves of its shortest. Few blocks are split over their keys, but by FlashAttention 2:
its time with a long context is that of one block, by whatever number of GPUs the heads are shared.
How few depends on the kernel (chunk_splits): FlashAttention 3 splits while blocks < 0.8 * SMs.
Along the diagonal a tile of queries computes what its last (and, within a window, its first) query
sees, and starts with a prologue, which counts as a few more keys. Before it, keys and values are
written to the cache by a kernel of one thread block per token.
"""

from dataclasses import dataclass

import numpy as np

from beamprof.devices.device import Device
from beamprof.devices.gemm import Array, bandwidth, soft_max
from beamprof.models.formats import KV_BYTES

SPLIT_BELOW = 0.8  # flash decoding splits the cache while blocks < 0.8 * SMs
KEY_TILE = 128  # keys of the smallest split
MAX_SPLITS = 32  # of one cache: what vLLM allows in CUDA graphs
MERGED_REQUESTS = 512  # vLLM captures CUDA graphs up to here, the merging of splits among them
WRITE_THREADS = 512  # at most, of the block that writes one token's keys or values
WRITE_EXPONENT = 4.0  # how sharply the slower paces it, blocks or DRAM
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
    mean = context_tokens / requests
    each = np.minimum(mean + 1, heads.window_tokens)
    group = heads.heads / heads.kv_heads
    packed = (group > 1) & np.isinf(heads.window_tokens) | bool(kernels.decode_packs)
    group = np.where(packed, group, 1.0)
    whole = requests * heads.heads / group
    parts = np.minimum(whole * np.clip(each / KEY_TILE, 1.0, MAX_SPLITS), sms)
    splits = packed & (whole < SPLIT_BELOW * sms) & (parts > whole)
    blocks = np.where(splits, parts, whole)
    keys = np.maximum(each * whole / blocks, kernels.least_keys)
    rate = np.interp(heads.head_dim, kernels.head_dims, kernels.kv_bytes_per_clock)
    block_clocks = heads.cache_bytes(keys) / heads.kv_heads / rate
    block_us = kernels.block_us + kernels.row_us * group
    if kernels.slid_us:
        slid_us = np.interp(heads.head_dim, kernels.head_dims, kernels.slid_us)
        block_us = block_us + slid_us * (mean >= heads.window_tokens)
    waves = np.ceil(blocks / sms)
    busy_us = (waves * block_us)[:, None] + (waves * block_clocks)[:, None] / clocks_mhz
    cold = np.reshape(cold, (-1, 1))
    moved = heads.cache_bytes(each * requests)[:, None] * cold / kernels.bandwidth_share
    first_us = np.minimum(kernels.first_us, moved / bandwidth(device, clocks_mhz))
    queries = (requests * heads.heads * heads.head_dim)[:, None]
    moved_us = (moved + 2 * ACTIVATION_BYTES * queries) / bandwidth(device, clocks_mhz)
    total = soft_max(busy_us, moved_us, kernels.decode_exponent)
    if kernels.merge_per_clock:
        merged = np.where(requests[:, None] <= MERGED_REQUESTS, queries, 0.0)
        total = total + merged / (kernels.merge_per_clock * clocks_mhz)
    fixed_us = kernels.split_us * splits + kernels.request_us * requests + kernels.decode_fixed_us
    return np.asarray(total + first_us + fixed_us[:, None])


def chunk_us(
    device: Device,
    heads: Heads,
    requests: Array,
    tokens: Array,
    context_tokens: Array,
    clocks_mhz: Array,
    cold: Array | float = 1.0,
) -> Array:
    """Microseconds of one layer's attention of prefill chunks over their context and themselves.

    ``requests`` equal chunks in one pass, ``tokens`` new tokens of each, ``context_tokens`` before
    each: (R,). ``cold`` as of decode_us, but of all that is moved. Returns (R, M).
    """
    kernels, compute = device.attention_kernels(heads.kv), device.compute
    group = heads.heads / heads.kv_heads if kernels.chunk_packs else np.ones_like(heads.heads)
    tiles = heads.heads / group * np.ceil(tokens * group / kernels.query_rows) * requests
    slid = context_tokens + tokens > heads.window_tokens
    ragged = np.minimum(kernels.query_rows / group, tokens) * np.where(slid, 1.0, 0.5)
    started = kernels.prologue_keys + ragged
    keys = mean_keys(tokens, context_tokens, heads.window_tokens) + started
    most = np.minimum(context_tokens + tokens, heads.window_tokens) + started
    efficiency = np.interp(heads.head_dim, kernels.head_dims, kernels.efficiency)
    key_clocks = 4.0 * heads.head_dim / (compute.tensor_flops_per_clock * efficiency)
    tile_clocks = kernels.query_rows * keys * key_clocks + kernels.tile_clocks
    busy_clocks = tiles * tile_clocks / compute.sms
    if kernels.balance_exponent:
        splits = np.clip(kernels.chunk_splits * compute.sms / tiles, 1.0, MAX_SPLITS)
        longest_clocks = kernels.query_rows * most / splits * key_clocks + kernels.tile_clocks
        # Blocks that start with as long a context as the others do not fill up a last wave.
        least = np.minimum(context_tokens, heads.window_tokens) / splits + started
        waves = np.ceil(tiles / compute.sms)
        whole_clocks = waves * (kernels.query_rows * least * key_clocks + kernels.tile_clocks)
        busy_clocks = np.maximum(busy_clocks, whole_clocks)
        busy_clocks = soft_max(busy_clocks, longest_clocks, kernels.balance_exponent)
    busy_us = busy_clocks[:, None] / clocks_mhz
    new, elements = requests * tokens, heads.kv_heads * heads.head_dim
    byte_us = np.reshape(cold, (-1, 1)) / bandwidth(device, clocks_mhz)
    queries = 2 * ACTIVATION_BYTES * new * heads.heads * heads.head_dim
    seen = np.minimum(context_tokens, heads.window_tokens) + tokens
    moved = queries / kernels.query_bandwidth_share
    moved = moved + heads.cache_bytes(requests * seen) / kernels.bandwidth_share
    total = soft_max(busy_us, moved[:, None] * byte_us, kernels.chunk_exponent)
    written = 2 * ACTIVATION_BYTES * new * elements + heads.cache_bytes(new)
    written_us = (written / kernels.query_bandwidth_share)[:, None] * byte_us
    threads = np.minimum(elements, WRITE_THREADS) / WRITE_THREADS
    threads_us = (kernels.token_clocks * new * threads)[:, None] / clocks_mhz
    write_us = soft_max(threads_us, written_us, WRITE_EXPONENT)
    return np.asarray(kernels.chunk_fixed_us + total + write_us)


def mean_keys(tokens: Array, context_tokens: Array, window_tokens: Array) -> Array:
    """Keys that a chunk's queries see on average, each up to itself and within its window."""
    first, last = context_tokens + 1, context_tokens + tokens
    growing = np.clip(np.minimum(last, window_tokens) - first + 1, 0, None)  # below the window
    inside = growing * (first + np.minimum(last, window_tokens)) / 2
    capped = (tokens - growing) * np.where(np.isinf(window_tokens), 0.0, window_tokens)
    return np.asarray((inside + capped) / np.maximum(tokens, 1))
