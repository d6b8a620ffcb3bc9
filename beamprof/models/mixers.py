"""The mixer of each layer: attention of some kind, or what keeps a state in its place."""

from collections.abc import Sequence
from dataclasses import replace

from beamprof.errors import ModelShapeError
from beamprof.models.families import Family
from beamprof.models.fields import Fields
from beamprof.models.layer_kinds import window_tokens
from beamprof.models.layers import Attention, LatentAttention, Mixer, NoMixer, SideBySide
from beamprof.models.recurrent import GatedDelta, Mamba2, ShortConv

# Fields that would change the cost and that no family here reads.
FOREIGN = (
    "index_topk",
    "hidden_size_per_layer_input",
    "num_kv_shared_layers",
    "lightning_attention",
    "use_cla",
    "cross_attention_layers",
    "mla_use_output_gate",
    "attn_res_block_size",
)
# The same, but for families with layers of that kind.
STATES = ("mamba_d_state", "ssm_state_size", "hybrid_override_pattern", "mamba_n_heads",
          "mamba_num_heads")  # fmt: skip
STATE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def mixers(
    family: Family, text: Fields, attention: Attention, kinds: Sequence[str], served: str
) -> Sequence[Mixer]:
    """The mixer of every layer, by its kind (layer_kinds.py).

    Args:
        family: whose config it is.
        text: its decoder's part.
        attention: as its flat fields say it.
        kinds: of every layer, in order.
        served: the format of what is not quantised.

    Raises:
        ModelShapeError: a field or a kind that is not priced, or one that is missing.
    """
    for name in FOREIGN if family.state in ("mamba", "beside") else FOREIGN + STATES:
        if text.values.get(name):
            raise ModelShapeError(
                f"{text.where}: {name} is not priced",
                cause="it changes the cost of attention in a way BEAM does not model",
                hint="no backend of BEAM takes it: a table of another model would not be its own",
            )
    known = _known(family, text, attention, served)
    unknown = sorted(set(kinds) - known.keys())
    if unknown:
        raise ModelShapeError(
            f"{text.where}: layers of the kind {unknown[0]!r} are not priced",
            cause="the config lacks what they need" if unknown[0].startswith("sliding") else None,
            hint=f"priced here: {', '.join(known)}",
        )
    return [known[kind] for kind in kinds]


def _known(family: Family, text: Fields, attention: Attention, served: str) -> dict[str, Mixer]:
    """What the config's fields suffice for, by kind of layer."""
    if family.latent or text.has("kv_lora_rank"):
        known: dict[str, Mixer] = {"full_attention": _latent(text, attention.heads)}
    else:
        if family.gated_attention:
            attention = replace(attention, gated=text.flag("attn_output_gate", default=True))
        known = {"full_attention": attention}
        if window := window_tokens(family, text):
            known["sliding_attention"] = replace(attention, window_tokens=window)
        if family.wide_full:
            known["full_attention"] = _wide(text, attention)
        if text.has("attention_chunk_size"):
            chunk = text.size("attention_chunk_size")
            known["chunked_attention"] = replace(attention, window_tokens=chunk)
    if family.state == "kimi":
        known["linear_attention"] = _kimi(text)
    elif family.state == "beside":
        known = {"full_attention": SideBySide(attention, mamba2(family, text, served))}
    elif family.state == "conv":
        width = text.several("conv_L_cache", default=3)
        known["linear_attention"] = ShortConv(text.size("hidden_size"), width)
    elif family.state == "mamba":
        known["linear_attention"] = mamba2(family, text, served)
    elif text.has("linear_num_value_heads"):
        known["linear_attention"] = _delta(text)
    if family.alone:
        known |= {"mlp": NoMixer(), "moe": NoMixer()}
    return known


def _wide(text: Fields, attention: Attention) -> Attention:
    """Gemma 4's attention without a window.

    Where keys are values (attention_k_eq_v) engines load the weights of keys twice, and keep both
    in the cache. per_layer_config is how transformers saves the same.
    """
    by_layer = text.inner("per_layer_config")
    if by_layer is None:
        told = text if text.flag("attention_k_eq_v") else Fields({}, text.where)
        kv_heads = told.several("num_global_key_value_heads", default=attention.kv_heads)
        return replace(
            attention, head_dim=text.size("global_head_dim", default=512), kv_heads=kv_heads
        )
    found = {
        replace(
            attention,
            head_dim=layer.size("head_dim", default=attention.head_dim),
            kv_heads=layer.several("num_key_value_heads", default=attention.kv_heads),
        )
        for name in by_layer.values
        if (layer := by_layer.inner(name)) is not None
    }
    if len(found) != 1:
        raise ModelShapeError(f"{by_layer.where}: {len(found)} kinds of heads, and one is priced")
    return found.pop()


def _latent(text: Fields, heads: int) -> LatentAttention:
    return LatentAttention(
        heads=heads,
        query_rank=text.count("q_lora_rank"),
        kv_rank=text.size("kv_lora_rank"),
        nope_dim=text.size("qk_nope_head_dim"),
        rope_dim=text.size("qk_rope_head_dim"),
        value_dim=text.size("v_head_dim"),
    )


def _delta(text: Fields) -> GatedDelta:
    return GatedDelta(
        key_heads=text.several("linear_num_key_heads"),
        value_heads=text.several("linear_num_value_heads"),
        key_dim=text.size("linear_key_head_dim"),
        value_dim=text.size("linear_value_head_dim"),
        conv_width=text.several("linear_conv_kernel_dim", default=4),
    )


def _kimi(text: Fields) -> GatedDelta:
    """Kimi's delta attention: as many key heads as value heads, gates by channel."""
    inner = text.inner("linear_attn_config")
    if inner is None:
        heads, dim = text.several("linear_num_heads"), text.size("linear_head_dim")
        conv = text.several("linear_conv_kernel_dim", default=4)
    else:
        if inner.flag("use_full_rank_gate"):  # Kimi K3
            raise ModelShapeError(f"{inner.where}: use_full_rank_gate is not priced")
        heads, dim = inner.several("num_heads"), inner.size("head_dim")
        conv = inner.several("short_conv_kernel_size", default=4)
    return GatedDelta(heads, heads, dim, dim, conv, gate_rank=dim)


def mamba2(family: Family, text: Fields, served: str) -> Mamba2:
    """A Mamba-2 layer; Nemotron-H writes its fields in other words than the others do.

    Raises:
        ModelShapeError: fields that contradict each other, or a state in a format that no engine
            keeps it in.
    """
    heads = text.several("mamba_num_heads", "mamba_n_heads")
    if text.has("mamba_head_dim"):
        head_dim = text.size("mamba_head_dim")
    else:
        inner = _inner_size(family, text)
        head_dim = inner // heads
        if text.values.get("mamba_d_head") not in (None, "auto"):
            head_dim = text.size("mamba_d_head")
        if heads * head_dim != inner:
            raise ModelShapeError(
                f"{text.where}: {heads} Mamba heads of {head_dim} are not {inner} channels"
            )
    kept = text.text("mamba_ssm_cache_dtype") or family.state_dtype or served
    if kept not in STATE_BYTES:
        raise ModelShapeError(
            f"{text.where}: mamba_ssm_cache_dtype {kept!r} is not priced",
            hint=f"priced are {', '.join(STATE_BYTES)}",
        )
    return Mamba2(
        heads=heads,
        head_dim=head_dim,
        state_dim=text.size("ssm_state_size", "mamba_d_state"),
        groups=text.several("mamba_n_groups", "n_groups"),
        conv_width=text.several("mamba_d_conv", "conv_kernel", default=4),
        state_bytes=STATE_BYTES[kept],
        normed=text.flag("mamba_rms_norm", default=family.state != "beside"),
    )


def _inner_size(family: Family, text: Fields) -> int:
    if text.has("mamba_d_ssm"):
        return text.size("mamba_d_ssm")
    if family.state == "beside" and "mamba_d_ssm" not in text.values:
        return text.size("mamba_d_ssm")  # its class has a default that no model has
    return text.size("mamba_expand", default=2) * text.size("hidden_size")
