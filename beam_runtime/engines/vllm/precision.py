"""Whether a table's numbers are of the formats in which this engine keeps weights and KV cache.

Compared is what changes the cost: quantised or not and by which method, the width of what is not
quantised, and of the KV cache. bfloat16 and float16 cost the same. A table that says nothing of its
precision is taken as it is; on a CPU, where vLLM serves what it can, widths are not compared.
"""

import json
from typing import Any

from beam_runtime.errors import TableError
from beam_runtime.table.perf_table import PerfTable

_SIXTEEN_BITS = ("bfloat16", "float16", "half")


def check_precision(table: PerfTable, vllm_config: Any, name: str) -> None:
    """Hold the table's precision against the engine's.

    Args:
        table: its metadata name its precision, or none does.
        vllm_config: the engine's.
        name: of the table's file.

    Raises:
        TableError: it is a table of other formats; both are named.
    """
    theirs = _of_table(table)
    if not theirs:
        return
    model = vllm_config.model_config
    method, ours = str(theirs.get("method") or ""), str(getattr(model, "quantization", "") or "")
    if not _same_method(method, ours):
        raise _other(name, "weights", method or "not quantised", ours or "not quantised")
    on_cpu = getattr(getattr(vllm_config, "device_config", None), "device_type", "") == "cpu"
    served = str(getattr(model, "dtype", "")).removeprefix("torch.")
    kept = str(theirs.get("attention", ""))
    if not ours and not on_cpu and served and kept and _width(served) != _width(kept):
        raise _other(name, "weights", kept, served)
    cache = str(getattr(vllm_config.cache_config, "cache_dtype", "auto"))
    kv = served if cache == "auto" else cache
    cached = str(theirs.get("kv", ""))
    if cached and kv and _width(cached) != _width(kv) and not (on_cpu and cache == "auto"):
        raise _other(name, "the KV cache", cached, kv)


def _of_table(table: PerfTable) -> dict[str, Any]:
    try:
        found = json.loads(table.metadata.get("model_shape") or "{}").get("precision")
    except (ValueError, AttributeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _same_method(table: str, engine: str) -> bool:
    """Kernels have names of their own: awq_marlin is awq, modelopt_fp4 is modelopt."""
    one, other = (name.lower().replace("-", "_") for name in (table, engine))
    if not one or not other:
        return one == other
    return one in other or other in one


def _width(dtype: str) -> str:
    name = dtype.lower()
    if name in _SIXTEEN_BITS:
        return "16 bit"
    return "fp8" if name.startswith("fp8") else name


def _other(name: str, what: str, expected: str, found: str) -> TableError:
    return TableError(
        f"{name} is a table of another precision: {what} {expected}, this engine has {found}",
        hint="profile this engine's model and formats: beam profile --model MODEL",
    )
