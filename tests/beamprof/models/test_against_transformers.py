"""Layer by layer, the weights are those that transformers builds of the same config.

Small configs in the words of each family's own config.json. Left out on both sides: embeddings,
norms, biases, routers and the few numbers of short convolutions.
"""

from typing import Any

import pytest

from beamprof.models.config import shape_of
from beamprof.models.layers import Layer, MoeMlp

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
CASES: dict[str, tuple[str, dict[str, Any]]] = {
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
    "bamba": ("BambaForCausalLM", {**MAMBA, "attn_layer_indices": [2, 5]}),
    "falcon_h1": ("FalconH1ForCausalLM", {**MAMBA, **HEAD, "mamba_d_ssm": 384, "mamba_d_head": 48}),
}  # fmt: skip
# What transformers 5.19 built of all layers together: held without it as well.
BUILT = {
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
    "bamba": 6_041_600,
    "falcon_h1": 8_404_992,
}
LEFT_OUT = ("gate.weight", "gate.wg", "router", "conv1d", "norm", "e_score", "_bias",
            "A_log")  # fmt: skip


def weights(layer: Layer) -> int:
    """A layer's weights as BEAM counts them."""
    both = layer.mixer.projections(256) + layer.mlp.projections(256)
    experts = 0
    if isinstance(layer.mlp, MoeMlp):
        experts = layer.mlp.experts * sum(n * k for n, k in layer.mlp.expert_projections(256))
    return sum(n * k for n, k in both) + experts


@pytest.mark.parametrize("case", CASES)
def test_all_layers_have_the_weights_that_transformers_built(case: str) -> None:
    architecture, fields = CASES[case]
    model = shape_of({**SMALL, **fields, "architectures": [architecture]}, "mine", "config.json")
    assert model.shard(1, 1).weights == BUILT[case]


@pytest.mark.parametrize("case", CASES)
def test_every_layer_has_the_weights_that_transformers_builds(case: str) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    architecture, fields = CASES[case]
    model_type = case.partition("-")[0]
    if model_type not in transformers.CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {model_type}")
    config = {**SMALL, **fields}
    built = transformers.AutoConfig.for_model(model_type, **config)
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(built)
    theirs = [
        sum(
            weight.numel()
            for name, weight in layer.named_parameters()
            if weight.dim() > 1 and not any(part in name for part in LEFT_OUT)
        )
        for layer in model.layers
    ]
    ours = shape_of({**config, "architectures": [architecture]}, "mine", "config.json")
    assert [weights(layer) for layer in ours.decoder] == theirs
    assert sum(theirs) == BUILT[case]
    assert type(model).__name__ == architecture.replace("ForCausalLM", "Model")
