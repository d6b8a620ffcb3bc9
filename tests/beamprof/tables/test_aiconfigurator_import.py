"""Operators of a small synthetic system summed to a table: what is imported, modelled, refused."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from beam_runtime.table.perf_table import PerfTable
from beam_runtime.types import StepShape
from beamprof.devices.attention import Heads, chunk_us, decode_us
from beamprof.devices.device import resolve_device
from beamprof.devices.forward import forward
from beamprof.devices.gemm import Gemms, gemm_us
from beamprof.errors import ImportFormatError
from beamprof.models.formats import FORMATS
from beamprof.models.registry import registry
from beamprof.tables.importers import ImportOverrides
from beamprof.tables.importing import import_table

H100 = resolve_device("h100-sxm")
TOP = np.array([1980.0])
MODEL = "llama3.1-8b"


def system(folder: Path, factor: float = 1.0, **changes: Any) -> Path:
    """A system whose every operator takes ``factor`` times what the device file says."""
    m, n, k = (grid.ravel().astype(float) for grid in np.meshgrid(
        [1, 8, 64, 512, 2048], [4096, 6144, 28672], [4096, 14336], indexing="ij"))  # fmt: skip
    gemm_ms = gemm_us(H100, Gemms(m, n, k, FORMATS["bfloat16"]), TOP)[:, 0] / 1e3
    write(folder, "gemm", "gemm_perf", changes, gemm_dtype=["bfloat16"] * m.size, m=m, n=n, k=k,
          latency=gemm_ms * factor)  # fmt: skip
    batch, length = (grid.ravel().astype(float) for grid in np.meshgrid(
        [1, 16, 128], [16, 256, 2048, 8192], indexing="ij"))  # fmt: skip
    ones = np.ones_like(batch)
    heads = Heads(32 * ones, 8 * ones, 128 * ones, np.inf * ones, "bfloat16")
    common = {
        "kv_cache_dtype": ["bfloat16"] * batch.size,
        "num_heads": 32 * ones,
        "num_key_value_heads": 8 * ones,
        "head_dim": 128 * ones,
        "batch_size": batch,
    }
    context_ms = chunk_us(H100, heads, batch, length, 0 * ones, TOP)[:, 0] / 1e3
    write(folder, "attention", "context_attention_perf", changes, **common, isl=length,
          step=0 * ones, latency=context_ms * factor)  # fmt: skip
    decode_ms = decode_us(H100, heads, batch, batch * length, TOP)[:, 0] / 1e3
    write(folder, "attention", "generation_attention_perf", changes, **common, isl=ones,
          step=length, latency=decode_ms * factor)  # fmt: skip
    return folder


def write(folder: Path, room: str, family: str, changes: dict[str, Any], **columns: Any) -> None:
    if changes.get("without") == family:
        return
    path = folder / room / "vllm" / "0.24.0" / f"{family}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = pl.DataFrame(columns)
    frame.drop(changes.get("drop", []), strict=False).write_parquet(path)


def imported(source: Path, output: Path, **overrides: Any) -> PerfTable:
    given = ImportOverrides(**{"model": MODEL, "tp": 1, "pp": 1, "device": "h100-sxm", **overrides})
    done = import_table(source, output, file_format="aiconfigurator", overrides=given)
    return done.table


def latency_ms(table: PerfTable, step: StepShape, clock_mhz: int) -> tuple[float, str]:
    columns = table.columns
    at = (
        (columns["clock_mhz"] == clock_mhz)
        & (columns["prefill_tokens"] == step.prefill_tokens)
        & (columns["decode_requests"] == step.decode_requests)
        & (columns["decode_context_tokens"] == step.decode_context_tokens)
        & (columns["prefill_context_tokens"] == step.prefill_context_tokens)
        & (columns["kind"] == "forward")
    )
    (row,) = np.flatnonzero(at)
    return float(columns["latency_ms"][row]), str(columns["source"][row])


def test_operators_as_the_device_file_has_them_give_its_passes(tmp_path: Path) -> None:
    table = imported(system(tmp_path / "s"), tmp_path / "t.parquet")
    stage = registry()[MODEL].shard(1, 1)
    for step in (StepShape(64), StepShape(512), StepShape(0, 0, 64, 32_000)):
        expected = forward(H100, stage, step, TOP).latency_ms[0]
        found, source = latency_ms(table, step, 1980)
        assert (found, source) == (pytest.approx(expected, rel=1e-6), "imported")


def test_slower_operators_give_slower_passes_and_other_clocks_are_modelled(tmp_path: Path) -> None:
    plain = imported(system(tmp_path / "a"), tmp_path / "a.parquet")
    slow = imported(system(tmp_path / "b", factor=1.5), tmp_path / "b.parquet")
    step = StepShape(512)
    ratio = latency_ms(slow, step, 1980)[0] / latency_ms(plain, step, 1980)[0]
    assert 1.4 < ratio <= 1.5  # elementwise kernels are not among the operators
    low_ms, source = latency_ms(slow, step, 990)
    assert source == "modelled"
    assert low_ms > latency_ms(slow, step, 1980)[0]


def test_a_pass_without_measured_operators_near_is_marked_modelled(tmp_path: Path) -> None:
    table = imported(system(tmp_path / "s"), tmp_path / "t.parquet", model="qwen3-32b")
    assert latency_ms(table, StepShape(0, 0, 64, 32_000), 1980)[1] == "modelled"


def test_provenance_stands_in_the_table(tmp_path: Path) -> None:
    metadata = imported(system(tmp_path / "s"), tmp_path / "t.parquet").metadata
    assert (metadata["engine"], metadata["engine_version"]) == ("vllm", "0.24.0")
    assert metadata["licence"] == "Apache-2.0"
    assert metadata["energy_source"] == "modelled"
    assert "operators" in metadata["origin"]
    assert "never compared" in metadata["accuracy"]


@pytest.mark.parametrize(
    ("changes", "overrides", "words"),
    [
        ({"without": "gemm_perf"}, {}, "lacks the family gemm_perf"),
        ({"without": "generation_attention_perf"}, {}, "lacks the family generation_attention"),
        ({"drop": ["latency"]}, {}, "lacks the column latency"),
        ({"drop": ["m", "k"]}, {}, "lacks the columns m, k"),
        ({}, {"model": "qwen3-30b-a3b"}, "lacks the family moe_perf"),
        ({}, {"model": "llama3.1-8b-fp8"}, "gemm_perf fp8 holds no rows"),
        ({}, {"model": "deepseek-v2-lite"}, "LatentAttention"),
        ({}, {"tp": 2}, "lacks the family custom_allreduce_perf"),
        ({}, {"device": None}, "--model and --device"),
    ],
)
def test_what_is_missing_is_named(
    tmp_path: Path, changes: dict[str, Any], overrides: dict[str, Any], words: str
) -> None:
    source = system(tmp_path / "s", **changes)
    with pytest.raises(ImportFormatError) as caught:
        imported(source, tmp_path / "t.parquet", **overrides)
    assert words in str(caught.value)
    assert not (tmp_path / "t.parquet").exists()


@pytest.mark.parametrize("factor", [1e3, 1e-3])
def test_another_unit_is_recognised(tmp_path: Path, factor: float) -> None:
    with pytest.raises(ImportFormatError, match="of what h100-sxm can do"):
        imported(system(tmp_path / "s", factor=factor), tmp_path / "t.parquet")


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_text("")
    with pytest.raises(ImportFormatError, match="is not a folder"):
        imported(tmp_path / "x.parquet", tmp_path / "t.parquet")
