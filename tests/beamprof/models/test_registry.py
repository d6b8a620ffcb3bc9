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


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ModelShapeError, match="unknown model 'qwen3-31b'") as caught:
        resolve_model("qwen3-31b")
    assert "did you mean qwen3-32b?" in str(caught.value)


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
