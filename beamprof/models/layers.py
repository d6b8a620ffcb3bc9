"""The kinds of layers that decoders are made of: sizes, weights and KV cache, nothing of time.

A layer is a mixer (it looks at other tokens) and an MLP (it does not). The same classes describe
a whole layer and one GPU's shard of it; ``split`` goes from the one to the other. Weights are
counted in elements; which format they are stored in is Precision's matter.
"""

import dataclasses
from dataclasses import dataclass

from beamprof.models.recurrent import GatedDelta, Mamba2, ShortConv


@dataclass(frozen=True, slots=True)
class Attention:
    """Softmax attention, grouped queries.

    Attributes:
        window_tokens: it sees so many of the latest tokens; 0 = all of them.
        gated: the query projection yields an output gate as well (Qwen3-Next).
    """

    heads: int
    kv_heads: int
    head_dim: int
    window_tokens: int = 0
    gated: bool = False

    @property
    def qkv_size(self) -> int:
        """Rows of the fused QKV projection."""
        return (self.heads * (2 if self.gated else 1) + 2 * self.kv_heads) * self.head_dim

    def projections(self, hidden: int) -> tuple[tuple[int, int], ...]:
        """(outputs, inputs) of its GEMMs."""
        return (self.qkv_size, hidden), (hidden, self.heads * self.head_dim)

    @property
    def kv_per_token(self) -> int:
        """Cached elements of one token."""
        return 2 * self.kv_heads * self.head_dim

    def split(self, tp: int) -> "Attention":
        """One of ``tp`` GPUs' share; with more GPUs than KV heads each keeps a whole one."""
        return dataclasses.replace(
            self, heads=self.heads // tp, kv_heads=max(1, self.kv_heads // tp)
        )

    def splits(self, tp: int) -> bool:
        """Whether ``tp`` GPUs get equal shares."""
        return self.heads % tp == 0 and (self.kv_heads % tp == 0 or tp % self.kv_heads == 0)


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek, arXiv 2405.04434).

    The cache holds kv_rank + rope_dim elements for each token, whatever the heads; decodes absorb
    the projection of keys and values into the queries and the output.
    """

    heads: int
    query_rank: int  # 0: queries are projected in one step
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int

    def projections(self, hidden: int) -> tuple[tuple[int, int], ...]:
        """(outputs, inputs) of its GEMMs."""
        down = self.query_rank + self.kv_rank + self.rope_dim
        queries = self.heads * (self.nope_dim + self.rope_dim)
        up_kv = self.heads * (self.nope_dim + self.value_dim)
        out = (hidden, self.heads * self.value_dim)
        if not self.query_rank:
            return (queries + down, hidden), (up_kv, self.kv_rank), out
        return (down, hidden), (queries, self.query_rank), (up_kv, self.kv_rank), out

    @property
    def kv_per_token(self) -> int:
        """Cached elements of one token."""
        return self.kv_rank + self.rope_dim

    def split(self, tp: int) -> "LatentAttention":
        """One GPU's share: heads are divided, the latent parts are on every GPU."""
        return dataclasses.replace(self, heads=self.heads // tp)

    def splits(self, tp: int) -> bool:
        """Whether ``tp`` GPUs get equal shares."""
        return self.heads % tp == 0


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Attention and a state-space layer over the same input, their outputs added (Falcon-H1)."""

    attention: Attention
    mamba: Mamba2

    def projections(self, hidden: int) -> tuple[tuple[int, int], ...]:
        """(outputs, inputs) of the GEMMs of both."""
        return self.attention.projections(hidden) + self.mamba.projections(hidden)

    @property
    def kv_per_token(self) -> int:
        """Cached elements of one token: attention's."""
        return self.attention.kv_per_token

    def split(self, tp: int) -> "SideBySide":
        """One GPU's share of both."""
        return SideBySide(self.attention.split(tp), self.mamba.split(tp))

    def splits(self, tp: int) -> bool:
        """Whether ``tp`` GPUs get equal shares."""
        return self.attention.splits(tp) and self.mamba.splits(tp)


@dataclass(frozen=True, slots=True)
class NoMixer:
    """A layer that is an MLP alone (Nemotron-H, DeciLM)."""

    @property
    def kv_per_token(self) -> int:
        """Nothing is cached."""
        return 0

    def projections(self, hidden: int) -> tuple[tuple[int, int], ...]:
        """No GEMMs."""
        del hidden
        return ()

    def split(self, tp: int) -> "NoMixer":
        """Nothing to share."""
        del tp
        return self

    def splits(self, tp: int) -> bool:
        """Nothing stands in the way."""
        del tp
        return True


@dataclass(frozen=True, slots=True)
class NoMlp:
    """A layer that is a mixer alone (Nemotron-H, DeciLM)."""

    def projections(self, hidden: int) -> tuple[tuple[int, int], ...]:
        """No GEMMs."""
        del hidden
        return ()

    def split(self, tp: int) -> "NoMlp":
        """Nothing to share."""
        del tp
        return self

    def splits(self, tp: int) -> bool:
        """Nothing stands in the way."""
        del tp
        return True


@dataclass(frozen=True, slots=True)
class DenseMlp:
    """Every token passes the same weights: gate, up and down, or up and down without a gate."""

    intermediate_size: int
    gated: bool = True

    def projections(self, hidden: int) -> tuple[tuple[int, int], ...]:
        """(outputs, inputs) of its GEMMs."""
        inner = self.intermediate_size
        return ((2 if self.gated else 1) * inner, hidden), (hidden, inner)

    def split(self, tp: int) -> "DenseMlp":
        """One GPU's share of the columns."""
        return dataclasses.replace(self, intermediate_size=self.intermediate_size // tp)

    def splits(self, tp: int) -> bool:
        """Whether ``tp`` GPUs get equal shares."""
        return self.intermediate_size % tp == 0


@dataclass(frozen=True, slots=True)
class MoeMlp:
    """A router chooses ``top_k`` of ``experts`` for each token; shared experts see all tokens.

    Attributes:
        intermediate_size: width of one expert, on this GPU.
        shared_size: width of the shared experts together, on this GPU; 0 = none.
        latent_size: tokens are projected down to so many numbers before the experts, and up again
            after them, on every GPU (Nemotron 3); 0 = experts take hidden states.
        apart: what all tokens pass has a norm of its own after it, so an all-reduce (Gemma 4).
        ep: GPUs that the experts are spread over; this one holds experts / ep of them, whole.
    """

    experts: int
    top_k: int
    intermediate_size: int
    shared_size: int = 0
    gated: bool = True
    ep: int = 1
    latent_size: int = 0
    apart: bool = False

    @property
    def local_experts(self) -> int:
        """Experts on this GPU."""
        return self.experts // self.ep

    def expert_projections(self, hidden: int) -> tuple[tuple[int, int], ...]:
        """(outputs, inputs) of one expert's GEMMs."""
        inputs = self.latent_size or hidden
        return DenseMlp(self.intermediate_size, self.gated).projections(inputs)

    def projections(self, hidden: int) -> tuple[tuple[int, int], ...]:
        """(outputs, inputs) of the GEMMs that all tokens pass: shared experts, latent steps."""
        latent = self.latent_size
        steps = ((latent, hidden), (hidden, latent)) if latent else ()
        if not self.shared_size:
            return steps
        return DenseMlp(self.shared_size, self.gated).projections(hidden) + steps

    def split(self, tp: int, ep: int, dp: int = 1) -> "MoeMlp":
        """One GPU's share: by width over all ``tp dp`` GPUs, or whole experts over ``ep``."""
        width = self.intermediate_size if ep > 1 else self.intermediate_size // (tp * dp)
        return dataclasses.replace(
            self, intermediate_size=width, shared_size=self.shared_size // tp, ep=ep
        )

    def splits(self, tp: int, ep: int = 1, dp: int = 1) -> bool:
        """Whether the GPUs get equal shares."""
        parts = tp * dp
        by_expert = self.experts % ep == 0 if ep > 1 else self.intermediate_size % parts == 0
        return by_expert and self.shared_size % tp == 0


Single = Attention | LatentAttention | GatedDelta | Mamba2 | ShortConv
Mixer = Single | SideBySide | NoMixer
Mlp = DenseMlp | MoeMlp | NoMlp


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer.

    Attributes:
        parallel: mixer and MLP read the same normed input, where else each has a norm before it.
    """

    mixer: Mixer
    mlp: Mlp
    parallel: bool = False

    @property
    def mixers(self) -> tuple[Single, ...]:
        """What looks at other tokens: one, two side by side, or nothing."""
        if isinstance(self.mixer, SideBySide):
            return self.mixer.attention, self.mixer.mamba
        return () if isinstance(self.mixer, NoMixer) else (self.mixer,)

    @property
    def halves(self) -> int:
        """Mixers and an MLP, each half with kernels of its own: 2, or 1."""
        return bool(self.mixers) + (not isinstance(self.mlp, NoMlp))

    @property
    def norms(self) -> int:
        """Norms of the layer's input, and additions to it."""
        return 1 if self.parallel else self.halves

    @property
    def reduces(self) -> int:
        """All-reduces over tensor-parallel GPUs: one after each output projection."""
        apart = isinstance(self.mlp, MoeMlp) and self.mlp.apart
        return len(self.mixers) + (not isinstance(self.mlp, NoMlp)) + apart

    def split(self, tp: int, ep: int, dp: int = 1) -> "Layer":
        """One GPU's share."""
        mlp = self.mlp.split(tp, ep, dp) if isinstance(self.mlp, MoeMlp) else self.mlp.split(tp)
        return Layer(self.mixer.split(tp), mlp, self.parallel)

    def splits(self, tp: int, ep: int = 1, dp: int = 1) -> bool:
        """Whether the GPUs get equal shares."""
        mlp = self.mlp
        equal = mlp.splits(tp, ep, dp) if isinstance(mlp, MoeMlp) else mlp.splits(tp)
        return self.mixer.splits(tp) and equal


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """So many equal layers of a stage; what the GPU does does not depend on their order."""

    count: int
    layer: Layer
