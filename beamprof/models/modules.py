"""The names under which checkpoints and engines know a layer's tensors, by what has one format.

Lists of modules in a quantization_config name tensors; what is priced is a part of a layer: the
projections of its input, and the one that makes its output.
"""

from collections.abc import Sequence

from beamprof.models.layers import DenseMlp, LatentAttention, Layer, MoeMlp, Single
from beamprof.models.recurrent import GatedDelta, Mamba2, ShortConv

# All names of one tensor in a layer, fused with others or alone.
Names = tuple[str, ...]
QKV: tuple[Names, ...] = (
    ("q_proj", "qkv_proj"),
    ("k_proj", "qkv_proj"),
    ("v_proj", "qkv_proj"),
)
# Without kv_b_proj, which engines unpack to 16 bit and absorb into queries and outputs.
LATENT_KV: Names = ("kv_a_proj_with_mqa", "fused_qkv_a_proj")
LATENT_Q: tuple[Names, ...] = (("q_a_proj", "fused_qkv_a_proj"), ("q_b_proj",))
DELTA: tuple[Names, ...] = (("in_proj_qkvz", "in_proj_qkv"), ("in_proj_qkvz", "in_proj_z"))
GATE: Names = ("gate_proj", "gate_up_proj", "w1", "input_linear")
UP: Names = ("up_proj", "gate_up_proj", "w3", "input_linear")
DOWN: Names = ("down_proj", "w2", "output_linear")
OUT: Names = ("o_proj", "out_proj")
DENSE = ("mlp", "feed_forward", "mixer", "shared_mlp")
SHARED = ("mlp.shared_expert", "mlp.shared_experts", "mixer.shared_experts", "shared_mlp",
          "feed_forward.shared_expert")  # fmt: skip
BLOCKS = ("mlp", "block_sparse_moe", "feed_forward", "mixer")


def modules(layer: Layer) -> dict[str, tuple[Names, ...]]:
    """A layer's tensors by the field of Precision that prices them; what it lacks is left out."""
    found: dict[str, tuple[Names, ...]] = {}
    for mixer in layer.mixers:
        prefixes, inputs = _mixer(mixer)
        found["attention"] = found.get("attention", ()) + _at(prefixes, *inputs)
        found["attention_out"] = found.get("attention_out", ()) + _at(prefixes, OUT)
    mlp = layer.mlp
    if mlp.projections(1):
        gated = isinstance(mlp, DenseMlp | MoeMlp) and mlp.gated
        prefixes = SHARED if isinstance(mlp, MoeMlp) else DENSE
        found["mlp"] = _at(prefixes, *((GATE, UP) if gated else (UP,)))
        found["mlp_down"] = _at(prefixes, DOWN)
    if isinstance(mlp, MoeMlp):
        found["experts"] = _experts(mlp)
    return found


def _mixer(mixer: Single) -> tuple[tuple[str, ...], Sequence[Names]]:
    if isinstance(mixer, GatedDelta):  # one with a rank is Kimi's, which is called attention
        return (("self_attn",), QKV) if mixer.gate_rank else (("linear_attn",), DELTA)
    if isinstance(mixer, Mamba2):
        return ("mixer", "mamba"), (("in_proj",),)
    if isinstance(mixer, ShortConv):
        return ("conv",), (("in_proj",),)
    if isinstance(mixer, LatentAttention):
        queries = LATENT_Q if mixer.query_rank else (("q_proj",),)
        return ("self_attn",), (*queries, LATENT_KV)
    return ("self_attn", "mixer"), QKV


def _experts(mlp: MoeMlp) -> tuple[Names, ...]:
    """Some lists name the experts as a whole, or one of them; Granite's have no such name."""
    whole = tuple(f"{block}.experts" for block in BLOCKS)
    prefixes = (*whole, *(f"{name}.0" for name in whole), "block_sparse_moe")
    each = (GATE, UP, DOWN) if mlp.gated else (UP, DOWN)
    return tuple((*names, *whole) for names in _at(prefixes, *each))


def _at(prefixes: Sequence[str], *tensors: Names) -> tuple[Names, ...]:
    return tuple(tuple(f"{at}.{name}" for at in prefixes for name in names) for names in tensors)
