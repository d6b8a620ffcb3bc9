"""Shapes come out as published, shards as vLLM cuts them, and bad input is refused by name."""

import json
from pathlib import Path

import pytest

from beamprof.errors import ModelShapeError
from beamprof.models.config import read_config
from beamprof.models.layers import Attention, DenseMlp
from beamprof.models.registry import registry, resolve_model
from beamprof.models.shape import StageShape, stage_layers

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
}


def config(folder: Path, **changes: object) -> Path:
    fields = {**LLAMA, **changes}
    path = folder / "config.json"
    path.write_text(json.dumps({k: v for k, v in fields.items() if v is not None}))
    return path


# Parameters without embeddings and norms, in billions; published sizes less 2 x vocab x hidden.
@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("llama3-8b", 6.98),
        ("llama3-70b", 68.45),
        ("llama3.3-70b", 68.45),
        ("mistral-7b", 6.98),
        ("qwen2.5-14b", 13.21),
        ("qwen2.5-32b", 31.21),
        ("qwen3-8b", 6.95),
        ("qwen3-32b", 31.21),
        ("mixtral-8x7b", 46.4),
        ("qwen3-30b-a3b", 29.9),
        ("qwen3-235b-a22b", 233.8),
        ("qwen3-next-80b-a3b", 79.0),
        ("gpt-oss-20b", 19.75),
        ("gpt-oss-120b", 115.6),
        ("deepseek-v2-lite", 15.28),
        ("deepseek-v3", 669.1),
        ("kimi-k2", 1023.9),
        ("glm-4.5-air", 105.6),
        ("gemma3-27b", 25.6),
        ("llama4-scout", 105.7),
        ("exaone-4.0-32b", 30.95),
        # Beside the published sizes, vLLM keeps keys' weights twice where keys are values.
        ("gemma4-31b", 29.29 + 0.11),
        ("gemma4-26b-a4b", 24.48 + 0.014),
        ("apertus-8b", 6.98),
        ("apertus-70b", 68.45),
        ("ernie-4.5-21b-a3b", 21.56),
        ("hunyuan-a13b", 79.86),
        ("kimi-linear-48b-a3b", 48.35),
        ("nemotron-nano-9b-v2", 7.71),
        ("nemotron-3-nano-30b-a3b", 30.87),
        ("granite-4.0-h-small", 31.78),
        ("granite-4.0-h-tiny", 6.78),
        ("falcon-h1-34b", 30.97),
    ],
)
def test_registry_shapes_have_the_published_parameter_counts(name: str, billions: float):
    stage = registry()[name].shard(1, 1)
    assert stage.weights / 1e9 == pytest.approx(billions, rel=2e-3)


def test_a_shard_divides_heads_widths_and_layers():
    stage = registry()["llama3-70b"].shard(2, 4)
    attention, mlp = dense_layer(stage)
    assert (stage.layers, attention.heads, attention.kv_heads) == (20, 32, 4)
    assert mlp.intermediate_size == 14336
    assert attention.qkv_size == (32 + 2 * 4) * 128
    assert stage.kv_bytes_per_token == 2 * 4 * 128 * 2 * 20


def test_with_more_ranks_than_kv_heads_each_keeps_a_whole_one():
    attention, _ = dense_layer(registry()["llama3-70b"].shard(16, 1))
    assert attention.kv_heads == 1


def dense_layer(stage: StageShape) -> tuple[Attention, DenseMlp]:
    layer = stage.only_layer()
    assert isinstance(layer.mixer, Attention)
    assert isinstance(layer.mlp, DenseMlp)
    return layer.mixer, layer.mlp


@pytest.mark.parametrize(
    ("layers", "pp", "counts"),
    [(80, 4, (20,) * 4), (61, 2, (31, 30)), (80, 3, (27, 27, 26)), (62, 4, (15, 16, 16, 15))],
)
def test_stages_are_cut_as_vllm_cuts_them(layers: int, pp: int, counts: tuple[int, ...]):
    # What is left over goes to the stages before the last, which holds the LM head.
    assert stage_layers(layers, pp) == counts
    assert sum(counts) == layers


def test_an_uneven_pipeline_stands_for_its_largest_stage():
    assert registry()["llama3-70b"].shard(1, 3).layers == 27


@pytest.mark.parametrize(
    ("tp", "pp", "words", "hint"),
    [
        (3, 1, "--tp 3 does not divide", "--tp can be 1, 2, 4, 8, 16, 32, 64"),
        (0, 1, "--tp must be 1 or more", "--tp 1"),
        (1, 81, "80 layers", "--pp can be 1 to 80"),
    ],
)
def test_what_does_not_divide_is_refused_with_what_does(tp: int, pp: int, words: str, hint: str):
    with pytest.raises(ModelShapeError, match=words) as caught:
        registry()["llama3-70b"].shard(tp, pp)
    assert hint in caught.value.hint


def test_every_tp_that_the_hint_offers_works():
    for shape in registry().values():
        with pytest.raises(ModelShapeError) as caught:
            shape.shard(1_000_003, 1)
        for tp in caught.value.hint.removeprefix("--tp can be ").split(", "):
            assert shape.shard(int(tp), 1).tp == int(tp)


def test_a_directory_with_a_config_is_the_same_model(tmp_path: Path):
    config(tmp_path)
    read, known = resolve_model(str(tmp_path)), registry()["llama3-70b"]
    assert read.name == tmp_path.name
    assert read.shard(2, 4) == known.shard(2, 4)
    assert (read.rope_theta, read.vocab_size) == (known.rope_theta, known.vocab_size)
    assert resolve_model(str(tmp_path / "config.json")) == read


def test_what_a_config_may_leave_out_or_write_elsewhere(tmp_path: Path):
    path = config(
        tmp_path,
        architectures=["Qwen3ForCausalLM"],
        head_dim=64,
        num_key_value_heads=None,
        rope_theta=None,
        rope_parameters={"rope_theta": 1e6},
        torch_dtype=None,
        dtype="float16",
    )
    shape = read_config(path)
    assert (shape.head_dim, shape.kv_heads, shape.dtype) == (64, 64, "float16")
    assert (shape.rope_theta, shape.qk_norm, shape.qkv_bias) == (1e6, True, False)


def test_qwen2_has_a_bias_on_qkv(tmp_path: Path):
    assert read_config(config(tmp_path, architectures=["Qwen2ForCausalLM"])).qkv_bias


def test_unknown_model_lists_the_known():
    with pytest.raises(ModelShapeError, match="unknown model 'gpt-7'") as caught:
        resolve_model("gpt-7")
    assert "llama3-70b" in caught.value.hint


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "'MambaForCausalLM' is not supported"),
        ({"hidden_size": None}, "lacks the field 'hidden_size'"),
        ({"num_hidden_layers": 0}, "must be a positive integer, found 0"),
        ({"num_attention_heads": "64"}, "must be a positive integer, found '64'"),
        ({"intermediate_size": True}, "must be a positive integer, found True"),
        ({"torch_dtype": "int4"}, "dtype 'int4' is not supported"),
        ({"rms_norm_eps": "tiny"}, "rms_norm_eps must be a positive number"),
        ({"head_dim": -1}, "head_dim must be a positive integer"),
        ({"architectures": "LlamaForCausalLM"}, "architectures must be a list"),
        ({"architectures": [["LlamaForCausalLM"]]}, "architectures must be a list of strings"),
        ({"rope_parameters": 1.5}, "rope_parameters must be an object"),
        ({"hidden_size": 100}, "64 heads do not divide"),
        ({"num_key_value_heads": 7, "head_dim": 128}, "7 KV heads do not divide"),
    ],
)
def test_broken_configs(tmp_path: Path, changes: dict[str, object], words: str):
    with pytest.raises(ModelShapeError, match=words):
        resolve_model(str(config(tmp_path, **changes).parent))


def test_an_unknown_architecture_lists_the_known(tmp_path: Path):
    with pytest.raises(ModelShapeError) as caught:
        read_config(config(tmp_path, architectures=["GPT2LMHeadModel"]))
    for known in ("Llama", "Mistral", "Qwen2", "Qwen3"):
        assert f"{known}ForCausalLM" in caught.value.hint


@pytest.mark.parametrize("text", ["{", "[1]", "\x00\x01", ""])
def test_a_config_that_is_not_a_json_object(tmp_path: Path, text: str):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelShapeError, match=r"is not (JSON|a JSON object)"):
        resolve_model(str(tmp_path))


def test_a_directory_without_a_config(tmp_path: Path):
    with pytest.raises(ModelShapeError, match=r"no config\.json in"):
        resolve_model(str(tmp_path))
