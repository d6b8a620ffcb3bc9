"""What each architecture's config says about its layers, in the field names of its own config.

A family is a set of habits: where its window, its experts, its latent ranks stand. The names are
those of Hugging Face's transformers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from beamprof.errors import ModelShapeError
from beamprof.models.fields import Fields
from beamprof.models.layers import (
    Attention,
    DenseMlp,
    GatedDelta,
    LatentAttention,
    Mixer,
    Mlp,
    MoeMlp,
)


@dataclass(frozen=True, slots=True)
class Family:
    """Habits of one model_type.

    Attributes:
        qkv_bias, qk_norm: of the attention projections.
        window: "none" even if the field is there; "flag": only with use_sliding_window; "all":
            sliding_window holds for every layer without layer_types.
        full_every: without layer_types, every so-manieth layer has no window (0 = none).
        experts: the layers hold routed experts.
        gated_attention: the query projection yields an output gate.
    """

    qkv_bias: bool = False
    qk_norm: bool = False
    window: str = "none"
    full_every: int = 0
    experts: bool = False
    gated_attention: bool = False


FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(window="all"),
    "ministral": Family(window="all"),
    "ministral3": Family(window="all"),
    "qwen2": Family(qkv_bias=True, window="flag"),
    "qwen2_5_vl": Family(qkv_bias=True, window="flag"),
    "qwen3": Family(qk_norm=True, window="flag"),
    "qwen3_vl": Family(qk_norm=True),
    "gemma2": Family(window="all", full_every=2),
    "gemma3": Family(qk_norm=True, window="all", full_every=6),
    "phi3": Family(window="all"),
    "granite": Family(),
    "smollm3": Family(window="flag"),
    "seed_oss": Family(),
    "ernie4_5": Family(),
    "olmo2": Family(qk_norm=True),
    "olmo3": Family(qk_norm=True, window="all", full_every=4),
    "cohere2": Family(window="all", full_every=4),
    "glm4": Family(),
    "mixtral": Family(window="all", experts=True),
    "qwen2_moe": Family(qkv_bias=True, window="flag", experts=True),
    "qwen3_moe": Family(qk_norm=True, window="flag", experts=True),
    "qwen3_vl_moe": Family(qk_norm=True, experts=True),
    "olmoe": Family(qk_norm=True, experts=True),
    "granitemoe": Family(experts=True),
    "dots1": Family(qk_norm=True, window="all", experts=True),
    "gpt_oss": Family(qkv_bias=True, window="all", full_every=2, experts=True),
    "deepseek_v2": Family(experts=True),
    "deepseek_v3": Family(experts=True),
    "kimi_k2": Family(experts=True),
    "glm4_moe": Family(experts=True),
    "glm4_moe_lite": Family(experts=True),
    "llama4": Family(experts=True),
    "minimax_m2": Family(qk_norm=True, experts=True),
    "qwen3_next": Family(qk_norm=True, experts=True, gated_attention=True),
    "qwen3_5": Family(qk_norm=True, gated_attention=True),
    "qwen3_5_moe": Family(qk_norm=True, experts=True, gated_attention=True),
}
ARCHITECTURES: dict[str, str] = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "MinistralForCausalLM": "ministral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen2_5_VLForConditionalGeneration": "qwen2_5_vl",
    "Qwen3ForCausalLM": "qwen3",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
    "Phi3ForCausalLM": "phi3",
    "GraniteForCausalLM": "granite",
    "SmolLM3ForCausalLM": "smollm3",
    "SeedOssForCausalLM": "seed_oss",
    "Ernie4_5ForCausalLM": "ernie4_5",
    "Olmo2ForCausalLM": "olmo2",
    "Olmo3ForCausalLM": "olmo3",
    "Cohere2ForCausalLM": "cohere2",
    "OlmoeForCausalLM": "olmoe",
    "GraniteMoeForCausalLM": "granitemoe",
    "Dots1ForCausalLM": "dots1",
    "Glm4ForCausalLM": "glm4",
    "MixtralForCausalLM": "mixtral",
    "Qwen2MoeForCausalLM": "qwen2_moe",
    "Qwen3MoeForCausalLM": "qwen3_moe",
    "GptOssForCausalLM": "gpt_oss",
    "DeepseekV2ForCausalLM": "deepseek_v2",
    "DeepseekV3ForCausalLM": "deepseek_v3",
    "Glm4MoeForCausalLM": "glm4_moe",
    "Glm4MoeLiteForCausalLM": "glm4_moe_lite",
    "Llama4ForCausalLM": "llama4",
    "MiniMaxM2ForCausalLM": "minimax_m2",
    "Qwen3NextForCausalLM": "qwen3_next",
    "Qwen3_5ForCausalLM": "qwen3_5",
    "Qwen3_5MoeForCausalLM": "qwen3_5_moe",
}
# Fields that would change the cost and that no family here reads.
FOREIGN = ("mamba_d_state", "ssm_state_size", "index_topk", "hybrid_override_pattern",
           "num_kv_shared_layers", "mamba_n_heads", "lightning_attention")  # fmt: skip


def mixers(family: Family, text: Fields, attention: Attention, layers: int) -> Sequence[Mixer]:
    """The mixer of every layer, in order."""
    for name in FOREIGN:
        if text.values.get(name):
            raise ModelShapeError(
                f"{text.where}: {name} is not priced",
                cause="it changes the cost of attention in a way BEAM does not model",
                hint="measure this model: --backend vllm",
            )
    if text.has("kv_lora_rank"):
        return [_latent(text, attention.heads)] * layers
    if family.gated_attention:
        attention = replace(attention, gated=text.flag("attn_output_gate", default=True))
    kinds = _layer_types(family, text, layers)
    window = _window(family, text)
    known: dict[str, Mixer] = {"full_attention": attention}
    if window:
        known["sliding_attention"] = replace(attention, window_tokens=window)
    if text.has("attention_chunk_size"):
        chunk = text.size("attention_chunk_size")
        known["chunked_attention"] = replace(attention, window_tokens=chunk)
    if text.has("linear_num_value_heads"):
        known["linear_attention"] = _delta(text)
    unknown = sorted(set(kinds) - known.keys())
    if unknown:
        raise ModelShapeError(
            f"{text.where}: layers of the kind {unknown[0]!r} are not priced",
            cause="the config lacks what they need" if unknown[0].startswith("sliding") else None,
            hint=f"priced here: {', '.join(known)}",
        )
    return [known[kind] for kind in kinds]


def _layer_types(family: Family, text: Fields, layers: int) -> Sequence[str]:
    named = text.texts("layer_types")
    if named:
        if len(named) != layers:
            raise ModelShapeError(
                f"{text.where}: layer_types names {len(named)} layers of {layers}"
            )
        return named if _window(family, text) else [
            "full_attention" if kind == "sliding_attention" else kind for kind in named
        ]  # fmt: skip
    if text.has("linear_num_value_heads"):
        every = text.several("full_attention_interval", default=4)
        return ["linear_attention" if (i + 1) % every else "full_attention" for i in range(layers)]
    if text.has("attention_chunk_size"):  # Llama 4: every fourth layer has no RoPE and sees all
        every = text.several("no_rope_layer_interval", default=4)
        return ["chunked_attention" if (i + 1) % every else "full_attention" for i in range(layers)]
    if not _window(family, text):
        return ["full_attention"] * layers
    every = text.several("sliding_window_pattern", default=family.full_every or None) if (
        text.has("sliding_window_pattern") or family.full_every
    ) else 0  # fmt: skip
    if text.has("max_window_layers") and family.window == "flag":
        first = text.count("max_window_layers")
        return ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    return [
        "full_attention" if every and (i + 1) % every == 0 else "sliding_attention"
        for i in range(layers)
    ]


def _window(family: Family, text: Fields) -> int:
    if not text.has("sliding_window") or family.window == "none":
        return 0
    if family.window == "flag" and not text.flag("use_sliding_window"):
        return 0
    return text.size("sliding_window")


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


def mlps(family: Family, text: Fields, layers: int) -> Sequence[Mlp]:
    """The MLP of every layer, in order."""
    if not family.experts or not _experts_named(text):
        if _experts_named(text):
            raise ModelShapeError(f"{text.where}: experts are not priced for this architecture")
        return [DenseMlp(text.size("intermediate_size"))] * layers
    moe = _moe(text)
    dense_width = text.size("intermediate_size_mlp", "intermediate_size", default=1)
    return [
        DenseMlp(dense_width) if _dense_layer(text, i) else moe for i in range(layers)
    ]  # fmt: skip


EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def _experts_named(text: Fields) -> bool:
    return any(text.values.get(name) not in (None, 0, 1) for name in EXPERTS)


def _moe(text: Fields) -> MoeMlp:
    width = text.size("moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size")
    shared = text.count("n_shared_experts", "num_shared_experts") * width
    if text.text("model_type").startswith("llama4"):
        shared = width  # one shared expert, always
    experts, top_k = (
        text.several(*EXPERTS),
        text.several("num_experts_per_tok", "experts_per_token", "moe_topk"),
    )
    if top_k > experts:
        raise ModelShapeError(f"{text.where}: {top_k} experts of {experts} for each token")
    return MoeMlp(
        experts=experts,
        top_k=top_k,
        intermediate_size=width,
        shared_size=text.count("shared_expert_intermediate_size", default=shared),
    )


def _dense_layer(text: Fields, layer: int) -> bool:
    """Whether a layer of a model with experts is a dense one."""
    if layer < text.count("first_k_dense_replace") or layer in text.sizes("mlp_only_layers"):
        return True
    if text.has("moe_layers"):  # Llama 4
        return layer not in text.sizes("moe_layers")
    for name in ("interleave_moe_layer_step", "decoder_sparse_step", "moe_layer_freq"):
        if text.has(name):
            return (layer + 1) % text.several(name) != 0
    return False
