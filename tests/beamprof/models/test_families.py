"""Architectures beyond dense ones: their layers, towers left out, and what is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from beamprof.errors import ModelShapeError
from beamprof.models.config import read_config, shape_of
from beamprof.models.layers import Attention, DenseMlp, LatentAttention, MoeMlp
from beamprof.models.recurrent import GatedDelta
from beamprof.models.registry import registered_config, registry
from beamprof.models.shape import ModelShape

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 32,
    "vocab_size": 128256,
    "max_position_embeddings": 32768,
}


def shape(**changes: Any) -> ModelShape:
    return shape_of({**LLAMA, **changes}, "mine", "config.json")


def windows(model: ModelShape) -> list[int]:
    return [layer.mixer.window_tokens for layer in model.decoder]  # type: ignore[union-attr]


def test_a_multimodal_config_is_read_as_its_decoder(tmp_path: Path) -> None:
    text = {k: v for k, v in LLAMA.items() if k != "architectures"}
    text |= {"model_type": "mistral", "sliding_window": None}  # left out it would be 4096
    outer = {
        "architectures": ["Mistral3ForConditionalGeneration"],
        "model_type": "mistral3",
        "text_config": text,
        "vision_config": {"hidden_size": 1024},
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(outer))
    model = read_config(path)
    assert (model.architecture, model.layers) == ("mistral", 32)
    assert any("vision part left out" in note for note in model.notes)
    assert shape_of({**text}, "mine", "x").decoder == model.decoder


def test_a_config_that_names_an_unknown_decoder_is_refused() -> None:
    text = {**LLAMA, "architectures": None, "model_type": "rwkv"}
    with pytest.raises(ModelShapeError, match="not supported"):
        shape_of({"architectures": ["Any"], "text_config": text}, "mine", "x")


@pytest.mark.parametrize("field", ["torch_dtype", "dtype"])
def test_float32_is_taken_as_engines_serve_it(field: str) -> None:
    model = shape(**{field: "float32"})
    assert (model.dtype, model.precision.attention) == ("bfloat16", "bfloat16")
    assert any("float32" in note for note in model.notes)
    asked = shape_of({**LLAMA, field: "float32"}, "mine", "x", dtype="float32")
    assert asked.dtype == asked.precision.kv == "float32"


def test_sliding_windows_by_layer() -> None:
    mistral = shape(architectures=["MistralForCausalLM"], sliding_window=4096)
    assert set(windows(mistral)) == {4096}
    assert set(windows(shape(sliding_window=4096))) == {0}  # Llama has none, whatever is written
    gemma2, gemma3 = registry()["gemma2-9b"], registry()["gemma3-27b"]
    assert windows(gemma2)[:4] == [4096, 0, 4096, 0]
    assert windows(gemma3)[:7] == [1024] * 5 + [0, 1024]
    assert windows(registry()["gpt-oss-20b"])[:4] == [128, 0, 128, 0]
    qwen = {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 4096, "max_window_layers": 28}
    assert set(windows(shape(**qwen))) == {0}
    assert windows(shape(**qwen, use_sliding_window=True)) == [0] * 28 + [4096] * 4


def test_dense_first_layers_latent_attention_and_shared_experts() -> None:
    deepseek = registry()["deepseek-v3"]
    assert all(isinstance(layer.mixer, LatentAttention) for layer in deepseek.decoder)
    assert [isinstance(layer.mlp, DenseMlp) for layer in deepseek.decoder[:5]] == [True] * 3 + [
        False
    ] * 2
    mlp = deepseek.decoder[-1].mlp
    assert isinstance(mlp, MoeMlp)
    assert (mlp.experts, mlp.top_k, mlp.shared_size) == (256, 8, 2048)
    # 512 + 64 numbers a token, whatever the heads and however they are split.
    assert deepseek.shard(8, 1).kv_bytes_per_token == 576 * 2 * 61


def test_hybrids_have_full_attention_every_fourth_layer() -> None:
    mixers = [layer.mixer for layer in registry()["qwen3-next-80b-a3b"].decoder]
    assert [isinstance(mixer, GatedDelta) for mixer in mixers[:4]] == [True, True, True, False]
    assert isinstance(mixers[3], Attention)
    assert mixers[3].gated


def test_llama4_interleaves_its_experts() -> None:
    maverick = registry()["llama4-maverick"].decoder
    assert [isinstance(layer.mlp, MoeMlp) for layer in maverick[:4]] == [False, True, False, True]


def test_experts_are_split_by_width_or_whole() -> None:
    model = registry()["qwen3-30b-a3b"]
    by_width = model.shard(4, 1).only_layer().mlp
    whole = model.shard(4, 1, ep=4).only_layer().mlp
    assert isinstance(by_width, MoeMlp)
    assert isinstance(whole, MoeMlp)
    assert (by_width.intermediate_size, by_width.local_experts) == (192, 128)
    assert (whole.intermediate_size, whole.local_experts) == (768, 32)
    assert model.shard(4, 1).weights == model.shard(4, 1, ep=4).weights


def test_groups_that_attend_alone_share_experts_cut_by_width() -> None:
    # vLLM with data-parallel attention and without --enable-expert-parallel.
    model = registry()["qwen3-30b-a3b"]
    layer = model.shard(2, 1, dp=2).only_layer()
    assert isinstance(layer.mlp, MoeMlp)
    assert isinstance(layer.mixer, Attention)
    assert layer.mixer.heads == 16  # of 32 over tp
    assert (layer.mlp.intermediate_size, layer.mlp.local_experts) == (192, 128)  # over tp dp


@pytest.mark.parametrize(
    ("name", "split", "words"),
    [
        ("qwen3-30b-a3b", {"tp": 2, "ep": 3}, "--ep 3"),
        ("qwen3-30b-a3b", {"tp": 2, "ep": 4}, "--ep 4"),
        ("glm-4.5", {"tp": 5}, "--tp 5 does not divide"),
        ("llama3-8b", {"tp": 2, "ep": 2}, "has no experts"),
        ("llama3-8b", {"tp": 1, "dp": 2}, "so many replicas"),
        ("qwen3-30b-a3b-fp8", {"tp": 8}, "fp8 blocks of 128"),
        ("falcon-h1-34b", {"tp": 4}, "32 Mamba heads in 2 groups"),  # as vLLM asserts
    ],
)
def test_layouts_that_a_model_does_not_take(name: str, split: dict[str, int], words: str) -> None:
    with pytest.raises(ModelShapeError, match=words):
        registry()[name].shard(**{"tp": 1, "pp": 1, **split})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope_parameters": 1.5}, "rope_parameters must be an object"),
        ({"architectures": [["LlamaForCausalLM"]]}, "architectures must be a list of strings"),
        ({"text_config": []}, "text_config must be an object"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers must be 10000 at most"),
        ({"hidden_size": 10**400}, "hidden_size must be .* at most, found a number of"),
        ({"num_attention_heads": [32]}, "num_attention_heads must be a positive integer"),
        ({"rope_theta": float("inf")}, "rope_theta must be a positive number"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings must be true or false"),
        ({"torch_dtype": 16}, "torch_dtype must be a string"),
        ({"num_experts": 8}, "experts are not priced for this architecture"),
        ({"mamba_d_state": 128}, "mamba_d_state is not priced"),
        ({"cross_attention_layers": [3, 8]}, "cross_attention_layers is not priced"),
        ({"layer_types": ["full_attention"]}, "names 1 layers of 32"),
        ({"layer_types": ["linear"] * 32}, "of the kind 'linear' are not priced"),
        ({"layer_types": {"a": 1}}, "layer_types must be a list of strings"),
        ({"quantization_config": "fp8"}, "quantization_config must be an object"),
    ],
)
def test_fields_that_lie_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelShapeError, match=words):
        shape(**changes)


def test_more_experts_for_a_token_than_there_are() -> None:
    config = registered_config("mixtral-8x7b") | {"num_experts_per_tok": 9}
    with pytest.raises(ModelShapeError, match="9 experts of 8"):
        shape_of(config, "mine", "x")


def test_the_shape_in_a_tables_metadata_names_its_kinds() -> None:
    fields = json.loads(registry()["gpt-oss-120b"].to_json())
    assert {kind["window_tokens"] for kind in fields["kinds"]} == {0, 128}
    assert fields["precision"]["experts"] == "mxfp4"
    assert "decoder" not in fields
