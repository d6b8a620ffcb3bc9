"""A table of experts that the engine shares otherwise is refused; no vLLM is needed for it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from beam_runtime.engines.config import EmbeddedConfig
from beam_runtime.engines.vllm.limits import load_table
from beam_runtime.errors import TableError
from beamprof.profiler.prepare import ProfileRequest
from beamprof.profiler.profile import profile
from beamprof.profiler.spec import resolve_spec


def table(folder: Path, **layout: int) -> EmbeddedConfig:
    flags = {"model": "qwen3-30b-a3b", "backend": "modelled", "device": "h100-sxm",
             "clocks": "990,1980", "max_tokens": 64, "max_decodes": 64}  # fmt: skip
    path = folder / "table.parquet"
    profile(ProfileRequest(resolve_spec({**flags, **layout}), path))
    return EmbeddedConfig(table=path)


def engine(tp: int, *, shared: bool) -> Any:
    parallel = SimpleNamespace(
        tensor_parallel_size=tp, pipeline_parallel_size=1, enable_expert_parallel=shared
    )
    model = SimpleNamespace(
        hf_text_config=SimpleNamespace(), quantization=None, dtype="torch.bfloat16"
    )
    return SimpleNamespace(
        parallel_config=parallel,
        model_config=model,
        cache_config=SimpleNamespace(cache_dtype="auto"),
        device_config=SimpleNamespace(device_type="cuda"),
    )


def test_experts_shared_whole_in_both(tmp_path: Path) -> None:
    config = table(tmp_path, tp=2, ep=2)
    assert load_table(config, engine(2, shared=True)).metadata["ep"] == "2"
    with pytest.raises(TableError, match="this engine cuts them"):
        load_table(config, engine(2, shared=False))


def test_experts_cut_in_both(tmp_path: Path) -> None:
    assert "ep" not in load_table(table(tmp_path, tp=2), engine(2, shared=False)).metadata


def test_one_group_of_several_is_no_engine_alone(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="one of 2 data-parallel groups"):
        load_table(table(tmp_path, dp=2, ep=2), engine(1, shared=True))
