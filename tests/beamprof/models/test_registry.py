"""Models are found under the names that people write."""

import json
from pathlib import Path

import pytest

from beamprof.errors import ModelShapeError
from beamprof.models.registry import entries, registered_config, registry_name, resolve_model


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("llama3-70b", "llama3-70b"),
        ("Llama-3.3-70B-Instruct", "llama3.3-70b"),
        ("meta-llama/Llama-3.3-70B-Instruct", "llama3.3-70b"),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", "qwen3-30b-a3b"),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507-FP8", "qwen3-30b-a3b-fp8"),
        ("openai/gpt-oss-120b", "gpt-oss-120b"),
        ("gpt_oss_120b", "gpt-oss-120b"),
        ("DeepSeek-R1", "deepseek-v3"),
        ("meta-llama_Meta-Llama-3-8B-Instruct", "llama3-8b"),
        ("no-such-model", None),
    ],
)
def test_names_as_people_write_them(written: str, name: str | None) -> None:
    assert registry_name(written) == name


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("qwen3-31b", "qwen3-32b"),
        ("lama3-8b", "llama3-8b"),
        ("llama3", "llama3-8b"),
        ("mixtrl-8x7b", "mixtral-8x7b"),
        ("gpt-oss-20", "gpt-oss-20b"),
        ("qwen3-30b", "qwen3-30b-a3b"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest(written: str, name: str) -> None:
    with pytest.raises(ModelShapeError, match=f"unknown model '{written}'") as caught:
        resolve_model(written)
    assert f"did you mean {name}?" in str(caught.value)


QUANTISED = ("-AWQ", "-GPTQ-Int4", "-FP4", "-NVFP4", "-W4A16", "_w8a8", "-GGUF", "-4bit", "-INT8",
             "-bnb-4bit", "-MXFP4", "-FP8-dynamic")  # fmt: skip


@pytest.mark.parametrize("suffix", QUANTISED)
@pytest.mark.parametrize("name", ["Qwen/Qwen3-32B", "nvidia/Llama-3.3-70B-Instruct", "me/phi-4"])
def test_a_model_in_other_formats_is_not_offered_as_the_same(name: str, suffix: str) -> None:
    if registry_name(name + suffix):
        return  # the registry has that very one
    with pytest.raises(ModelShapeError, match="unknown model") as caught:
        resolve_model(name + suffix)
    assert "did you mean" not in str(caught.value)
    assert f"{registry_name(name)} is that model in other formats" in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B",
     "DeepSeek-R1-Distill-Qwen-32B-AWQ", "deepseek-v2", "deepseek-v4", "glm-4.7", "falcon3-8b",
     "llama9", "gpt-7", "phi4-mini", "qwen4-32b"],
)  # fmt: skip
def test_another_model_is_offered_nothing(name: str) -> None:
    assert registry_name(name) is None
    with pytest.raises(ModelShapeError, match="unknown model") as caught:
        resolve_model(name)
    assert (caught.value.hint or "").startswith("known models: ")


@pytest.mark.parametrize("name", ["a" * 5000, "nul\0", "", "  "])
def test_names_that_are_no_names(name: str) -> None:
    with pytest.raises(ModelShapeError, match="unknown model"):
        resolve_model(name)


def test_the_local_cache_goes_before_the_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--me--My-Model" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    config = registered_config("llama3.1-8b") | {"num_hidden_layers": 3}
    (folder / "config.json").write_text(json.dumps(config))
    shape = resolve_model("me/My-Model")
    assert (shape.name, shape.layers) == ("my-model", 3)


def test_every_entry_says_whose_config_it_is() -> None:
    for name, entry in entries().items():
        assert "/" in entry["id"], name
        assert registry_name(entry["id"]) == name
