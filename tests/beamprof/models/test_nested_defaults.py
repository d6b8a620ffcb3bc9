"""Fields that a multimodal config leaves to its decoder's class, and families beside Llama's.

transformers writes into a nested config only what differs from the class; the texts below are
those of the models' own config.json, and the sizes their published ones less the embeddings.
"""

from typing import Any

import pytest

from beamprof.errors import ModelShapeError
from beamprof.models.config import shape_of
from beamprof.models.layers import MoeMlp
from beamprof.models.registry import registered_config, registry

LEFT_OUT = [
    (  # gemma-3-4b-it: 3.9e9 parameters, 0.67e9 of them embeddings
        "Gemma3ForConditionalGeneration",
        {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240,
         "num_hidden_layers": 34, "sliding_window": 1024},
        3.2, 256,
    ),
    (  # llava-1.5-7b-hf
        "LlavaForConditionalGeneration",
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"],
         "max_position_embeddings": 4096, "vocab_size": 32064},
        6.5, 128,
    ),
    (  # llava-v1.6-mistral-7b-hf
        "LlavaNextForConditionalGeneration",
        {"model_type": "mistral", "architectures": ["MistralForCausalLM"],
         "intermediate_size": 14336, "max_position_embeddings": 32768, "num_key_value_heads": 8,
         "sliding_window": None, "vocab_size": 32064},
        7.0, 128,
    ),
    (  # pixtral-12b
        "LlavaForConditionalGeneration",
        {"model_type": "mistral", "hidden_size": 5120, "head_dim": 128,
         "intermediate_size": 14336, "max_position_embeddings": 1024000, "num_hidden_layers": 40,
         "num_key_value_heads": 8, "sliding_window": None, "vocab_size": 131072},
        10.9, 128,
    ),
    (  # a Mistral 4 of the class's own sizes: 119e9 parameters, 1.07e9 of them embeddings
        "Mistral3ForConditionalGeneration",
        {"model_type": "mistral4"},
        117.9, 128,
    ),
    (  # gemma-4-31B-it: 30.7e9 parameters, 1.41e9 of them embeddings; keys' weights twice
        "Gemma4ForConditionalGeneration",
        {"model_type": "gemma4_text", "hidden_size": 5376, "intermediate_size": 21504,
         "num_hidden_layers": 60, "num_attention_heads": 32, "num_key_value_heads": 16,
         "num_global_key_value_heads": 4, "attention_k_eq_v": True, "sliding_window": 1024,
         "hidden_size_per_layer_input": 0},
        29.4, 256,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("architecture", "text", "weights_1e9", "head_dim"), LEFT_OUT)
def test_what_a_nested_config_leaves_out_is_its_class_default(
    architecture: str, text: dict[str, Any], weights_1e9: float, head_dim: int
) -> None:
    model = shape_of({"architectures": [architecture], "text_config": text}, "mine", "c.json")
    assert model.shard(1, 1).weights / 1e9 == pytest.approx(weights_1e9, rel=0.02)
    assert model.head_dim == head_dim
    assert any("text_config leaves out" in note for note in model.notes)


def test_null_is_not_left_out() -> None:
    text = {"model_type": "mistral", "sliding_window": None}
    outer = {"architectures": ["LlavaForConditionalGeneration"], "text_config": text}
    mixer = shape_of(outer, "mine", "c.json").kinds[0].layer.mixer
    assert getattr(mixer, "window_tokens", None) == 0
    text["hidden_size"] = None
    with pytest.raises(ModelShapeError, match="lacks the field 'hidden_size'"):
        shape_of(outer, "mine", "c.json")


def test_experts_that_are_left_out_are_asked_for_not_priced_as_none() -> None:
    text: dict[str, Any] = {"model_type": "llama4_text", "hidden_size": 5120}
    outer = {"architectures": ["Llama4ForConditionalGeneration"], "text_config": text}
    with pytest.raises(ModelShapeError, match="does not say how many experts"):
        shape_of(outer, "mine", "c.json")
    text["num_local_experts"] = None
    assert not any(isinstance(k.layer.mlp, MoeMlp) for k in shape_of(outer, "m", "c").kinds)


def test_a_decoder_goes_by_its_own_model_type_whatever_stands_around_it() -> None:
    kimi = registered_config("kimi-k2") | {"model_type": "kimi_k2"}
    outer = {"architectures": ["KimiK25ForConditionalGeneration"], "text_config": kimi}
    assert shape_of(outer, "mine", "c.json").decoder == registry()["kimi-k2"].decoder
    exaone = registered_config("exaone-4.0-32b") | {"model_type": "exaone4_5_text"}
    outer = {"architectures": ["Exaone4_5_ForConditionalGeneration"], "text_config": exaone}
    assert shape_of(outer, "mine", "c.json").decoder == registry()["exaone-4.0-32b"].decoder
    nano = registered_config("nemotron-nano-9b-v2") | {"model_type": "nemotron_h"}
    outer = {"architectures": ["NemotronH_Nano_VL_V2"], "llm_config": nano}
    assert shape_of(outer, "mine", "c.json").decoder == registry()["nemotron-nano-9b-v2"].decoder


def test_a_config_of_a_decoder_alone_is_whole_or_damaged() -> None:
    with pytest.raises(ModelShapeError, match="lacks the field"):
        shape_of({"architectures": ["LlamaForCausalLM"], "hidden_size": 64}, "mine", "c.json")


SMALL = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8,
         "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 200_000,
         "max_position_embeddings": 4096}  # fmt: skip
# Weights of two and more dimensions in the layers that transformers 5.19 builds of such a config,
# routers left out.
BUILT = [
    ("SmolLM3ForCausalLM", {}, 4_456_448),
    ("SeedOssForCausalLM", {"head_dim": 128, "attention_bias": True}, 8_388_608),
    ("Ernie4_5ForCausalLM", {"head_dim": 128}, 8_388_608),
    ("Olmo2ForCausalLM", {}, 4_456_448),
    ("Olmo3ForCausalLM", {"sliding_window": 4096}, 4_456_448),
    ("Cohere2ForCausalLM", {"sliding_window": 4096}, 4_456_448),
    ("OlmoeForCausalLM", {"num_experts": 64, "num_experts_per_tok": 8}, 202_637_312),
    ("GraniteMoeForCausalLM", {"num_local_experts": 8, "num_experts_per_tok": 2}, 26_476_544),
]


@pytest.mark.parametrize(("architecture", "more", "weights"), BUILT)
def test_weights_are_those_that_transformers_builds(
    architecture: str, more: dict[str, Any], weights: int
) -> None:
    model = shape_of({**SMALL, **more, "architectures": [architecture]}, "mine", "c.json")
    assert model.shard(1, 1).weights == weights
    windows = [getattr(layer.mixer, "window_tokens", 0) for layer in model.decoder]
    assert windows == ([4096, 4096, 4096, 0] * 2 if "sliding_window" in more else [0] * 8)


def test_dots_has_experts_after_its_first_layer() -> None:
    more = {"n_routed_experts": 16, "num_experts_per_tok": 4, "n_shared_experts": 2,
            "moe_intermediate_size": 128, "first_k_dense_replace": 1}  # fmt: skip
    model = shape_of({**SMALL, **more, "architectures": ["Dots1ForCausalLM"]}, "mine", "c.json")
    experts = [layer.mlp for layer in model.decoder if isinstance(layer.mlp, MoeMlp)]
    assert len(experts) == 7
    assert experts[0].shared_size == 2 * 128
