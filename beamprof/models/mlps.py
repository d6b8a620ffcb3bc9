"""The MLP of each layer: dense, routed experts, or none."""

from collections.abc import Sequence

from beamprof.errors import ModelShapeError
from beamprof.models.families import Family
from beamprof.models.fields import Fields
from beamprof.models.layers import DenseMlp, Mlp, MoeMlp, NoMlp

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
TOP_K = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_topk", "moe_k",
         "top_k_experts")  # fmt: skip
SHARED = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "num_shared_expert")
SHARED_WIDTH = ("shared_expert_intermediate_size", "shared_intermediate_size")
FIRST_DENSE = ("first_k_dense_replace", "moe_layer_start_index", "num_dense_layers")
EVERY = ("interleave_moe_layer_step", "decoder_sparse_step", "moe_layer_interval")
# HunYuan may write these as lists, one entry for each layer.
BY_LAYER = ("num_experts", "moe_topk", "num_shared_expert", "moe_intermediate_size")
# Fields that would change the cost and that no family here reads.
FOREIGN = ("moe_layer_num_skipped", "routed_expert_hidden_size")


def mlps(family: Family, text: Fields, kinds: Sequence[str]) -> Sequence[Mlp]:
    """The MLP of every layer, in order.

    Args:
        family: whose config it is.
        text: its decoder's part.
        kinds: of every layer, in order (layer_kinds.py).

    Raises:
        ModelShapeError: a field that is not priced, is missing or makes no sense.
    """
    for name in FOREIGN:
        if text.values.get(name):
            raise ModelShapeError(
                f"{text.where}: {name} is not priced",
                cause="it changes layers' experts in a way BEAM does not model",
            )
    # Gemma 4 has experts only where it says so.
    if family.experts and text.flag("enable_moe_block", default=not family.wide_full):
        _refuse_unnamed(text)
    text = text.level(*BY_LAYER)
    if family.alone:
        known: dict[str, Mlp] = {}
        if "mlp" in kinds:
            known["mlp"] = _dense(family, text)
        if "moe" in kinds:
            known["moe"] = _moe(family, text)
        return [known.get(kind, NoMlp()) for kind in kinds]
    if not family.experts or not _experts_named(text):
        if _experts_named(text):
            raise ModelShapeError(f"{text.where}: experts are not priced for this architecture")
        return [_dense(family, text)] * len(kinds)
    moe, layers = _moe(family, text), len(kinds)
    sparse = [_sparse(family, text, i, layers) for i in range(layers)]
    if all(sparse):
        return [moe] * layers
    dense = _dense(family, text)
    return [moe if routed else dense for routed in sparse]


def _dense(family: Family, text: Fields) -> DenseMlp:
    if not family.adjusted_width:
        return DenseMlp(text.size(*family.dense_width), family.gated_mlp)
    width = text.size("block_ff_dim", *family.dense_width)
    if text.flag("block_auto_adjust_ff_dim", default=True):
        width = int(text.number("block_ffn_dim_multiplier", default=1.0) * int(2 * width / 3))
        width = text.size("block_multiple_of", default=256) * -(
            -width // text.size("block_multiple_of", default=256)
        )
    return DenseMlp(width, family.gated_mlp)


def _experts_named(text: Fields) -> bool:
    if not text.flag("enable_moe_block", default=True):  # Gemma 4
        return False
    return any(text.count(name) > 1 for name in EXPERTS if text.has(name))


def _refuse_unnamed(text: Fields) -> None:
    """A model with experts whose config leaves out how many is no dense model."""
    if not any(name in text.values for name in EXPERTS):
        raise ModelShapeError(
            f"{text.where} does not say how many experts a layer has",
            cause=f"it leaves out {', '.join(EXPERTS)}",
            hint="write the one that this architecture uses into it (null: it has none)",
        )


def _moe(family: Family, text: Fields) -> MoeMlp:
    width = text.size("moe_intermediate_size", "expert_ffn_hidden_size", family.expert_width)
    experts, top_k = text.several(*EXPERTS), text.several(*TOP_K)
    if top_k > experts:
        raise ModelShapeError(f"{text.where}: {top_k} experts of {experts} for each token")
    return MoeMlp(
        experts=experts,
        top_k=top_k,
        intermediate_size=width,
        shared_size=_shared_size(family, text, width),
        gated=family.gated_mlp,
        latent_size=text.size("moe_latent_size") if text.has("moe_latent_size") else 0,
        apart=family.wide_full,
    )


def _shared_size(family: Family, text: Fields, width: int) -> int:
    """Width of the shared experts together; 0 = none."""
    if text.text("model_type").startswith("llama4"):
        return width  # one shared expert, always
    if not text.flag("use_mixed_mlp_moe", default=True):  # HunYuan
        return 0
    count = text.count(*SHARED, default=_class_default(text, SHARED, family.shared_experts))
    if family.shared_width:
        return count * text.size(family.shared_width)
    return text.count(*SHARED_WIDTH, default=count * width)


def _sparse(family: Family, text: Fields, layer: int, layers: int) -> bool:
    """Whether a layer of a model with experts has them; the others are dense."""
    named = text.texts("mlp_layer_types")
    if named:
        if len(named) != layers or set(named) - {"dense", "sparse"}:
            raise text.wrong("mlp_layer_types", f"'dense' or 'sparse' for each of {layers} layers")
        return named[layer] == "sparse"
    first = _class_default(text, FIRST_DENSE, family.first_dense)
    if layer < text.count(*FIRST_DENSE, default=first):
        return False
    if layer in text.sizes("mlp_only_layers") or layer > _last_sparse(text, layers):
        return False
    if text.has("moe_layers"):  # Llama 4
        return layer in text.sizes("moe_layers")
    if text.has("moe_layer_freq"):  # DeepSeek
        return layer % text.several("moe_layer_freq") == 0
    return all((layer + 1) % text.several(name) == 0 for name in EVERY if text.has(name))


def _class_default(text: Fields, names: Sequence[str], value: int) -> int:
    """What holds where the config leaves a count out; null is none."""
    return 0 if any(name in text.values for name in names) else value


def _last_sparse(text: Fields, layers: int) -> int:
    """ERNIE's last layer with experts; -1 is the last of all."""
    if text.values.get("moe_layer_end_index") in (None, -1):
        return layers - 1
    return text.count("moe_layer_end_index")
