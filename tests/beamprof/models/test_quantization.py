"""quantization_config decides formats by class of tensor, or is refused by name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beamprof.devices.assumed import assumed
from beamprof.devices.device import resolve_device
from beamprof.devices.forward import layer_gemms
from beamprof.errors import ModelShapeError
from beamprof.models.config import read_config, shape_of
from beamprof.models.formats import FORMATS
from beamprof.models.precision import Precision
from beamprof.models.registry import registered_config

CONFIG = registered_config("llama3.1-8b")


def precision(quantization: dict[str, Any], name: str = "llama3.1-8b") -> Precision:
    config = registered_config(name) | {"quantization_config": quantization}
    return shape_of(config, "mine", "config.json").precision


def group(bits: int, kind: str, activations: bool, **more: Any) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": kind, **more}
    inputs = {"num_bits": bits, "type": kind} if activations else None
    return {"targets": ["Linear"], "weights": weights, "input_activations": inputs}


AWAY = {"targets": ["re:.*down"]}


def compressed(**groups: Any) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "config_groups": groups, "ignore": ["lm_head"]}


@pytest.mark.parametrize(
    ("quantization", "form"),
    [
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8_block"),
        ({"quant_method": "fbgemm_fp8"}, "fp8"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "int4"),
        ({"quant_method": "gptq", "bits": 8}, "int8_wo"),
        (compressed(g=group(8, "float", True, strategy="channel")), "fp8"),
        (compressed(g=group(8, "float", True, strategy="block")), "fp8_block"),
        (compressed(g=group(8, "int", True)), "int8"),
        (compressed(g=group(4, "int", False, group_size=128)), "int4"),
        (compressed(g=group(4, "float", True, group_size=16)), "nvfp4"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8"),
        ({"quant_method": "modelopt", "quantization": {"quant_algo": "NVFP4"}}, "nvfp4"),
    ],
)
def test_methods_and_their_formats(quantization: dict[str, Any], form: str) -> None:
    found = precision(quantization)
    assert {found.attention, found.mlp, found.experts} == {form}
    assert found.method
    assert found.kv == "bfloat16"


def test_weights_shrink_with_their_format() -> None:
    whole = shape_of(CONFIG, "mine", "x").shard(1, 1).weight_bytes
    quantised = CONFIG | {"quantization_config": {"quant_method": "awq", "bits": 4}}
    assert shape_of(quantised, "mine", "x").shard(1, 1).weight_bytes == pytest.approx(
        whole * 0.26, rel=0.01
    )


def test_mxfp4_quantises_experts_alone() -> None:
    found = precision({"quant_method": "mxfp4"}, "gpt-oss-20b")
    assert (found.attention, found.mlp, found.experts) == ("bfloat16", "bfloat16", "mxfp4")


@pytest.mark.parametrize(
    "ignored",
    [
        ["re:.*self_attn.*"],
        ["model.layers.*.self_attn*"],
        ["self_attn"],
        [f"model.layers.{i}.self_attn.{n}" for i in range(32) for n in ("qkv_proj", "o_proj")],
    ],
)
def test_attention_that_is_left_in_16_bit(ignored: list[str]) -> None:
    found = precision({"quant_method": "fp8", "modules_to_not_convert": ignored})
    assert (found.attention, found.mlp) == ("bfloat16", "fp8")


def test_a_few_ignored_layers_do_not_decide_a_class_and_are_told() -> None:
    ignored = ["model.layers.0.mlp.down_proj", "model.layers.31.mlp.down_proj", "lm_head"]
    config = CONFIG | {"quantization_config": {"quant_method": "fp8", "ignored_layers": ignored}}
    stage = shape_of(config, "mine", "config.json").shard(1, 1)
    assert stage.precision == Precision("fp8", "fp8", "fp8", method="fp8")
    assert "another format than most of their kind (2 of 32 layers' mlp)" in assumed(
        stage, resolve_device("h100")
    )


@pytest.mark.parametrize(
    ("quantization", "mlp", "down"),
    [
        ({"quant_method": "fp8", "ignore": ["re:.*down_proj"]}, "fp8", "bfloat16"),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"-:.*down_proj": {}}}, "int4", "bfloat16"),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"+:.*mlp": {"bits": 8}}}, "int8_wo", ""),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {r".*mlp\.down": {"bits": 8}}},
         "int4", "int8_wo"),
        (compressed(a=group(4, "int", False), b=group(8, "int", False) | AWAY),
         "int4", "int8_wo"),
    ],
)  # fmt: skip
def test_an_output_projection_may_have_a_format_of_its_own(
    quantization: dict[str, Any], mlp: str, down: str
) -> None:
    config = CONFIG | {"quantization_config": quantization}
    stage = shape_of(config, "mine", "x").shard(1, 1)
    found = stage.precision
    assert (found.mlp, found.mlp_down) == (mlp, down)
    assert not found.approximated
    assert found.weights <= FORMATS.keys()
    assert found.experts in (mlp, "bfloat16"), "what it lacks costs nothing"
    gemms = layer_gemms(stage, stage.only_layer(), 8)
    priced = {(g.form.name, int(n)) for g in gemms for n in np.ravel(g.outputs)}
    assert {(mlp, 2 * 14336), (down or mlp, 4096)} <= priced
    one = FORMATS[mlp].weight_bytes * 2 + FORMATS[down or mlp].weight_bytes
    attention = FORMATS[found.attention].weight_bytes * 4096 * (6144 + 4096)
    assert stage.weight_bytes == pytest.approx(32 * (4096 * 14336 * one + attention))


def test_modelopts_exclusions_are_read_from_where_they_are_written() -> None:
    nested = {
        "quant_algo": "NVFP4",
        "kv_cache_quant_algo": "FP8",
        "exclude_modules": ["*self_attn*"],
    }
    found = precision({"quant_method": "modelopt", "quantization": nested})
    assert (found.attention, found.mlp, found.kv) == ("bfloat16", "nvfp4", "fp8")


def test_the_kv_cache_has_a_format_of_its_own() -> None:
    scheme = compressed(g=group(8, "float", True)) | {"kv_cache_scheme": {"num_bits": 8}}
    assert precision(scheme).kv == "fp8"
    modelopt = {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}
    assert precision(modelopt).kv == "fp8"
    assert Precision().with_kv("fp8_e4m3").kv_bytes == 1
    with pytest.raises(ModelShapeError, match="'int2' is not priced"):
        Precision().with_kv("int2")


@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "hqq"}, "hqq"),
        ({}, "quant_method ''"),
        ({"quant_method": "gptq", "bits": 3}, "3 bits"),
        ({"quant_method": "fp8", "weight_block_size": [64, 64]}, "weight_block_size"),
        ({"quant_method": "modelopt", "quant_algo": "W2A2"}, "W2A2"),
        (compressed(g=group(2, "int", False)), "ints of 2 bits and inputs in 16 bit"),
        (compressed(g=group(8, "float", True, strategy="group", group_size=32)), "groups of 32"),
        (compressed(g=group(4, "float", True) | {"input_activations": {"num_bits": 8}}),
         "floats of 4 bits and inputs as floats of 8 bits"),
        (compressed(g=group(4, "int", False)) | {"format": "marlin-24"}, "sparse weights"),
        ({"quant_method": "compressed-tensors"}, "config_groups"),
        ({"quant_method": 8}, "quant_method must be a string"),
        ({"quant_method": "fp8", "ignored_layers": "lm_head"}, "ignored_layers must be a list"),
        ({"quant_method": "fp8", "ignore": ["re:("]}, "no regular expression"),
        ({"quant_method": "fp8", "ignore": ["q_proj"]}, "projections of one kind"),
        ({"quant_method": "awq", "modules_to_not_convert": ["mlp.up_proj"]}, "of one kind \\(mlp"),
        (compressed(g=group(4, "int", False) | {"targets": ["re:.*q_proj"]}), "of one kind"),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"+:.*mlp": {"bits": 3}}}, "3 bits"),
        ({"quant_method": "gptq", "modules_in_block_to_quantize": [["mlp"]]}, "in_block"),
        ({"quant_method": "mxfp4"}, "mxfp4 that quantises nothing of this model"),
        ({"quant_method": "fp8", "ignore": ["re:.*"]}, "fp8 that quantises nothing"),
        *(
            (compressed(g=group(8, "float", True)) | {"kv_cache_scheme": scheme}, "a KV cache of")
            for scheme in ({"num_bits": 4}, {"num_bits": 8, "type": "int"})
        ),
        *(
            ({"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": name}, name)
            for name in ("NVFP4", "INT8")
        ),
    ],
)  # fmt: skip
def test_what_is_not_priced_is_refused_by_name(quantization: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelShapeError, match=words):
        precision(quantization)


def test_modelopts_own_file_beside_the_config_is_read(tmp_path: Path) -> None:
    """Older checkpoints of ModelOpt say nothing in config.json; they were priced in 16 bit."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    beside = tmp_path / "hf_quant_config.json"
    algorithm = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    beside.write_text(json.dumps({"producer": {"name": "modelopt"}, "quantization": algorithm}))
    found = read_config(tmp_path / "config.json").precision
    assert (found.attention, found.mlp, found.kv) == ("fp8", "fp8", "fp8")
    for text, words in (("{", "cannot read"), ("[]", "not a JSON object"), ("{}", "quant_algo")):
        beside.write_text(text)
        with pytest.raises(ModelShapeError, match=words):
            read_config(tmp_path / "config.json")
