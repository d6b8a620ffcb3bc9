"""Mixers that keep a state of constant size for each request, where attention keeps a cache.

Weights of their short convolution (a few for each channel) are left out, as biases and norms are.
"""

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GatedDelta:
    """Gated delta net (Qwen3-Next, Qwen3.5): a state of constant size in place of a cache.

    Attributes:
        gate_rank: Kimi's delta attention forgets by channel, not by head: this gate and the
            output's come in two steps over so many numbers each; 0 = as Qwen3-Next has them.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    conv_width: int = 4
    gate_rank: int = 0

    def projections(self, hidden: int) -> tuple[tuple[int, int], ...]:
        """(outputs, inputs) of its GEMMs: q, k, v, gate z, and two numbers for each value head.

        With ``gate_rank`` both gates' first steps stand in place of z and of one of the numbers,
        and their second steps beside it.
        """
        keys, values = self.key_heads * self.key_dim, self.value_heads * self.value_dim
        rank, out = self.gate_rank, (hidden, values)
        if not rank:
            return (2 * keys + 2 * values + 2 * self.value_heads, hidden), out
        first = 2 * keys + values + self.value_heads + 2 * rank
        return (first, hidden), (keys, rank), (values, rank), out

    @property
    def conv_channels(self) -> int:
        """Channels of the short convolution: queries, keys and values."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim

    @property
    def kv_per_token(self) -> int:
        """Nothing grows with the context."""
        return 0

    @property
    def state_size(self) -> int:
        """Elements of one request's recurrent state, kept in float32."""
        return self.value_heads * self.key_dim * self.value_dim

    def split(self, tp: int) -> "GatedDelta":
        """One GPU's share of the heads."""
        return dataclasses.replace(
            self, key_heads=self.key_heads // tp, value_heads=self.value_heads // tp
        )

    def splits(self, tp: int) -> bool:
        """Whether ``tp`` GPUs get equal shares."""
        return self.key_heads % tp == 0 and self.value_heads % tp == 0


@dataclass(frozen=True, slots=True)
class ShortConv:
    """A convolution over the latest few tokens between two gates (LFM2); its state is those."""

    channels: int
    conv_width: int = 3

    def projections(self, hidden: int) -> tuple[tuple[int, int], ...]:
        """(outputs, inputs) of its GEMMs: two gates and what is convolved; output."""
        return (3 * self.channels, hidden), (hidden, self.channels)

    @property
    def kv_per_token(self) -> int:
        """Nothing grows with the context."""
        return 0

    @property
    def state_size(self) -> int:
        """Elements of one request's state."""
        return self.channels * (self.conv_width - 1)

    def split(self, tp: int) -> "ShortConv":
        """One GPU's share of the channels."""
        return dataclasses.replace(self, channels=self.channels // tp)

    def splits(self, tp: int) -> bool:
        """Whether ``tp`` GPUs get equal shares."""
        return self.channels % tp == 0


@dataclass(frozen=True, slots=True)
class Mamba2:
    """State-space layer (Mamba-2, arXiv 2405.21060): a state of constant size, and no cache.

    Attributes:
        state_dim: numbers that each channel of a head keeps.
        groups: so many groups of heads share what writes into the state and reads from it.
        state_bytes: of one number of the state, as engines keep it.
        normed: a norm stands before the output projection, over each group's channels.
        summed: that norm's sums are added up over tensor-parallel GPUs, which share a group.
    """

    heads: int
    head_dim: int
    state_dim: int
    groups: int = 1
    conv_width: int = 4
    state_bytes: int = 4
    normed: bool = True
    summed: bool = False

    def projections(self, hidden: int) -> tuple[tuple[int, int], ...]:
        """(outputs, inputs) of its GEMMs: gate, what is convolved, a time step for each head."""
        inner = self.heads * self.head_dim
        return (inner + self.conv_channels + self.heads, hidden), (hidden, inner)

    @property
    def conv_channels(self) -> int:
        """Channels of the short convolution: inputs, and each group's two vectors."""
        return self.heads * self.head_dim + 2 * self.groups * self.state_dim

    @property
    def kv_per_token(self) -> int:
        """Nothing grows with the context."""
        return 0

    @property
    def state_size(self) -> int:
        """Elements of one request's state."""
        return self.heads * self.head_dim * self.state_dim

    def split(self, tp: int) -> "Mamba2":
        """One GPU's share of the heads; a single group is on every GPU."""
        summed = self.normed and self.groups == 1 and tp > 1
        heads, groups = self.heads // tp, max(1, self.groups // tp)
        return dataclasses.replace(self, heads=heads, groups=groups, summed=summed)

    def splits(self, tp: int) -> bool:
        """Whether ``tp`` GPUs get equal shares."""
        return self.heads % tp == 0 and (self.groups == 1 or self.groups % tp == 0)
