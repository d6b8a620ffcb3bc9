"""A table of other formats than the engine's is refused; no vLLM is needed for it."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from beam_runtime.engines.vllm.precision import check_precision
from beam_runtime.errors import TableError
from beam_runtime.table.perf_table import PerfTable


def table(**precision: str) -> Any:
    shape = {"precision": precision} if precision else {}
    return PerfTable({}, {"model_shape": json.dumps(shape)})


def bf16(**other: str) -> Any:
    formats = dict.fromkeys(("attention", "mlp", "experts", "kv"), "bfloat16")
    return table(**{**formats, "method": "", **other})


def engine(
    quantization: str | None = None,
    dtype: str = "torch.bfloat16",
    kv: str = "auto",
    device: str = "cuda",
) -> Any:
    return SimpleNamespace(
        model_config=SimpleNamespace(quantization=quantization, dtype=dtype),
        cache_config=SimpleNamespace(cache_dtype=kv),
        device_config=SimpleNamespace(device_type=device),
    )


@pytest.mark.parametrize(
    ("of", "served"),
    [
        (bf16(), engine()),
        (bf16(), engine(dtype="torch.float16")),
        (bf16(), engine(kv="bfloat16")),
        (bf16(kv="fp8"), engine(kv="fp8_e4m3")),
        (bf16(method="awq", mlp="int4"), engine("awq_marlin", dtype="torch.float16")),
        (bf16(method="compressed-tensors", attention="fp8"), engine("compressed-tensors")),
        (bf16(method="mxfp4", experts="mxfp4"), engine("gpt_oss_mxfp4")),
        (bf16(), engine(dtype="torch.float32", device="cpu")),
        (table(), engine("fp8", kv="fp8")),
    ],
)
def test_the_same_formats_under_any_name(of: Any, served: Any) -> None:
    check_precision(of, served, "table.parquet")


@pytest.mark.parametrize(
    ("of", "served", "said"),
    [
        (bf16(), engine("fp8"), "weights not quantised, this engine has fp8"),
        (bf16(method="fp8"), engine(), "weights fp8, this engine has not quantised"),
        (bf16(method="awq"), engine("gptq_marlin"), "weights awq, this engine has gptq_marlin"),
        (bf16(), engine(dtype="torch.float32"), "weights bfloat16, this engine has float32"),
        (bf16(), engine(kv="fp8"), "the KV cache bfloat16, this engine has fp8"),
        (bf16(kv="fp8"), engine(), "the KV cache fp8, this engine has bfloat16"),
        (bf16(), engine(kv="fp8", device="cpu"), "the KV cache bfloat16"),
    ],
)
def test_other_formats_are_refused_and_named(of: Any, served: Any, said: str) -> None:
    with pytest.raises(TableError, match=said):
        check_precision(of, served, "table.parquet")


@pytest.mark.parametrize("shape", ["", "[1]", "{", '{"precision": 5}'])
def test_what_says_nothing_of_its_precision_is_taken(shape: str) -> None:
    check_precision(PerfTable({}, {"model_shape": shape}), engine("fp8"), "t.parquet")
