"""Hybrids say in many ways which layer is what; blocks described one by one; what is refused."""

from typing import Any

import pytest

from beamprof.errors import ModelShapeError
from beamprof.models.config import shape_of
from beamprof.models.layers import (
    Attention,
    DenseMlp,
    LatentAttention,
    MoeMlp,
    NoMixer,
    NoMlp,
    SideBySide,
)
from beamprof.models.recurrent import GatedDelta, Mamba2
from beamprof.models.registry import registered_config, registry
from beamprof.models.shape import ModelShape

NANO = registered_config("nemotron-3-nano-30b-a3b")
GRANITE = registered_config("granite-4.0-h-small")
FALCON = registered_config("falcon-h1-34b")
KIMI = registered_config("kimi-linear-48b-a3b")
BAMBA = {"architectures": ["BambaForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336,
         "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
         "attn_layer_indices": [9, 18, 27], "mamba_n_heads": 128, "mamba_d_head": "auto",
         "mamba_d_state": 128, "mamba_n_groups": 1, "vocab_size": 128256,
         "max_position_embeddings": 262144}  # fmt: skip
ATTEND = {"n_heads_in_group": 8, "no_op": False, "replace_with_linear": False}
PUZZLE = {"architectures": ["DeciLMForCausalLM"], "model_type": "nemotron-nas",
          "hidden_size": 8192, "num_hidden_layers": 3, "num_attention_heads": 64,
          "num_key_value_heads": None, "intermediate_size": None, "vocab_size": 128256,
          "max_position_embeddings": 131072,
          "block_configs": [
              {"attention": ATTEND, "ffn": {"ffn_mult": 5.25, "no_op": False}},
              {"attention": {"no_op": True}, "ffn": {"ffn_mult": 1.0, "no_op": False}},
              {"attention": ATTEND | {"n_heads_in_group": 16}, "ffn": {"no_op": True}},
          ]}  # fmt: skip


def shape(config: dict[str, Any], **changes: Any) -> ModelShape:
    return shape_of({**config, **changes}, "mine", "config.json")


def without(config: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in names}


def test_a_pattern_gives_each_layer_a_mixer_or_an_mlp() -> None:
    layers = registry()["nemotron-3-nano-30b-a3b"].decoder
    assert [type(layer.mixer) for layer in layers[:6]] == [
        Mamba2, NoMixer, Mamba2, NoMixer, Mamba2, Attention,
    ]  # fmt: skip
    assert isinstance(layers[1].mlp, MoeMlp)
    assert isinstance(layers[0].mlp, NoMlp)
    assert not layers[1].mlp.gated
    assert (layers[1].mlp.shared_size, layers[1].mlp.top_k) == (3712, 6)


def test_names_of_layers_say_the_same_as_a_pattern() -> None:
    words = {"M": "mamba", "E": "moe", "*": "attention", "-": "mlp"}
    new = {"mamba": "linear_attention", "attention": "full_attention"}
    names = [words[letter] for letter in NANO["hybrid_override_pattern"]]
    listed = without(NANO, "hybrid_override_pattern", "num_hidden_layers")
    expected = shape(NANO).decoder
    assert shape(listed, layers_block_type=names).decoder == expected
    assert shape(listed, layer_types=[new.get(n, n) for n in names]).decoder == expected
    assert shape(without(NANO, "num_hidden_layers")).decoder == expected


def test_nemotron_keeps_its_states_in_float32_and_granite_in_the_weights_format() -> None:
    states = {
        name: next(
            mixer.state_bytes
            for layer in registry()[name].decoder
            for mixer in layer.mixers
            if isinstance(mixer, Mamba2)
        )
        for name in ("nemotron-3-nano-30b-a3b", "granite-4.0-h-small", "falcon-h1-34b")
    }
    assert list(states.values()) == [4, 2, 2]
    halved = shape(NANO, mamba_ssm_cache_dtype="bfloat16").decoder[0].mixer
    assert isinstance(halved, Mamba2)
    assert halved.state_bytes == 2
    with pytest.raises(ModelShapeError, match="mamba_ssm_cache_dtype 'fp8' is not priced"):
        shape(NANO, mamba_ssm_cache_dtype="fp8")


def test_granites_experts_stand_beside_a_shared_mlp_that_is_alone_without_them() -> None:
    moe = registry()["granite-4.0-h-small"].decoder[5]
    assert isinstance(moe.mlp, MoeMlp)
    assert isinstance(moe.mixer, Attention)
    assert (moe.mlp.intermediate_size, moe.mlp.shared_size) == (768, 1536)
    dense = shape(GRANITE, num_local_experts=0, num_experts_per_tok=0)
    assert {layer.mlp for layer in dense.decoder} == {DenseMlp(1536)}


def test_bamba_lists_its_attention() -> None:
    mixers = [layer.mixer for layer in shape(BAMBA).decoder]
    assert [i for i, m in enumerate(mixers) if isinstance(m, Attention)] == [9, 18, 27]
    assert mixers[0] == Mamba2(128, 64, 128, groups=1, state_bytes=2)


def test_falcon_has_both_in_every_layer() -> None:
    layer = registry()["falcon-h1-34b"].decoder[7]
    assert isinstance(layer.mixer, SideBySide)
    assert layer.mixer.mamba.heads * layer.mixer.mamba.head_dim == 4096
    assert not layer.mixer.mamba.normed
    shard = layer.split(2, 1)
    assert isinstance(shard.mixer, SideBySide)
    assert (shard.mixer.attention.heads, shard.mixer.mamba.groups) == (10, 1)


def test_kimi_has_latent_attention_where_it_counts_from_one() -> None:
    mixers = [layer.mixer for layer in registry()["kimi-linear-48b-a3b"].decoder]
    latent = [i for i, mixer in enumerate(mixers) if isinstance(mixer, LatentAttention)]
    assert latent == [3, 7, 11, 15, 19, 23, 26]
    assert isinstance(mixers[0], GatedDelta)
    assert mixers[0].gate_rank == 128


def test_blocks_are_read_one_by_one() -> None:
    one, two, three = shape(PUZZLE).decoder
    assert one.mixer == Attention(64, 8, 128)
    assert one.mlp == DenseMlp(28672)  # 2/3 x 5.25 x 8192, a multiple of 256 as it is
    assert isinstance(two.mixer, NoMixer)
    assert two.mlp == DenseMlp(5632)  # 5461 rounded up
    assert three.mixer == Attention(64, 4, 128)
    assert isinstance(three.mlp, NoMlp)
    assert shape(PUZZLE).kv_heads == 8


@pytest.mark.parametrize(
    ("config", "changes", "words"),
    [
        (NANO, {"hybrid_override_pattern": "MEX"}, "layers 'X' of hybrid_override_pattern"),
        (NANO, {"num_hidden_layers": 51}, "names 52 layers of 51"),
        (BAMBA, {"mamba_d_head": 63}, "128 Mamba heads of 63 are not 8192 channels"),
        (without(FALCON, "mamba_d_ssm"), {}, "lacks the field 'mamba_d_ssm'"),
        (without(BAMBA, "mamba_d_state"), {}, "lacks the field 'ssm_state_size'"),
        (KIMI, {"mla_use_output_gate": True}, "mla_use_output_gate is not priced"),
        (KIMI, {"routed_expert_hidden_size": 1024}, "routed_expert_hidden_size is not priced"),
        (
            KIMI,
            {"linear_attn_config": KIMI["linear_attn_config"] | {"use_full_rank_gate": True}},
            "use_full_rank_gate is not priced",
        ),
        (KIMI, {"num_hidden_layers": 28}, "must name every layer from 1 to 28 once"),
        (PUZZLE, {"num_hidden_layers": 4}, "block_configs describes 3 layers of 4"),
        (PUZZLE, {"num_attention_heads": 4}, "groups of 8 do not divide 4 heads"),
        (
            PUZZLE | {"num_hidden_layers": 1},
            {"block_configs": [{"attention": {"replace_with_linear": True}, "ffn": {}}]},
            "replace_with_linear is not priced",
        ),
        (PUZZLE, {"block_configs": [1]}, "block_configs must be a list of objects"),
        (
            PUZZLE | {"architectures": ["LlamaForCausalLM"], "intermediate_size": 512},
            {},
            "block_configs are not priced for this architecture",
        ),
    ],
)
def test_what_is_not_priced_is_named(
    config: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ModelShapeError, match=words):
        shape(config, **changes)


@pytest.mark.parametrize(
    "architecture",
    ["DeepseekV32ForCausalLM", "GlmMoeDsaForCausalLM", "JambaForCausalLM", "Gemma3nForCausalLM"],
)
def test_architectures_that_nobody_prices_here_are_refused_by_name(architecture: str) -> None:
    with pytest.raises(ModelShapeError, match=f"{architecture}' is not supported") as caught:
        shape(BAMBA, architectures=[architecture])
    assert "does not model its" in str(caught.value)


def test_layers_that_are_not_quantised_are_counted_among_those_that_could_be() -> None:
    attention = [i for i, c in enumerate(NANO["hybrid_override_pattern"]) if c == "*"]
    mamba = [i for i, c in enumerate(NANO["hybrid_override_pattern"]) if c == "M"]
    quantised = {"quant_method": "modelopt", "quant_algo": "FP8"}

    def formats(*left_out: int) -> tuple[str, str]:
        ignored = [f"backbone.layers.{i}.mixer.{name}" for i in left_out
                   for name in ("in_proj", "out_proj", "qkv_proj", "o_proj")]  # fmt: skip
        found = shape(NANO, quantization_config=quantised | {"exclude_modules": ignored}).precision
        return found.attention, found.experts

    assert formats(*attention) == ("fp8", "fp8")  # 6 of 29 mixers
    assert formats(*mamba) == ("bfloat16", "fp8")


def test_gemma_4_has_wide_heads_where_it_sees_all_and_experts_beside_its_mlp() -> None:
    layers = registry()["gemma4-26b-a4b"].decoder
    assert layers[0].mixer == Attention(16, 8, 256, window_tokens=1024)
    assert layers[5].mixer == layers[-1].mixer == Attention(16, 2, 512)
    mlp = layers[0].mlp
    assert isinstance(mlp, MoeMlp)
    assert (mlp.experts, mlp.top_k, mlp.shared_size) == (128, 8, 2112)
    assert layers[0].reduces == 3  # the MLP that all tokens pass has a norm of its own after it
    saved = without(registered_config("gemma4-26b-a4b"), "global_head_dim")
    wide = {"5": {"head_dim": 512, "num_key_value_heads": 2}}
    assert shape(saved, per_layer_config=wide).decoder == layers
    several = wide | {"11": {"head_dim": 256, "num_key_value_heads": 2}}
    with pytest.raises(ModelShapeError, match="2 kinds of heads, and one is priced"):
        shape(saved, per_layer_config=several)
    with pytest.raises(ModelShapeError, match="num_kv_shared_layers is not priced"):
        shape(saved, num_kv_shared_layers=10)


@pytest.mark.parametrize("experts", [{}, {"num_experts": 8}])
def test_a_nested_gemma_4_has_experts_only_where_it_says_so(experts: dict[str, Any]) -> None:
    text = {"model_type": "gemma4_text", "hidden_size_per_layer_input": 0, **experts}
    outer = {"architectures": ["Gemma4ForConditionalGeneration"], "text_config": text}
    assert {type(layer.mlp) for layer in shape(outer).decoder} == {DenseMlp}
    with pytest.raises(ModelShapeError, match="hidden_size_per_layer_input is not priced"):
        shape(outer, text_config=without(text, "hidden_size_per_layer_input"))
