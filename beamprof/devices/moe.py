"""Time of a layer's routed experts on one GPU: a grouped GEMM over those that have work.

The router spreads n tokens' k choices over E experts. Which of them are chosen decides how many
weights are read; how many tokens each gets decides its tiles. Shares follow a power law, as
recorded routers' do (exponents 1.01 to 1.2 in aiconfigurator's data); 0 = evenly. A GPU that
holds E / ep of them is taken as the busiest one, for it paces the step.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from beamprof.devices.device import Device
from beamprof.devices.gemm import Array, bandwidth, soft_max
from beamprof.models.formats import Format
from beamprof.models.layers import MoeMlp

TILE_ROWS = (16, 32, 64, 128, 256)
TILE_OUTPUTS = 128
TENSOR_ROWS = 64  # fewer rows of a tile do not make the tensor cores faster
SKEW = 1.01  # of the tokens over the experts, where nothing else is known
TILE_EXPONENT = 4.0


@dataclass(frozen=True, slots=True)
class Routed:
    """What one GPU's experts of a layer get in a step; columns of equal length R.

    Attributes:
        choices: tokens times choices of all the step's tokens, wherever their expert is.
        active: experts with work here. rows: choices that fall here.
        tiles: (R, len(TILE_ROWS)), over all experts, one tile wide.
        hidden, width: of an expert; ups: its projections up (2 with a gate).
    """

    choices: Array
    active: Array
    rows: Array
    tiles: Array
    hidden: Array
    width: Array
    ups: Array

    @classmethod
    def of(cls, mlp: MoeMlp, hidden: int, tokens: int, skew: float = SKEW) -> "Routed":
        """One layer; ``tokens`` are all that the GPUs of the experts see together."""
        return cls.stack([(mlp, hidden, tokens, skew)])

    @classmethod
    def stack(cls, layers: Iterable[tuple[MoeMlp, int, int, float]]) -> "Routed":
        """Many layers, each (mlp, hidden, tokens, skew)."""
        rows = []
        for mlp, hidden, tokens, skew in layers:
            counts = _loads(tokens, mlp.experts, mlp.top_k, mlp.ep, skew)
            sizes = (hidden, mlp.intermediate_size, 2 if mlp.gated else 1)
            rows.append((tokens * mlp.top_k, *counts, *sizes))
        columns = np.array(rows, dtype=np.float64).T
        choices, active, here = columns[:3]
        hidden, width, ups = columns[-3:]
        return cls(choices, active, here, columns[3:-3].T, hidden, width, ups)

    @property
    def projections(self) -> tuple[tuple[Array, Array], ...]:
        """(outputs, inputs) of an expert's GEMMs."""
        return (self.ups * self.width, self.hidden), (self.hidden, self.width)

    @property
    def flops(self) -> Array:
        """Useful FLOPs."""
        return 2.0 * self.rows * (self.ups + 1) * self.width * self.hidden

    def dram_bytes(self, form: Format) -> Array:
        """Weights of the experts with work, inputs and outputs of their rows."""
        moved = np.zeros_like(self.rows)
        for outputs, inputs in self.projections:
            moved = moved + self.active * outputs * inputs * form.weight_bytes
            moved = moved + self.rows * (inputs * form.activation_bytes + 2.0 * outputs)
        return moved


@lru_cache(maxsize=65536)
def _loads(tokens: int, experts: int, top_k: int, ep: int, skew: float) -> tuple[float, ...]:
    """On the busiest GPU: experts with work, rows, and tiles for each of TILE_ROWS."""
    shares = _shares(tokens, experts, top_k, skew)
    if ep > 1:
        local = experts // ep
        shares = _busiest(shares, local, ep) if skew else shares[::ep][:local]
    rows = np.minimum(shares * tokens * top_k, tokens)
    active = np.minimum(rows, 1.0)  # a share of less than one token: chosen so often
    tiles = [
        float(np.where(rows < 1, rows, np.ceil(np.round(rows) / height)).sum())
        for height in TILE_ROWS
    ]
    return float(active.sum()), float(rows.sum()), *tiles


def _shares(tokens: int, experts: int, top_k: int, skew: float) -> Array:
    """Each expert's share of all choices, the largest first."""
    if not skew:
        even = np.full(experts, tokens * top_k // experts, dtype=np.float64)
        even[: tokens * top_k % experts] += 1
        return np.asarray(even / even.sum())
    # Quantiles of a power law between 1 and 0.8 n tokens.
    most, power = max(tokens * 0.8, 2.0), 1.0 - skew
    middle = 1.0 - (np.arange(experts) + 0.5) / experts
    drawn = ((most**power - 1.0) * middle + 1.0) ** (1.0 / power)
    return np.asarray(drawn / drawn.sum())


def _busiest(shares: Array, local: int, ep: int) -> Array:
    """The GPU with the most wanted expert; the others of its experts are as they come."""
    others = 1 + (np.arange(local - 1) * ep + ep // 2) % max(shares.size - 1, 1)
    return np.concatenate([shares[:1], shares[others]])


def experts_us(device: Device, routed: Routed, form: Format, clocks_mhz: Array) -> Array:
    """Microseconds of routed experts (R, M), routing and sums included.

    Raises:
        DeviceError: the device file has no constants for experts.
    """
    kernels, compute = device.moe_kernels(form), device.compute
    best = np.full((routed.rows.size, clocks_mhz.size), np.inf)
    for height, tiles in zip(TILE_ROWS, routed.tiles.T, strict=True):
        total = np.zeros_like(best)
        for outputs, inputs in routed.projections:
            depth = inputs + kernels.prologue_inputs
            flop_clocks = 2.0 * max(height, TENSOR_ROWS) * TILE_OUTPUTS * depth
            flop_clocks = flop_clocks / (
                compute.tensor_flops_per_clock * kernels.rate * kernels.efficiency
            )
            row_bytes = height * form.activation_bytes + TILE_OUTPUTS * form.weight_bytes
            load_clocks = row_bytes * depth / kernels.load_bytes_per_clock
            tile_clocks = soft_max(flop_clocks, load_clocks, TILE_EXPONENT)
            waves = np.maximum(tiles * np.ceil(outputs / TILE_OUTPUTS) / compute.sms, 1.0)
            moved = routed.active * outputs * inputs * form.weight_bytes
            moved = moved + routed.rows * (inputs * form.activation_bytes + 2.0 * outputs)
            moved_us = moved[:, None] / (kernels.bandwidth_share * bandwidth(device, clocks_mhz))
            busy_us = (waves * tile_clocks)[:, None] / clocks_mhz
            total = total + soft_max(busy_us, moved_us, kernels.overlap_exponent)
        best = np.minimum(best, total)
    width = (routed.ups + 1) * routed.width + 2 * routed.hidden
    rows_clocks = 2.0 * routed.choices * width / kernels.row_bytes_per_clock
    fixed_us = kernels.fixed_us + kernels.expert_us * routed.active
    return np.asarray(fixed_us[:, None] + best + rows_clocks[:, None] / clocks_mhz)
