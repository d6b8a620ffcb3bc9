"""Time of GEMMs: tiles in waves over the SMs, split-K where a grid leaves SMs idle.

A GEMM of M tokens, N outputs and K inputs runs as ceil(M/tile_m) * ceil(N/tile_n) * splits
thread blocks, one per SM at a time. A wave lasts as long as one tile needs (tensor cores or
operand loads, and a prologue) or as long as DRAM needs for the wave's weights; a last wave that
holds a few tiles costs nearly a whole one. This is the staircase that a table shows along its
tokens.

Which tile shape runs is decided as a library's heuristic would: the cheapest at the device's
highest clock, split-K only where the tiles alone do not fill the SMs; or, for kernels that are
dispatched by their tokens (CUTLASS fp8 in vLLM), as the device file says. It is not cuBLAS's
table: single shapes can be 5-10 % off.

All functions take GEMMs in columns, so that a fit over 30,000 of them is as plain as one layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beamprof.devices.constants import GemmKernels
from beamprof.devices.device import Device
from beamprof.models.formats import FORMATS, Format

Array = NDArray[np.float64]

TILES: tuple[tuple[int, int], ...] = (
    (16, 64), (16, 128), (64, 64), (64, 128), (128, 64), (128, 128), (256, 128), (128, 256),
)  # fmt: skip
SPLITS: tuple[int, ...] = (2, 3, 4, 6, 8)
MIN_SPLIT_K = 512  # a shorter main loop does not pay for its prologue
# How sharply "the slower of the two" is taken between tensor work and operand loads of a tile.
TILE_EXPONENT = 4.0
QUANTISE_EXPONENT = 3.0
SPLIT_BYTES = 4  # partial sums are float32
OUTPUT_BYTES = 2


@dataclass(frozen=True, slots=True)
class Gemms:
    """y[M, N] = x[M, K] w[N, K], many of one weight format: columns of equal length R."""

    tokens: Array
    outputs: Array
    inputs: Array
    form: Format

    @classmethod
    def of(cls, tokens: int, sizes: Sequence[tuple[int, int]], form: str) -> "Gemms":
        """The GEMMs (outputs, inputs) of a layer, all over the same tokens."""
        outputs, inputs = np.array(sizes, dtype=np.float64).reshape(-1, 2).T
        return cls(np.full(outputs.size, float(tokens)), outputs, inputs, FORMATS[form])

    @property
    def flops(self) -> Array:
        """Useful FLOPs: padding to tiles is time, not work."""
        return 2.0 * self.tokens * self.outputs * self.inputs

    @property
    def weight_bytes(self) -> Array:
        """Weights, once."""
        return self.outputs * self.inputs * self.form.weight_bytes

    @property
    def dram_bytes(self) -> Array:
        """Weights, inputs and outputs, each once."""
        inputs = self.tokens * self.inputs * self.form.activation_bytes
        outputs = self.tokens * self.outputs * max(OUTPUT_BYTES, self.form.activation_bytes)
        return self.weight_bytes + inputs + outputs


@dataclass(frozen=True, slots=True)
class Kernels:
    """How each GEMM is cut up: tiles of tile_m x tile_n outputs, K in ``splits`` parts."""

    tile_m: Array
    tile_n: Array
    splits: Array

    def tiles(self, gemms: Gemms) -> Array:
        """Thread blocks of each whole grid."""
        rows = np.ceil(gemms.tokens / self.tile_m)
        return np.asarray(rows * np.ceil(gemms.outputs / self.tile_n) * self.splits)


def soft_max(a: Array, b: Array, exponent: float) -> Array:
    """(a^p + b^p)^(1/p): the slower of two that overlap, with a rounded corner."""
    larger = np.maximum(a, b)
    ratio = np.minimum(a, b) / np.maximum(larger, 1e-300)
    return np.asarray(larger * (1.0 + ratio**exponent) ** (1.0 / exponent))


def bandwidth(device: Device, clocks_mhz: Array) -> Array:
    """DRAM bandwidth in bytes per microsecond (1 TB/s = 1e6)."""
    memory = device.memory
    return np.interp(clocks_mhz, memory.clocks_mhz, memory.bandwidth_tbps) * 1e6


def gemm_us(device: Device, gemms: Gemms, clocks_mhz: Array) -> Array:
    """Microseconds of each GEMM at each clock (R, M), with what its kernel costs besides."""
    kernels = choose_kernels(device, gemms)
    constants = device.gemm_kernels(gemms.form)
    body = kernel_us(device, gemms, kernels, clocks_mhz)
    quantised = _quantising_clocks(constants, gemms)[:, None] / clocks_mhz
    return np.asarray(body + quantised + constants.fixed_us)


def _quantising_clocks(constants: GemmKernels, gemms: Gemms) -> Array:
    """Clocks to bring activations into the format first: by elements, or a thread block a token."""
    if not constants.quantize_per_clock:
        return np.zeros_like(gemms.tokens)
    elements = gemms.inputs / constants.quantize_per_clock
    least = np.full_like(elements, constants.token_clocks)
    return gemms.tokens * soft_max(elements, least, QUANTISE_EXPONENT)


def choose_kernels(device: Device, gemms: Gemms) -> Kernels:
    """The cheapest at the device's highest clock: a library's heuristic does not see the clock."""
    constants = device.gemm_kernels(gemms.form)
    if constants.dispatch:
        return _dispatched(constants, gemms)
    columns = np.array(_candidates(constants), dtype=np.float64).T
    tile_m, tile_n, splits = columns[:, :, None]
    fits = (tile_m >= 64) | (gemms.tokens <= tile_m)  # tiles of 16 rows are made for a few tokens
    tiles = Kernels(tile_m, tile_n, np.ones_like(splits)).tiles(gemms)
    fits &= (splits == 1) | ((tiles < device.compute.sms) & (gemms.inputs / splits >= MIN_SPLIT_K))
    which, row = np.nonzero(fits)
    tried = Gemms(gemms.tokens[row], gemms.outputs[row], gemms.inputs[row], gemms.form)
    top_mhz = np.array([float(device.clocks.max_mhz)])
    time_us = np.full(fits.shape, np.inf)
    time_us[fits] = kernel_us(device, tried, Kernels(*columns[:, which]), top_mhz)[:, 0]
    return Kernels(*columns[:, time_us.argmin(axis=0)])


def _candidates(constants: GemmKernels) -> list[tuple[int, int, int]]:
    splits = (1, *SPLITS) if constants.split_k else (1,)
    return [(tile_m, tile_n, s) for tile_m, tile_n in TILES for s in splits]


def _dispatched(constants: GemmKernels, gemms: Gemms) -> Kernels:
    rules = np.array(constants.dispatch).reshape(-1, 3)
    at = np.searchsorted(rules[:-1, 0], gemms.tokens)
    return Kernels(rules[at, 1], rules[at, 2], np.ones(gemms.tokens.size))


def kernel_us(device: Device, gemms: Gemms, kernels: Kernels, clocks_mhz: Array) -> Array:
    """Microseconds of GEMMs run by given kernels (R, M): full waves, then what is left over."""
    compute, constants = device.compute, device.gemm_kernels(gemms.form)
    form, exponent = gemms.form, constants.overlap_exponent
    depth = gemms.inputs / kernels.splits + constants.prologue_inputs
    flop_clocks = 2 * kernels.tile_m * kernels.tile_n * depth
    flop_clocks = flop_clocks / (
        compute.tensor_flops_per_clock * constants.rate * constants.efficiency
    )
    row_bytes = kernels.tile_m * form.activation_bytes + kernels.tile_n * form.weight_bytes
    load_clocks = row_bytes * depth / constants.load_bytes_per_clock
    tile_us = soft_max(flop_clocks, load_clocks, TILE_EXPONENT)[:, None] / clocks_mhz

    tiles = kernels.tiles(gemms)
    kept = device.memory.l2_activations * device.memory.l2_mb * 1e6
    moved = np.maximum(gemms.dram_bytes - kept, gemms.weight_bytes)
    dram_us = (moved / tiles)[:, None] / bandwidth(device, clocks_mhz)  # of one tile
    waves, rest = np.divmod(tiles, compute.sms)
    total = waves[:, None] * soft_max(tile_us, compute.sms * dram_us, exponent)
    total = total + (rest > 0)[:, None] * soft_max(tile_us, rest[:, None] * dram_us, exponent)
    split = kernels.splits > 1
    if split.any():
        partial_bytes = (kernels.splits + 1) * gemms.tokens * gemms.outputs * SPLIT_BYTES
        reduce_us = partial_bytes[:, None] / (compute.activation_bytes_per_clock * clocks_mhz)
        total = total + split[:, None] * (reduce_us + device.launch.kernel_us)
    return np.asarray(total)
