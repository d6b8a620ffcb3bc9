"""In which formats this vLLM keeps weights and KV cache, and whether a table is of the same.

On a CPU, where vLLM serves what it can, widths are not compared.
"""

from typing import Any

from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.precision import check_formats


def check_precision(table: PerfTable, vllm_config: Any, name: str) -> None:
    """Hold the table's precision against the engine's.

    Args:
        table: its metadata name its precision, or none does.
        vllm_config: the engine's.
        name: of the table's file.

    Raises:
        TableError: it is a table of other formats; both are named.
    """
    model = vllm_config.model_config
    method = str(getattr(model, "quantization", "") or "")
    on_cpu = getattr(getattr(vllm_config, "device_config", None), "device_type", "") == "cpu"
    served = str(getattr(model, "dtype", "")).removeprefix("torch.")
    cache = str(getattr(vllm_config.cache_config, "cache_dtype", "auto"))
    check_formats(
        table,
        name,
        method=method,
        weights=None if method or on_cpu else served,
        kv=(None if on_cpu else served) if cache == "auto" else cache,
    )
