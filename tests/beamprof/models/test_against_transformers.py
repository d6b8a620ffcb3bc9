"""Layer by layer, the weights are those that transformers builds of the same config.

Small configs in the words of each family's own config.json. Left out on both sides: embeddings,
norms, biases, routers and the few numbers of short convolutions.
"""

from typing import Any

import pytest

from beamprof.backends.vllm_model import hf_config
from beamprof.models.config import shape_of
from beamprof.models.layers import Layer, MoeMlp
from beamprof.models.registry import registry
from beamprof.models.shape import ModelShape

SMALL = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8,
         "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 512,
         "max_position_embeddings": 4096}  # fmt: skip
HEAD = {"head_dim": 64}
LATENT = {"q_lora_rank": 96, "kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16,
          "v_head_dim": 48}  # fmt: skip
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 64, "mamba_n_groups": 2, "mamba_d_state": 32,
         "mamba_d_conv": 4, "mamba_expand": 2}  # fmt: skip
NEMOTRON_H = {"mamba_num_heads": 12, "mamba_head_dim": 48, "n_groups": 4, "ssm_state_size": 64,
              "conv_kernel": 4, "expand": 2, "mlp_hidden_act": "relu2", "num_hidden_layers": 9,
              "n_routed_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 96,
              "n_shared_experts": 1, "moe_shared_expert_intermediate_size": 160}  # fmt: skip
KIMI = {"num_experts": 16, "num_experts_per_token": 4, "num_shared_experts": 1,
        "moe_intermediate_size": 96, "first_k_dense_replace": 1, "moe_layer_freq": 1,
        "pad_token_id": 0,
        "linear_attn_config": {"full_attn_layers": [4, 8], "kda_layers": [1, 2, 3, 5, 6, 7],
                               "head_dim": 32, "num_heads": 6, "short_conv_kernel_size": 4},
        }  # fmt: skip
EXPERTS = {"num_experts_per_tok": 4, "moe_intermediate_size": 96}
ROUTED = {**EXPERTS, "num_experts": 16}
DELTA = {"linear_num_key_heads": 4, "linear_num_value_heads": 8, "linear_key_head_dim": 32,
         "linear_value_head_dim": 32, "linear_conv_kernel_dim": 4}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {}),
    "mistral": ("MistralForCausalLM", {"sliding_window": 128}),
    "ministral": ("MinistralForCausalLM", {**HEAD, "sliding_window": 128}),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "qwen3": ("Qwen3ForCausalLM", HEAD),
    "gemma2": ("Gemma2ForCausalLM", {**HEAD, "sliding_window": 128}),
    "gemma3_text": ("Gemma3ForCausalLM", {**HEAD, "sliding_window": 128}),
    "gemma4_text": (
        "Gemma4ForCausalLM",
        {**HEAD, "global_head_dim": 96, "num_global_key_value_heads": 1, "sliding_window": 128,
         "hidden_size_per_layer_input": 0},
    ),
    "gemma4_text-moe": (
        "Gemma4ForCausalLM",
        {**HEAD, "global_head_dim": 96, "num_kv_shared_layers": 0, "sliding_window": 128,
         "hidden_size_per_layer_input": 0, "enable_moe_block": True, "num_experts": 16,
         "top_k_experts": 4, "moe_intermediate_size": 96},
    ),
    "phi3": ("Phi3ForCausalLM", {"pad_token_id": 0}),
    "granite": ("GraniteForCausalLM", {}),
    "glm4": ("Glm4ForCausalLM", {**HEAD, "pad_token_id": 0}),
    "dots1": (
        "Dots1ForCausalLM",
        {**EXPERTS, "n_routed_experts": 16, "n_shared_experts": 2, "first_k_dense_replace": 1},
    ),
    "mixtral": ("MixtralForCausalLM", {"num_local_experts": 8, "num_experts_per_tok": 2}),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM",
        {**ROUTED, "shared_expert_intermediate_size": 200, "decoder_sparse_step": 2},
    ),
    "qwen3_moe": ("Qwen3MoeForCausalLM", {**ROUTED, **HEAD, "mlp_only_layers": [1]}),
    "gpt_oss": (
        "GptOssForCausalLM",
        {**HEAD, "num_local_experts": 16, "num_experts_per_tok": 4, "pad_token_id": 0,
         "sliding_window": 128},
    ),
    "deepseek_v2": (
        "DeepseekV2ForCausalLM",
        {**LATENT, **EXPERTS, "n_routed_experts": 16, "n_shared_experts": 2,
         "first_k_dense_replace": 1},
    ),
    "deepseek_v3": (
        "DeepseekV3ForCausalLM",
        {**LATENT, **EXPERTS, "n_routed_experts": 16, "n_shared_experts": 1,
         "first_k_dense_replace": 3, "n_group": 4, "topk_group": 2},
    ),
    "glm4_moe": (
        "Glm4MoeForCausalLM",
        {**HEAD, **EXPERTS, "n_routed_experts": 16, "n_shared_experts": 1,
         "first_k_dense_replace": 2, "pad_token_id": 0},
    ),
    "glm4_moe_lite": (
        "Glm4MoeLiteForCausalLM",
        {**LATENT, **EXPERTS, "n_routed_experts": 16, "pad_token_id": 0},
    ),
    "llama4_text": (
        "Llama4ForCausalLM",
        {**HEAD, "num_local_experts": 16, "num_experts_per_tok": 1, "intermediate_size_mlp": 700,
         "interleave_moe_layer_step": 2, "pad_token_id": 0, "attention_chunk_size": 128},
    ),
    "minimax_m2": (
        "MiniMaxM2ForCausalLM",
        {**HEAD, "num_local_experts": 16, "num_experts_per_tok": 4, "pad_token_id": 0},
    ),
    "qwen3_next": (
        "Qwen3NextForCausalLM", {**HEAD, **ROUTED, **DELTA, "shared_expert_intermediate_size": 200}
    ),
    "qwen3_5_text": ("Qwen3_5ForCausalLM", {**HEAD, **DELTA}),
    "qwen3_5_moe_text": (
        "Qwen3_5MoeForCausalLM",
        {**HEAD, **ROUTED, **DELTA, "shared_expert_intermediate_size": 200},
    ),
    "exaone4": ("Exaone4ForCausalLM", {"sliding_window": 128, "sliding_window_pattern": 4}),
    "hunyuan_v1_dense": ("HunYuanDenseV1ForCausalLM", HEAD),
    "hunyuan_v1_moe": (
        "HunYuanMoEV1ForCausalLM",
        {**HEAD, "num_experts": 16, "moe_topk": [4] * 8},
    ),
    "ernie4_5_moe": (
        "Ernie4_5_MoeForCausalLM",
        {"moe_num_experts": 16, "moe_k": 4, "moe_num_shared_experts": 3,
         "moe_intermediate_size": 96, "moe_layer_start_index": 1, "moe_layer_end_index": 6,
         "moe_layer_interval": 2},
    ),
    "nemotron": ("NemotronForCausalLM", {**HEAD, "hidden_act": "relu2"}),
    "arcee": ("ArceeForCausalLM", {**HEAD, "hidden_act": "relu2"}),
    "apertus": ("ApertusForCausalLM", {"hidden_act": "xielu"}),
    "starcoder2": ("Starcoder2ForCausalLM", {"sliding_window": 128}),
    "stablelm": ("StableLmForCausalLM", {"use_qkv_bias": True}),
    "ministral3": ("Ministral3ForCausalLM", HEAD),
    "mistral4": (
        "Mistral4ForCausalLM",
        {**LATENT, **EXPERTS, "n_routed_experts": 16, "n_shared_experts": 1,
         "first_k_dense_replace": 2},
    ),
    "kimi_linear": ("KimiLinearForCausalLM", {**LATENT, **KIMI, "q_lora_rank": None}),
    "nemotron_h": (
        "NemotronHForCausalLM", {**NEMOTRON_H, **HEAD, "hybrid_override_pattern": "M-ME*EMM-"}
    ),
    "nemotron_h-latent": (
        "NemotronHForCausalLM",
        {**NEMOTRON_H, "moe_latent_size": 64, "num_hidden_layers": 4,
         "layers_block_type": ["mamba", "moe", "attention", "moe"]},
    ),
    "granitemoehybrid": (
        "GraniteMoeHybridForCausalLM",
        {**MAMBA, "num_local_experts": 16, "num_experts_per_tok": 4,
         "shared_intermediate_size": 160, "layer_types": (["mamba"] * 3 + ["attention"]) * 2},
    ),
    "granitemoehybrid-dense": (
        "GraniteMoeHybridForCausalLM",
        {**MAMBA, "num_local_experts": 0, "num_experts_per_tok": 0,
         "shared_intermediate_size": 160, "layer_types": (["mamba"] * 3 + ["attention"]) * 2},
    ),
    "gemma": ("GemmaForCausalLM", HEAD),
    "cohere": ("CohereForCausalLM", {}),
    "gpt_neox": ("GPTNeoXForCausalLM", {"num_key_value_heads": 8}),
    "phi": ("PhiForCausalLM", {}),
    "glm": ("GlmForCausalLM", {**HEAD, "pad_token_id": 0}),
    "glm4v_text": ("Glm4vForConditionalGeneration", {}),
    "glm4v_moe_text": (
        "Glm4vMoeForConditionalGeneration",
        {**EXPERTS, "n_routed_experts": 16, "n_shared_experts": 1, "first_k_dense_replace": 2},
    ),
    "qwen2_vl_text": ("Qwen2VLForConditionalGeneration", {}),
    "olmo": ("OlmoForCausalLM", {}),
    "flex_olmo": ("FlexOlmoForCausalLM", {"num_experts": 16, "num_experts_per_tok": 4,
                                          "pad_token_id": 0}),
    "granitemoeshared": (
        "GraniteMoeSharedForCausalLM",
        {"num_local_experts": 16, "num_experts_per_tok": 4, "shared_intermediate_size": 160},
    ),
    "phimoe": ("PhimoeForCausalLM", {"num_local_experts": 16, "num_experts_per_tok": 4}),
    "solar_open": ("SolarOpenForCausalLM", {**HEAD, **EXPERTS, "n_routed_experts": 16}),
    "exaone_moe": (
        "ExaoneMoeForCausalLM",
        {**EXPERTS, "num_experts": 16, "sliding_window": 128, "sliding_window_pattern": 4},
    ),
    "hy_v3": ("HYV3ForCausalLM", {**HEAD, **EXPERTS, "num_experts": 16}),
    "afmoe": (
        "AfmoeForCausalLM",
        {**HEAD, **EXPERTS, "num_experts": 16, "num_dense_layers": 2, "sliding_window": 128},
    ),
    "lfm2": ("Lfm2ForCausalLM", {"block_multiple_of": 64, "full_attn_idxs": [2, 5]}),
    "lfm2_moe": (
        "Lfm2MoeForCausalLM",
        {**EXPERTS, "num_experts": 16, "num_dense_layers": 2,
         "layer_types": ["conv", "conv", "full_attention", "conv"] * 2},
    ),
    "olmo_hybrid": (
        "OlmoHybridForCausalLM",
        {"linear_num_key_heads": 4, "linear_num_value_heads": 8, "linear_key_head_dim": 24,
         "linear_value_head_dim": 48, "pad_token_id": 0},
    ),
    "bamba": ("BambaForCausalLM", {**MAMBA, "attn_layer_indices": [2, 5]}),
    "falcon_h1": ("FalconH1ForCausalLM", {**MAMBA, **HEAD, "mamba_d_ssm": 384, "mamba_d_head": 48}),
}  # fmt: skip
# What transformers 5.19 built of all layers together: held without it as well.
BUILT = {
    "gemma4_text": 6_094_848,
    "gemma4_text-moe": 15_532_032,
    "llama": 4_456_448,
    "mistral": 4_456_448,
    "ministral": 5_767_168,
    "qwen2": 4_456_448,
    "qwen3": 5_767_168,
    "gemma2": 5_767_168,
    "gemma3_text": 5_767_168,
    "phi3": 4_456_448,
    "granite": 4_456_448,
    "glm4": 5_767_168,
    "dots1": 10_993_664,
    "mixtral": 26_476_544,
    "qwen2_moe": 8_216_576,
    "qwen3_moe": 11_272_192,
    "gpt_oss": 52_953_088,
    "deepseek_v2": 11_452_416,
    "deepseek_v3": 9_216_000,
    "glm4_moe": 10_928_128,
    "glm4_moe_lite": 10_936_320,
    "llama4_text": 31_510_528,
    "minimax_m2": 52_953_088,
    "qwen3_next": 13_180_928,
    "qwen3_5_text": 5_660_672,
    "qwen3_5_moe_text": 13_180_928,
    "exaone4": 4_456_448,
    "hunyuan_v1_dense": 5_767_168,
    "hunyuan_v1_moe": 56_098_816,
    "ernie4_5_moe": 7_479_296,
    "nemotron": 4_718_592,
    "arcee": 4_718_592,
    "apertus": 3_407_872,
    "starcoder2": 3_407_872,
    "stablelm": 4_456_448,
    "ministral3": 5_767_168,
    "mistral4": 10_076_160,
    "kimi_linear": 11_043_840,
    "nemotron_h": 4_894_720,
    "nemotron_h-latent": 1_854_464,
    "granitemoehybrid": 54_210_560,
    "granitemoehybrid-dense": 3_878_912,
    "gemma": 5_767_168,
    "cohere": 4_456_448,
    "gpt_neox": 4_194_304,
    "phi": 3_407_872,
    "glm": 5_767_168,
    "glm4v_text": 4_456_448,
    "glm4v_moe_text": 9_617_408,
    "qwen2_vl_text": 4_456_448,
    "olmo": 4_456_448,
    "flex_olmo": 51_642_368,
    "granitemoeshared": 52_625_408,
    "phimoe": 51_642_368,
    "solar_open": 12_648_448,
    "exaone_moe": 10_477_568,
    "hy_v3": 11_788_288,
    "afmoe": 12_419_072,
    "lfm2": 4_259_840,
    "lfm2_moe": 9_764_864,
    "olmo_hybrid": 5_562_368,
    "bamba": 6_041_600,
    "falcon_h1": 8_404_992,
}
LEFT_OUT = ("gate.weight", "gate.wg", "router", "conv1d", "conv.conv", "norm", "e_score", "_bias",
            "A_log")  # fmt: skip


def shape(case: str, fields: dict[str, Any]) -> ModelShape:
    """Flat, or as the text decoder inside a multimodal config."""
    architecture, model_type = CASES[case][0], case.partition("-")[0]
    if architecture.endswith("ForConditionalGeneration"):
        inside = {**fields, "model_type": model_type}
        return shape_of({"architectures": [architecture], "text_config": inside}, "mine", "x.json")
    whole = {**fields, "architectures": [architecture], "model_type": model_type}
    return shape_of(whole, "mine", "config.json")


def weights(layer: Layer, hidden: int) -> int:
    """A layer's weights as BEAM counts them."""
    both = layer.mixer.projections(hidden) + layer.mlp.projections(hidden)
    experts = 0
    if isinstance(layer.mlp, MoeMlp):
        experts = layer.mlp.experts * sum(n * k for n, k in layer.mlp.expert_projections(hidden))
    return sum(n * k for n, k in both) + experts


def built_weights(model: Any) -> list[int]:
    """The same of each layer of a transformers model."""
    return [
        sum(
            weight.numel()
            for name, weight in layer.named_parameters()
            if weight.dim() > 1 and not any(part in name for part in LEFT_OUT)
        )
        for layer in model.layers
    ]


@pytest.mark.parametrize("case", CASES)
def test_all_layers_have_the_weights_that_transformers_built(case: str) -> None:
    assert shape(case, {**SMALL, **CASES[case][1]}).shard(1, 1).weights == BUILT[case]


@pytest.mark.parametrize("case", CASES)
def test_every_layer_has_the_weights_that_transformers_builds(case: str) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    model_type, fields = case.partition("-")[0], {**SMALL, **CASES[case][1]}
    if model_type not in transformers.CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {model_type}")
    config = transformers.AutoConfig.for_model(model_type, **fields)
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(config)
    theirs = built_weights(model)
    ours = shape(case, fields)
    assert [weights(layer, 256) for layer in ours.decoder] == theirs
    assert sum(theirs) == BUILT[case]
    for kind, layer in zip(getattr(config, "layer_types", None) or [], ours.decoder, strict=False):
        if kind in ("full_attention", "sliding_attention", "chunked_attention"):
            windowed = getattr(layer.mixer, "window_tokens", 0) > 0
            assert windowed == (kind != "full_attention")
    # As transformers saves it, with its class's own names and defaults, it is the same model.
    assert shape(case, config.to_dict()).decoder == ours.decoder


# Engines keep keys' weights twice where Gemma 4's keys are its values.
@pytest.mark.parametrize("name", [name for name in registry() if not name.startswith("gemma4")])
def test_a_registry_entry_as_engines_get_it_has_its_models_weights(name: str) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    model = registry()[name]
    config = {k: v for k, v in hf_config(model).items() if k != "quantization_config"}
    model_type = config.pop("model_type")
    if model_type not in transformers.CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {model_type}")
    with torch.device("meta"):
        built = transformers.AutoModel.from_config(
            transformers.AutoConfig.for_model(model_type, **config)
        )
    ours = [weights(layer, model.hidden_size) for layer in model.decoder]
    assert ours == built_weights(built)
