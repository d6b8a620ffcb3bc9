"""LLMServingSim's operators of one layer summed to passes: what is read, and what is refused."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from beam_runtime.table.perf_table import PerfTable
from beam_runtime.types import StepShape
from beamprof.cli.main import app
from beamprof.devices.device import resolve_device
from beamprof.errors import ImportFormatError, OutputError
from beamprof.models.registry import registry
from beamprof.tables.importers import ImportOverrides
from beamprof.tables.importers.llmservingsim import Operators
from beamprof.tables.importing import import_table

REAL = Path(__file__).parents[3].parent / "shared" / "data" / "served-rtxpro6000"
META = """vllm_version: 0.19.0
gpu: NVIDIA RTX PRO 6000 Blackwell Server Edition
model: {model}
tp_degrees: [1, 2]
"""
DENSE = {"layernorm": 2.0, "qkv_proj": 30.0, "rotary_emb": 3.0, "o_proj": 20.0,
         "gate_up_proj": 100.0, "act_fn": 4.0, "down_proj": 60.0}  # fmt: skip
TOKENS = (1, 16, 64, 256, 2048)
EMBEDDING_US = 3.0  # once in a pass


def profiled(folder: Path, model: str = "meta-llama/Llama-3.1-8B", **changes: Any) -> Path:
    """A model whose operators take so many microseconds and a hundredth of that for each token."""
    folder.mkdir(parents=True)
    (folder / "operators_meta.yaml").write_text(META.format(model=model))
    rows = [(name, n, us * (1 + n / 100)) for name, us in DENSE.items() for n in TOKENS
            if name != changes.get("without")]  # fmt: skip
    rows.append(("embedding", 1, EMBEDDING_US))
    scale = changes.get("scale", 1.0)
    dense = pl.DataFrame(rows, schema=["layer", "tokens", "time_us"], orient="row")
    write(folder, "dense", dense.with_columns(pl.col("time_us") * scale), changes)
    attention = [(c, 0, 0, 0, 5.0 + c) for c in (16, 64, 256, 2048)]
    attention += [(0, 0, b, k, 5.0 + b * k / 1e3) for b in (1, 16, 64) for k in (128, 512)]
    attention += [(16, 0, 16, 512, 99.0), (0, 0, 17, 300, 1.0)]  # the last is no step of ours
    names = ["prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us"]
    write(folder, "attention", pl.DataFrame(attention, schema=names, orient="row"), changes)
    if changes.get("head"):
        heads = [(name, n, us + n) for name, us in (("lm_head", 700.0), ("sampler", 20.0))
                 for n in (1, 256)]  # fmt: skip
        frame = pl.DataFrame(heads, schema=["layer", "sequences", "time_us"], orient="row")
        write(folder, "per_sequence", frame, changes)
    if changes.get("experts"):
        moe = [(n, e, 10.0 + 2.0 * e) for n in TOKENS for e in (8, 128) if e <= n * 8]
        frame = pl.DataFrame(moe, schema=["tokens", "activated_experts", "time_us"], orient="row")
        write(folder, "moe", frame, changes)
    return folder


def write(folder: Path, family: str, frame: pl.DataFrame, changes: dict[str, Any]) -> None:
    if changes.get("lacks") != family:
        frame.drop(changes.get("drop", []), strict=False).write_csv(
            folder / f"operators_tp1_{family}.csv"
        )


def imported(source: Path, output: Path, **overrides: Any) -> PerfTable:
    given = ImportOverrides(**overrides)
    return import_table(source, output, file_format="llmservingsim", overrides=given).table


def found_ms(table: PerfTable, **step: int) -> tuple[float, str]:
    columns = table.columns
    at = (columns["kind"] == "forward") & (columns["clock_mhz"] == columns["clock_mhz"].max())
    for name in ("prefill_tokens", "decode_requests", "decode_context_tokens"):
        at = at & (columns[name] == step.get(name, 0))
    (row,) = at.nonzero()[0]
    return float(columns["latency_ms"][row]), str(columns["source"][row])


def dense_us(tokens: int) -> float:
    total = sum(us * (2 if name == "layernorm" else 1) for name, us in DENSE.items())
    return total * (1 + tokens / 100)


def test_a_pass_is_the_sum_of_a_layers_operators(tmp_path: Path) -> None:
    table = imported(profiled(tmp_path / "m"), tmp_path / "t.parquet")
    layers = registry()["llama3.1-8b"].layers
    chunk = found_ms(table, prefill_tokens=16)
    assert chunk == (pytest.approx((layers * (dense_us(16) + 21) + EMBEDDING_US) / 1e3), "imported")
    # Under the power limit a pass that goes on is slower than its operators were.
    assert found_ms(table, prefill_tokens=256)[0] > layers * (dense_us(256) + 261) / 1e3
    decodes = found_ms(table, decode_requests=16, decode_context_tokens=16 * 512)
    expected = (layers * (dense_us(16) + 5 + 16 * 512 / 1e3) + EMBEDDING_US) / 1e3
    assert decodes == (pytest.approx(expected), "imported")
    mixed = found_ms(table, prefill_tokens=16, decode_requests=16, decode_context_tokens=16 * 512)
    assert mixed == (pytest.approx((layers * (dense_us(32) + 99) + EMBEDDING_US) / 1e3), "imported")


def test_the_lm_head_and_the_sampler_run_once_for_each_request(tmp_path: Path) -> None:
    without = imported(profiled(tmp_path / "m"), tmp_path / "t.parquet")
    with_head = imported(profiled(tmp_path / "n", head=True), tmp_path / "u.parquet")
    for step, sequences in (
        ({"prefill_tokens": 16}, 1),  # the logits of an unfinished prompt are computed, too
        ({"decode_requests": 16, "decode_context_tokens": 16 * 512}, 16),
        ({"prefill_tokens": 16, "decode_requests": 16, "decode_context_tokens": 16 * 512}, 17),
    ):
        more_ms = found_ms(with_head, **step)[0] - found_ms(without, **step)[0]
        assert more_ms == pytest.approx((720 + 2 * sequences) / 1e3)


def test_without_them_the_import_says_so(tmp_path: Path) -> None:
    given = ImportOverrides()
    for head in (False, True):
        folder = profiled(tmp_path / f"m{head}", head=head)
        done = import_table(folder, tmp_path / f"{head}.parquet", file_format="llmservingsim",
                            overrides=given)  # fmt: skip
        assert any("no LM head" in note for note in done.notes) is not head


def test_experts_shared_by_engines_have_all_their_tokens_for_half_the_experts(
    tmp_path: Path,
) -> None:
    folder = profiled(tmp_path / "m", "Qwen/Qwen3-30B-A3B-Instruct-2507", experts=True)
    model, device = registry()["qwen3-30b-a3b"], resolve_device("rtx-pro-6000")
    step = StepShape(0, 0, 64, 64 * 128)
    alone, shared = (
        Operators(folder, device, model.shard(1, 1, ep=count, dp=count)).pass_us(step)[0]
        for count in (1, 2)
    )
    # Nearly all 128 experts have work, or all 64 of the half: 2 us each in every layer.
    assert 2 * 48 < (alone - shared) / model.layers < 2 * 64


def test_experts_cost_what_so_many_with_work_do(tmp_path: Path) -> None:
    folder = profiled(tmp_path / "m", "Qwen/Qwen3-30B-A3B-Instruct-2507", experts=True)
    table = imported(folder, tmp_path / "t.parquet")
    one, many = (found_ms(table, decode_requests=n, decode_context_tokens=n * 128)[0]
                 for n in (1, 64))  # fmt: skip
    layers = registry()["qwen3-30b-a3b"].layers
    unchosen = {name: DENSE[name] for name in ("gate_up_proj", "act_fn", "down_proj")}
    fixed = [(dense_us(n) - sum(unchosen.values()) * (1 + n / 100)) + 5 + n * 128 / 1e3
             for n in (1, 64)]  # fmt: skip
    experts = [
        (ms * 1e3 - EMBEDDING_US) / layers - us for ms, us in zip((one, many), fixed, strict=True)
    ]
    assert experts[0] == pytest.approx(10 + 2 * 8)
    assert 10 + 2 * 115 < experts[1] < 10 + 2 * 128  # most of 128, as chance has it


def test_other_clocks_are_modelled_and_provenance_is_kept(tmp_path: Path) -> None:
    table = imported(profiled(tmp_path / "m"), tmp_path / "t.parquet")
    low = table.columns["clock_mhz"] < table.columns["clock_mhz"].max()
    assert set(table.columns["source"][low]) == {"modelled"}
    assert table.metadata["engine_version"] == "0.19.0"
    assert table.metadata["gpu_name"].startswith("NVIDIA RTX PRO 6000")
    assert table.metadata["licence"] == "MIT"
    assert table.device == "rtx-pro-6000"


@pytest.mark.parametrize(
    ("changes", "overrides", "words"),
    [
        ({"lacks": "attention"}, {}, "lacks operators_tp1_attention.csv"),
        ({"without": "o_proj"}, {}, "dense lacks the operator o_proj"),
        ({"drop": ["kv_prefill"]}, {}, "lacks the column kv_prefill"),
        ({"scale": 1e-6}, {}, "are no microseconds"),
        ({}, {"tp": 2}, "hold no all-reduce"),
        ({"model": "Qwen/Qwen3-30B-A3B-Instruct-2507"}, {}, "lacks operators_tp1_moe.csv"),
        ({"model": "deepseek-ai/DeepSeek-V3"}, {}, "layers of several kinds"),
    ],
)
def test_what_cannot_be_summed_is_refused(
    tmp_path: Path, changes: dict[str, Any], overrides: dict[str, Any], words: str
) -> None:
    source = profiled(tmp_path / "m", **changes)
    with pytest.raises(ImportFormatError, match=words):
        imported(source, tmp_path / "t.parquet", **overrides)
    assert not (tmp_path / "t.parquet").exists()


def test_a_gpu_without_a_device_file_is_named(tmp_path: Path) -> None:
    source = profiled(tmp_path / "m")
    (source / "operators_meta.yaml").write_text("gpu: Voodoo 2\nmodel: meta-llama/Llama-3.1-8B\n")
    with pytest.raises(ImportFormatError, match="Voodoo 2"):
        imported(source, tmp_path / "t.parquet")


def test_the_command_takes_the_folder_and_calls_the_table_after_it(tmp_path: Path) -> None:
    source = profiled(tmp_path / "Llama-3.1-8B")
    asked = ["table", "import", str(source), "--format", "llmservingsim"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "Llama-3.1-8B.parquet").is_file()
    assert isinstance(CliRunner().invoke(app, asked).exception, OutputError)  # nothing is lost


@pytest.mark.skipif(not REAL.is_dir(), reason="served-rtxpro6000 is not at hand")
@pytest.mark.parametrize("name", ["Llama-3.1-8B", "Qwen3-30B-A3B-Instruct-2507"])
def test_the_published_folders_are_read(tmp_path: Path, name: str) -> None:
    table = imported(REAL / name, tmp_path / "t.parquet")
    one_ms, source = found_ms(table, decode_requests=1, decode_context_tokens=512)
    weights_gb = {"Llama-3.1-8B": 14.0, "Qwen3-30B-A3B-Instruct-2507": 4.6}[name]
    assert source == "imported"
    assert weights_gb / 1.8 < one_ms < 2 * weights_gb / 1.5  # no faster than its DRAM
