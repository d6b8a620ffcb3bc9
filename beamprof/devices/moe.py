"""Time of a layer's routed experts on one GPU: a grouped GEMM over those that have work.

The router spreads n tokens' k choices over E experts. Which of them are chosen decides how many
weights are read; how many tokens each gets decides its tiles (routing.py). A GPU that holds E / ep
of them is taken as the busiest one, for it paces the step.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from beamprof.devices.device import Device
from beamprof.devices.gemm import Array, bandwidth, soft_max
from beamprof.devices.routing import SPREAD, TILE_ROWS, Loads, drawn_loads, expected_loads
from beamprof.models.formats import Format
from beamprof.models.layers import MoeMlp

TILE_OUTPUTS = (32, 128)  # narrow ones fill the SMs where few experts have work
ALIGNED_INPUTS = 16  # elements: what one load of a thread takes in
TILE_EXPONENT = 4.0


@dataclass(frozen=True, slots=True)
class Routed:
    """What one GPU's experts of a layer get in a step; columns of equal length R.

    Attributes:
        choices: tokens times choices of all the step's tokens, wherever their expert is.
        active: experts with work here. rows: choices that fall here.
        tiles: (R, len(TILE_ROWS)), over all experts, one tile wide.
        hidden, width: of an expert. ups: its projections up (2 with a gate).
        spread: 1 where the experts are spread over GPUs.
    """

    choices: Array
    active: Array
    rows: Array
    tiles: Array
    hidden: Array
    width: Array
    ups: Array
    spread: Array

    @classmethod
    def of(cls, mlp: MoeMlp, hidden: int, tokens: int, spread: float = SPREAD) -> "Routed":
        """One layer of a server; ``tokens`` are all that the GPUs of the experts see together."""
        loads = expected_loads(tokens, mlp.experts, mlp.top_k, mlp.ep, spread)
        return cls._of([(mlp, hidden, tokens, loads)])

    @classmethod
    def mean(cls, mlp: MoeMlp, hidden: int, tokens: int, spread: float = SPREAD) -> "Routed":
        """The same of the mean GPU, where ``of`` is the busiest: what they all draw together."""
        whole = expected_loads(tokens, mlp.experts, mlp.top_k, 1, spread)
        return cls._of([(mlp, hidden, tokens, tuple(load / mlp.ep for load in whole))])

    @classmethod
    def drawn(cls, layers: Iterable[tuple[MoeMlp, int, int, float]]) -> "Routed":
        """Many benchmarked layers, each (mlp, hidden, tokens, exponent of the counts' law)."""
        return cls._of(
            (mlp, hidden, tokens, drawn_loads(tokens, mlp.experts, mlp.top_k, mlp.ep, skew))
            for mlp, hidden, tokens, skew in layers
        )

    @classmethod
    def _of(cls, layers: Iterable[tuple[MoeMlp, int, int, Loads]]) -> "Routed":
        rows = [
            (
                tokens * mlp.top_k,
                *loads,
                mlp.latent_size or hidden,
                mlp.intermediate_size,
                2 if mlp.gated else 1,
                mlp.ep > 1,
            )
            for mlp, hidden, tokens, loads in layers
        ]
        columns = np.array(rows, dtype=np.float64).T
        choices, active, here = columns[:3]
        return cls(choices, active, here, columns[3:-4].T, *columns[-4:])

    @property
    def projections(self) -> tuple[tuple[Array, Array], ...]:
        """(outputs, inputs) of an expert's GEMMs."""
        return (self.ups * self.width, self.hidden), (self.hidden, self.width)

    @property
    def flops(self) -> Array:
        """Useful FLOPs."""
        return 2.0 * self.rows * (self.ups + 1) * self.width * self.hidden

    def weight_bytes(self, form: Format) -> Array:
        """Weights of the experts with work."""
        return self.active * (self.ups + 1) * self.width * self.hidden * form.weight_bytes

    def dram_bytes(self, form: Format) -> Array:
        """Weights of the experts with work, inputs and outputs of their rows."""
        moved = np.zeros_like(self.rows)
        for outputs, inputs in self.projections:
            moved = moved + self.active * outputs * inputs * form.weight_bytes
            moved = moved + self.rows * (inputs * form.activation_bytes + 2.0 * outputs)
        return moved


def experts_us(
    device: Device,
    routed: Routed,
    form: Format,
    clocks_mhz: Array,
    cold: Array | float = 1.0,
) -> Array:
    """Microseconds of routed experts (R, M), routing and sums included.

    ``cold`` (R,) is the share of their weights that comes from DRAM: all of it in a server; none
    where a benchmark repeats one layer within L2.

    Raises:
        DeviceError: the device file has no constants for experts.
    """
    kernels, compute = device.moe_kernels(form), device.compute
    best = np.full((routed.rows.size, clocks_mhz.size), np.inf)
    shapes = [
        (height, tiles, wide)
        for height, tiles in zip(TILE_ROWS, routed.tiles.T, strict=True)
        for wide in TILE_OUTPUTS
        if height >= kernels.least_rows
    ]
    for height, tiles, wide in shapes:
        total = np.zeros_like(best)
        for outputs, inputs in routed.projections:
            depth = inputs + kernels.prologue_inputs
            flop_clocks = 2.0 * height * wide * depth
            flop_clocks = flop_clocks / (
                compute.tensor_flops_per_clock * kernels.rate * kernels.efficiency
            )
            row_bytes = height * form.activation_bytes + wide * form.weight_bytes
            aligned = np.where(inputs % ALIGNED_INPUTS == 0, 1.0, kernels.ragged_share)
            load_clocks = row_bytes * depth / (kernels.load_bytes_per_clock * aligned)
            tile_clocks = soft_max(flop_clocks, load_clocks, TILE_EXPONENT)
            waves = np.maximum(tiles * np.ceil(outputs / wide) / compute.sms, 1.0)
            moved = cold * routed.active * outputs * inputs * form.weight_bytes
            moved = moved + routed.rows * (inputs * form.activation_bytes + 2.0 * outputs)
            moved_us = moved[:, None] / (kernels.bandwidth_share * bandwidth(device, clocks_mhz))
            busy_us = (waves * tile_clocks)[:, None] / clocks_mhz
            total = total + soft_max(busy_us, moved_us, kernels.overlap_exponent)
        best = np.minimum(best, total)
    # The activation reads and writes an expert's width; the sum reads every choice's outputs.
    moved = 2.0 * routed.choices * ((routed.ups + 1) * routed.width + routed.hidden)
    rows_clocks = moved / kernels.row_bytes_per_clock
    fixed_us = kernels.fixed_us + kernels.spread_us * routed.spread
    fixed_us = fixed_us + kernels.expert_us * routed.active
    return np.asarray(fixed_us[:, None] + best + rows_clocks[:, None] / clocks_mhz)
