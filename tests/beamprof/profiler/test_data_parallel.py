"""Groups of GPUs that attend to requests of their own and share a model's experts."""

from pathlib import Path

import pytest

from beam_runtime.errors import BeamError
from beam_runtime.table.perf_table import PerfTable
from beamprof.models.registry import resolve_model
from beamprof.profiler import choose_backend as choose
from beamprof.profiler.choose_backend import choose_backend
from beamprof.profiler.prepare import ProfileRequest, prepare
from beamprof.profiler.profile import profile
from beamprof.profiler.spec import resolve_spec
from beamprof.tables.merge import merge_tables

FLAGS = {"model": "qwen3-30b-a3b", "backend": "modelled", "device": "h100-sxm",
         "clocks": "990,1980", "max_tokens": 64, "max_decodes": 64}  # fmt: skip


def table(folder: Path, **more: int) -> PerfTable:
    name = "-".join(f"{key}{value}" for key, value in more.items()) or "alone"
    path = folder / f"{name}.parquet"
    profile(ProfileRequest(resolve_spec({**FLAGS, **more}), path))
    return PerfTable.load(path)


def decode_ms(of: PerfTable) -> float:
    """The smallest decode step at the highest clock: weights are all it reads."""
    rows = of.columns
    alone = (rows["decode_requests"] == 1) & (rows["prefill_tokens"] == 0)
    return float(rows["latency_ms"][alone & (rows["clock_mhz"] == 1980)].min())


def test_a_table_says_who_shares_the_experts(tmp_path: Path) -> None:
    shared = table(tmp_path, dp=4, ep=4)
    assert {key: shared.metadata[key] for key in ("tp", "dp", "ep")} == {
        "tp": "1", "dp": "4", "ep": "4"
    }  # fmt: skip
    assert shared.metadata["allreduce"] == "device file h100-sxm"
    alone = table(tmp_path)
    assert "dp" not in alone.metadata
    assert alone.metadata["allreduce"] == "none (tp 1)"
    # A token of each group asks for eight experts: more of them than one request's token alone.
    assert decode_ms(shared) > decode_ms(table(tmp_path, tp=4, ep=4))


def test_it_is_in_the_files_name_and_in_a_note() -> None:
    prepared = prepare(ProfileRequest(resolve_spec({**FLAGS, "dp": 4, "ep": 4})))
    assert prepared.output.name == "qwen3-30b-a3b-tp1-pp1-dp4-h100-sxm.parquet"
    assert any("one of 4 groups" in note for note in prepared.notes)


def test_tables_of_other_groups_do_not_merge(tmp_path: Path) -> None:
    with pytest.raises(BeamError, match="dp differs"):
        merge_tables({"a": table(tmp_path, dp=2), "b": table(tmp_path, dp=4)})


def test_without_experts_groups_are_replicas() -> None:
    with pytest.raises(BeamError, match="so many replicas"):
        prepare(ProfileRequest(resolve_spec({**FLAGS, "model": "llama3-8b", "dp": 2})))


def test_vllm_is_not_profiled_with_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "find_spec", lambda name: object())
    monkeypatch.setattr(choose, "find_gpu", lambda: None)
    spec = resolve_spec({**FLAGS, "backend": "vllm", "device": None, "dp": 2})
    model = resolve_model("qwen3-30b-a3b")
    with pytest.raises(BeamError, match="one data-parallel group, not 2"):
        choose_backend(spec, model, model.shard(1, 1, 1, 2))
