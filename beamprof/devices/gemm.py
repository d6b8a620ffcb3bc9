"""Time of one GEMM: tiles in waves over the SMs, split-K where a grid leaves SMs idle.

A GEMM of M tokens, N outputs and K inputs runs as ceil(M/tile_m) * ceil(N/tile_n) * splits
thread blocks, one per SM at a time. A wave lasts as long as one tile needs (tensor cores or
operand loads) or as long as DRAM needs for the wave's weights; a last wave that holds a few
tiles costs nearly a whole one. This is the staircase that a table shows along its tokens.

Which tile shape runs is decided as a library's heuristic would: the cheapest at the device's
highest clock, split-K only where the tiles alone do not fill the SMs. It is not cuBLAS's table:
single shapes can be 5-10 % off.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beamprof.devices.device import Device

Array = NDArray[np.float64]

TILES: tuple[tuple[int, int], ...] = (
    (16, 64), (16, 128), (64, 64), (64, 128), (128, 64), (128, 128), (256, 128), (128, 256),
)  # fmt: skip
SPLITS: tuple[int, ...] = (2, 3, 4, 6, 8)
MIN_SPLIT_K = 512  # a shorter main loop does not pay for its prologue
# How sharply "the slower of the two" is taken between tensor work and operand loads of a tile.
TILE_EXPONENT = 4.0
SPLIT_BYTES = 4  # partial sums are float32


@dataclass(frozen=True, slots=True)
class Gemm:
    """y[M, N] = x[M, K] w[N, K]."""

    tokens: int
    outputs: int
    inputs: int
    dtype_bytes: int

    @property
    def flops(self) -> float:
        """Useful FLOPs: padding to tiles is time, not work."""
        return 2.0 * self.tokens * self.outputs * self.inputs

    @property
    def dram_bytes(self) -> float:
        """Weights, inputs and outputs, each once."""
        elements = self.outputs * self.inputs + self.tokens * (self.inputs + self.outputs)
        return float(self.dtype_bytes * elements)


@dataclass(frozen=True, slots=True)
class Kernel:
    """How a GEMM is cut up: tiles of tile_m x tile_n outputs, K in ``splits`` parts."""

    tile_m: int
    tile_n: int
    splits: int = 1

    def tiles(self, gemm: Gemm) -> int:
        """Thread blocks of the whole grid."""
        rows = math.ceil(gemm.tokens / self.tile_m)
        return rows * math.ceil(gemm.outputs / self.tile_n) * self.splits


def soft_max(a: Array, b: Array, exponent: float) -> Array:
    """(a^p + b^p)^(1/p): the slower of two that overlap, with a rounded corner."""
    larger = np.maximum(a, b)
    ratio = np.minimum(a, b) / larger
    return np.asarray(larger * (1.0 + ratio**exponent) ** (1.0 / exponent))


def bandwidth(device: Device, clocks_mhz: Array) -> Array:
    """DRAM bandwidth in bytes per microsecond (1 TB/s = 1e6)."""
    memory = device.memory
    return np.interp(clocks_mhz, memory.clocks_mhz, memory.bandwidth_tbps) * 1e6


def gemm_us(device: Device, gemm: Gemm, clocks_mhz: Array) -> Array:
    """Microseconds of one GEMM at each clock, without the kernel's launch."""
    return kernel_us(device, gemm, choose_kernel(device, gemm), clocks_mhz)


def choose_kernel(device: Device, gemm: Gemm) -> Kernel:
    """The cheapest at the device's highest clock: a library's heuristic does not see the clock."""
    top_mhz = np.array([float(device.clocks.max_mhz)])
    return min(
        _candidates(device, gemm),
        key=lambda kernel: float(kernel_us(device, gemm, kernel, top_mhz)[0]),
    )


def _candidates(device: Device, gemm: Gemm) -> list[Kernel]:
    found: list[Kernel] = []
    for tile_m, tile_n in TILES:
        if tile_m < 64 and gemm.tokens > tile_m:
            continue  # tiles of 16 rows are made for a few tokens
        whole = Kernel(tile_m, tile_n)
        found.append(whole)
        if whole.tiles(gemm) < device.compute.sms:
            deep_enough = [s for s in SPLITS if gemm.inputs / s >= MIN_SPLIT_K]
            found.extend(Kernel(tile_m, tile_n, splits) for splits in deep_enough)
    return found


def kernel_us(device: Device, gemm: Gemm, kernel: Kernel, clocks_mhz: Array) -> Array:
    """Microseconds of a GEMM run by one kernel: full waves, then what is left over."""
    compute, exponent = device.compute, device.memory.overlap_exponent
    tile_m, tile_n = kernel.tile_m, kernel.tile_n
    depth = gemm.inputs / kernel.splits
    flop_clocks = 2 * tile_m * tile_n * depth
    flop_clocks /= compute.tensor_flops_per_clock * compute.gemm_efficiency
    load_clocks = (tile_m + tile_n) * depth * gemm.dtype_bytes / compute.gemm_load_bytes_per_clock
    tile_clocks = soft_max(np.array(flop_clocks), np.array(load_clocks), TILE_EXPONENT)
    tile_us = tile_clocks / clocks_mhz

    tiles = kernel.tiles(gemm)
    dram_us = gemm.dram_bytes / tiles / bandwidth(device, clocks_mhz)  # of one tile
    waves, rest = divmod(tiles, compute.sms)
    total = np.zeros_like(clocks_mhz)
    if waves:
        total = total + waves * soft_max(tile_us, compute.sms * dram_us, exponent)
    if rest:
        total = total + soft_max(tile_us, rest * dram_us, exponent)
    if kernel.splits > 1:
        partial_bytes = (kernel.splits + 1) * gemm.tokens * gemm.outputs * SPLIT_BYTES
        reduce_us = partial_bytes / (compute.activation_bytes_per_clock * clocks_mhz)
        total = total + reduce_us + device.launch.kernel_us
    return total
