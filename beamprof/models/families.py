"""What each architecture's config says about its layers, in the field names of its own config.

A family is a set of habits: where its window, its experts, its latent ranks stand. The names are
those of Hugging Face's transformers. mixers.py and mlps.py read configs by them.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Family:
    """Habits of one model_type.

    Attributes:
        qkv_bias, qk_norm: of the attention projections.
        window: "none" even if the field is there; "flag": only with use_sliding_window; "all":
            sliding_window holds for every layer without layer_types.
        full_every: without layer_types, every so-manieth layer has no window (0 = none).
        experts: the layers hold routed experts. expert_width: field of one's width, which a config
            must have.
        latent: attention is latent (MLA), and the config must say its rank.
        shared_experts, first_dense: shared experts, and dense layers before those with experts,
            where the config does not say.
        dense_width: fields of a dense MLP's width, the first that is there. shared_width: field of
            one shared expert's; empty = as wide as a routed one, or one field for all of them.
        adjusted_width: of a dense MLP two thirds are taken, rounded up, unless the config says no.
        wide_full: layers without a window have heads of a size of their own, and fewer for keys.
        gated_attention: the query projection yields an output gate.
        gated_mlp: MLPs have a gate beside the projection up.
        state: what layers without attention keep a state by: "mamba" (Mamba-2), "kimi" (Kimi's
            delta attention), "beside" (Mamba-2 beside attention in every layer), "conv" (a short
            convolution); empty = gated delta nets where the config has their fields, else none.
        state_dtype: of that state where the config does not say; empty = of the weights.
        alone: a layer is a mixer or an MLP, not both.
        parallel: a layer's mixer and MLP read the same input, if the config does not deny it.
        blocks: every layer is described by itself, in block_configs.
        head_dim: where the config does not say; 0 = the hidden size over the heads.
    """

    qkv_bias: bool = False
    qk_norm: bool = False
    window: str = "none"
    full_every: int = 0
    experts: bool = False
    expert_width: str = "moe_intermediate_size"
    latent: bool = False
    shared_experts: int = 0
    first_dense: int = 0
    dense_width: tuple[str, ...] = ("intermediate_size_mlp", "intermediate_size")
    shared_width: str = ""
    adjusted_width: bool = False
    wide_full: bool = False
    gated_attention: bool = False
    gated_mlp: bool = True
    state: str = ""
    state_dtype: str = ""
    alone: bool = False
    parallel: bool = False
    blocks: bool = False
    head_dim: int = 0


WIDTH = "intermediate_size"  # of experts that are all there is
FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(window="all"),
    "ministral": Family(window="all"),
    "ministral3": Family(window="all"),
    "qwen2": Family(qkv_bias=True, window="flag"),
    "qwen2_vl": Family(qkv_bias=True, window="flag"),
    "qwen2_5_vl": Family(qkv_bias=True, window="flag"),
    "qwen2_5_omni": Family(qkv_bias=True, window="flag"),
    "mimo": Family(qkv_bias=True),
    "qwen3": Family(qk_norm=True, window="flag"),
    "qwen3_vl": Family(qk_norm=True),
    "gemma": Family(),
    "gemma2": Family(window="all", full_every=2),
    "gemma4": Family(
        qk_norm=True,
        window="all",
        full_every=6,
        wide_full=True,
        experts=True,
        shared_experts=1,
        shared_width="intermediate_size",
    ),
    "gemma3": Family(qk_norm=True, window="all", full_every=6),
    "phi3": Family(window="all"),
    "exaone4": Family(qk_norm=True, window="all", full_every=4),
    "hunyuan_v1_dense": Family(qk_norm=True),
    "nemotron": Family(gated_mlp=False),
    "nemotron_nas": Family(blocks=True),
    "arcee": Family(gated_mlp=False),
    "apertus": Family(qk_norm=True, gated_mlp=False),
    "starcoder2": Family(qkv_bias=True, window="all", gated_mlp=False),
    "internlm2": Family(),
    "internlm3": Family(),
    "stablelm": Family(),
    "granite": Family(),
    "smollm3": Family(window="flag"),
    "seed_oss": Family(),
    "ernie4_5": Family(),
    "olmo": Family(),
    "olmo2": Family(qk_norm=True),
    "olmo3": Family(qk_norm=True, window="all", full_every=4),
    "cohere": Family(parallel=True),
    "cohere2": Family(window="all", full_every=4, parallel=True),
    "gpt_neox": Family(qkv_bias=True, gated_mlp=False, parallel=True),
    "phi": Family(qkv_bias=True, gated_mlp=False, parallel=True),
    "glm": Family(qkv_bias=True),
    "glm4": Family(),
    "glm4v": Family(qkv_bias=True),
    "mixtral": Family(window="all", experts=True, expert_width=WIDTH),
    "qwen2_moe": Family(qkv_bias=True, window="flag", experts=True),
    "qwen3_moe": Family(qk_norm=True, window="flag", experts=True),
    "qwen3_vl_moe": Family(qk_norm=True, experts=True),
    "qwen3_omni_moe": Family(qk_norm=True, experts=True),
    "bailing_moe_v2": Family(qk_norm=True, experts=True, shared_experts=1, first_dense=1),
    "olmoe": Family(qk_norm=True, experts=True, expert_width=WIDTH),
    "flex_olmo": Family(qk_norm=True, experts=True, expert_width=WIDTH),
    "granitemoe": Family(experts=True, expert_width=WIDTH),
    "granitemoeshared": Family(experts=True, expert_width=WIDTH),
    "phimoe": Family(window="all", experts=True, expert_width=WIDTH),
    "solar_open": Family(experts=True, shared_experts=1),
    "exaone_moe": Family(
        qk_norm=True, window="all", full_every=4, experts=True, shared_experts=1, first_dense=1
    ),
    "hy_v3": Family(qk_norm=True, experts=True, shared_experts=1, first_dense=1),
    "afmoe": Family(
        qk_norm=True,
        window="all",
        full_every=4,
        experts=True,
        shared_experts=2,
        first_dense=1,
        gated_attention=True,
    ),
    "dots1": Family(qk_norm=True, window="all", experts=True),
    "gpt_oss": Family(qkv_bias=True, window="all", full_every=2, experts=True, expert_width=WIDTH),
    "deepseek_v2": Family(experts=True, latent=True),
    "deepseek_v3": Family(experts=True, latent=True),
    "kimi_k2": Family(experts=True, latent=True),
    "glm4_moe": Family(experts=True, shared_experts=1, first_dense=1),
    "glm4_moe_lite": Family(experts=True, latent=True, shared_experts=1, first_dense=1),
    "glm4v_moe": Family(qkv_bias=True, experts=True, shared_experts=1, first_dense=1),
    "llama4": Family(experts=True, expert_width=WIDTH),
    "minimax_m2": Family(qk_norm=True, experts=True, expert_width=WIDTH),
    "hunyuan_v1_moe": Family(
        qk_norm=True,
        experts=True,
        expert_width=WIDTH,
        shared_experts=1,
        shared_width="intermediate_size",
    ),
    "ernie4_5_moe": Family(experts=True, shared_experts=2, first_dense=1),
    "mistral4": Family(experts=True, latent=True, shared_experts=1),
    "kimi_linear": Family(experts=True, latent=True, shared_experts=1, first_dense=1, state="kimi"),
    "nemotron_h": Family(
        state="mamba",
        state_dtype="float32",
        alone=True,
        gated_mlp=False,
        head_dim=128,
        shared_experts=1,
        shared_width="moe_shared_expert_intermediate_size",
    ),
    "granitemoehybrid": Family(
        experts=True,
        expert_width=WIDTH,
        state="mamba",
        dense_width=("shared_intermediate_size",),
    ),
    "bamba": Family(state="mamba"),
    "lfm2": Family(qk_norm=True, state="conv", adjusted_width=True),
    "lfm2_moe": Family(qk_norm=True, experts=True, state="conv", first_dense=2),
    "olmo_hybrid": Family(qk_norm=True),
    "falcon_h1": Family(state="beside"),
    "qwen3_next": Family(qk_norm=True, experts=True, gated_attention=True),
    "qwen3_5": Family(qk_norm=True, gated_attention=True),
    "qwen3_5_moe": Family(qk_norm=True, experts=True, gated_attention=True),
}
# Refused by name, with what is in the way: (architecture, what of it has no price).
REFUSED: dict[str, str] = {
    "DeepseekV32ForCausalLM": "sparse attention: an indexer picks which tokens are attended to",
    "DeepseekV4ForCausalLM": "sparse and compressed attention",
    "GlmMoeDsaForCausalLM": "sparse attention: an indexer picks which tokens are attended to",
    "MiniMaxM3SparseForCausalLM": "sparse attention",
    "MiniMaxText01ForCausalLM": "lightning attention",
    "Gemma3nForCausalLM": "layers that share a KV cache, and embeddings of every layer",
    "JambaForCausalLM": "Mamba-1 layers",
    "MambaForCausalLM": "Mamba-1 layers",
    "Zamba2ForCausalLM": "attention that several layers share",
    "FalconForCausalLM": "attention and MLP side by side, summed up once",
    "NemotronHPuzzleForCausalLM": "Mamba blocks of several sizes",
    "LongcatFlashForCausalLM": "two attentions in a layer, and experts that do nothing",
    "MiMoV2FlashForCausalLM": "values of another size than keys, other heads under a window",
    "Step3p5ForCausalLM": "other heads under a window",
    "KimiK3ForConditionalGeneration": "gated latent attention, experts behind a latent step",
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
    "Gemma4ForCausalLM": "gemma4",
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
    "BailingMoeV2ForCausalLM": "bailing_moe_v2",
    "MiMoForCausalLM": "mimo",
    "Glm4MoeForCausalLM": "glm4_moe",
    "Glm4MoeLiteForCausalLM": "glm4_moe_lite",
    "Llama4ForCausalLM": "llama4",
    "MiniMaxM2ForCausalLM": "minimax_m2",
    "Qwen3NextForCausalLM": "qwen3_next",
    "Qwen3_5ForCausalLM": "qwen3_5",
    "Qwen3_5MoeForCausalLM": "qwen3_5_moe",
    "GemmaForCausalLM": "gemma",
    "CohereForCausalLM": "cohere",
    "GlmForCausalLM": "glm",
    "GPTNeoXForCausalLM": "gpt_neox",
    "PhiForCausalLM": "phi",
    "OlmoForCausalLM": "olmo",
    "Qwen2VLForConditionalGeneration": "qwen2_vl",
    "FlexOlmoForCausalLM": "flex_olmo",
    "GraniteMoeSharedForCausalLM": "granitemoeshared",
    "PhimoeForCausalLM": "phimoe",
    "PhiMoEForCausalLM": "phimoe",
    "SolarOpenForCausalLM": "solar_open",
    "ExaoneMoeForCausalLM": "exaone_moe",
    "ExaoneMoEForCausalLM": "exaone_moe",
    "HYV3ForCausalLM": "hy_v3",
    "AfmoeForCausalLM": "afmoe",
    "Lfm2ForCausalLM": "lfm2",
    "Lfm2MoeForCausalLM": "lfm2_moe",
    "OlmoHybridForCausalLM": "olmo_hybrid",
    "Exaone4ForCausalLM": "exaone4",
    "Exaone4_5_ForConditionalGeneration": "exaone4",
    "HunYuanDenseV1ForCausalLM": "hunyuan_v1_dense",
    "HunYuanMoEV1ForCausalLM": "hunyuan_v1_moe",
    "Ernie4_5_MoeForCausalLM": "ernie4_5_moe",
    "NemotronForCausalLM": "nemotron",
    "DeciLMForCausalLM": "nemotron_nas",
    "ArceeForCausalLM": "arcee",
    "ApertusForCausalLM": "apertus",
    "Starcoder2ForCausalLM": "starcoder2",
    "InternLM2ForCausalLM": "internlm2",
    "InternLM3ForCausalLM": "internlm3",
    "StableLmForCausalLM": "stablelm",
    "Ministral3ForCausalLM": "ministral3",
    "Mistral4ForCausalLM": "mistral4",
    "MistralLarge3ForCausalLM": "deepseek_v3",
    "KimiLinearForCausalLM": "kimi_linear",
    "NemotronHForCausalLM": "nemotron_h",
    "GraniteMoeHybridForCausalLM": "granitemoehybrid",
    "BambaForCausalLM": "bamba",
    "FalconH1ForCausalLM": "falcon_h1",
}
