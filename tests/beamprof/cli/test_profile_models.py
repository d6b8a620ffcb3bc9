"""What beam profile says of models whose cost is special, and what stands in their tables."""

import json
from pathlib import Path
from typing import Any

import pytest

from beam_runtime.table.perf_table import PerfTable
from beamprof.cli.main import main
from beamprof.models.registry import registered_config
from beamprof.tables.doubts import doubts

LLAMA = registered_config("llama3.1-8b")


def profiled(tmp_path: Path, config: dict[str, Any], *flags: str) -> dict[str, str]:
    folder = tmp_path / "model"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    out = tmp_path / "table.parquet"
    code = main(["profile", "--model", str(folder), "--backend", "modelled", "--clocks", "1980",
                 "--device", "h100-sxm", "--max-tokens", "64", "--output", str(out), "--force",
                 "--fresh", *flags])  # fmt: skip
    assert code == 0
    return dict(PerfTable.load(out).metadata)


@pytest.mark.parametrize(
    ("method", "quantization"),
    [
        ("fp8", {"quant_method": "fp8", "activation_scheme": "dynamic"}),
        ("awq", {"quant_method": "awq", "bits": 4, "group_size": 128}),
    ],
)
def test_a_quantised_model_has_a_table_of_its_own_that_says_so(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    method: str,
    quantization: dict[str, Any],
) -> None:
    metadata = profiled(tmp_path, LLAMA | {"quantization_config": quantization})
    assert method in metadata["precision"]
    assert json.loads(metadata["model_shape"])["precision"]["method"] == method
    assert f"precision: {method}" in capfd.readouterr().err


@pytest.mark.parametrize("field", ["torch_dtype", "dtype"])
def test_float32_weights_are_served_in_16_bit_unless_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], field: str
) -> None:
    config = {k: v for k, v in LLAMA.items() if k != "torch_dtype"} | {field: "float32"}
    assert profiled(tmp_path, config)["dtype"] == "bfloat16"
    assert "float32" in capfd.readouterr().err
    assert profiled(tmp_path, config, "--dtype", "float32")["dtype"] == "float32"


def test_a_sliding_window_is_priced_and_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = LLAMA | {"architectures": ["MistralForCausalLM"], "sliding_window": 4096}
    metadata = profiled(tmp_path, config)
    assert "sliding window of 4096 tokens in 32 of 32 layers" in capfd.readouterr().err
    assert '"window_tokens": 4096' in metadata["model_shape"]


def test_the_kv_cache_and_the_experts_split_are_chosen(tmp_path: Path) -> None:
    moe = registered_config("qwen3-30b-a3b")
    metadata = profiled(tmp_path, moe, "--tp", "2", "--ep", "2", "--kv-cache-dtype", "fp8")
    assert "kv fp8" in metadata["precision"]
    assert "never compared with a measured table" in metadata["accuracy"]


def test_a_hybrids_table_says_what_was_not_measured_wherever_it_is_used(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    metadata = profiled(tmp_path, registered_config("nemotron-nano-9b-v2"))
    assert "not measured: Mamba-2 layers" in capfd.readouterr().err
    assert json.loads(metadata["model_shape"])["kinds"][0]["mixer"] == "Mamba2"
    *_, besides = doubts(PerfTable.load(tmp_path / "table.parquet"))
    assert besides.startswith("not measured: Mamba-2 layers")
    profiled(tmp_path, LLAMA)
    assert len(doubts(PerfTable.load(tmp_path / "table.parquet"))) == 1


def test_what_is_refused_is_refused_with_exit_code_2(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    config = LLAMA | {"quantization_config": {"quant_method": "bitsandbytes"}}
    (folder / "config.json").write_text(json.dumps(config))
    out = tmp_path / "table.parquet"
    code = main(["profile", "--model", str(folder), "--backend", "modelled", "--output", str(out)])
    assert code == 2
    assert "bitsandbytes" in capfd.readouterr().err
    assert not out.exists()


MODELS = ("llama3.1-8b", "qwen3-30b-a3b", "deepseek-v3", "gpt-oss-20b")
SIZES = [
    (name, field)
    for name in MODELS
    for field, value in registered_config(name).items()
    if type(value) is int and value > 1
]


@pytest.mark.parametrize(("name", "field"), SIZES)
def test_the_smallest_of_any_size_is_planned_or_refused(
    tmp_path: Path, name: str, field: str
) -> None:
    for value in (1, 2):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(registered_config(name) | {field: value}))
        code = main(["profile", "--model", str(path), "--backend", "modelled", "--dry-run",
                     "--device", "h100-sxm"])  # fmt: skip
        assert code in (0, 2)
        assert not (field == "max_position_embeddings" and value == 1 and code == 0)
