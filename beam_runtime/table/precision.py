"""Whether a table's numbers are of the formats in which an engine keeps weights and KV cache.

Compared is what changes the cost: quantised or not and by which method, the width of what is not
quantised, and of the KV cache. bfloat16 and float16 cost the same. A table that says nothing of its
precision is taken as it is.
"""

from typing import Any

from beam_runtime.errors import TableError
from beam_runtime.table.perf_table import PerfTable

_SIXTEEN_BITS = ("bfloat16", "float16", "half")
_PLAIN = "not quantised"


def check_formats(
    table: PerfTable,
    name: str,
    *,
    method: str | None = None,
    weights: str | None = None,
    kv: str | None = None,
) -> None:
    """Hold the table's formats against an engine's; None = not known, not compared.

    Args:
        table: its metadata name its precision, or none does.
        name: of its file.
        method: of quantisation; "" = the weights are not quantised.
        weights: what they are kept in where they are not quantised, e.g. bfloat16.
        kv: what the KV cache is kept in.

    Raises:
        TableError: it is a table of other formats; both are named.
    """
    theirs = _of_table(table)
    if not theirs:
        return
    known = str(theirs.get("method") or "")
    if method is not None and not _same_method(known, method):
        raise _other(name, "weights", known or _PLAIN, method or _PLAIN)
    kept, cached = str(theirs.get("attention", "")), str(theirs.get("kv", ""))
    if weights and kept and not known and _width(weights) != _width(kept):
        raise _other(name, "weights", kept, weights)
    if kv and cached and _width(cached) != _width(kv):
        raise _other(name, "the KV cache", cached, kv)


def _of_table(table: PerfTable) -> dict[str, Any]:
    found = table.model_shape.get("precision")
    return found if isinstance(found, dict) else {}


def _same_method(table: str, engine: str) -> bool:
    """Kernels have names of their own: awq_marlin is awq, modelopt_fp4 is modelopt."""
    one, other = (name.lower().replace("-", "_") for name in (table, engine))
    if not one or not other:
        return one == other
    return one in other or other in one


def _width(dtype: str) -> str:
    name = dtype.lower().removeprefix("torch.")
    if name in _SIXTEEN_BITS:
        return "16 bit"
    return "fp8" if name.startswith("fp8") else name


def _other(name: str, what: str, expected: str, found: str) -> TableError:
    return TableError(
        f"{name} is a table of another precision: {what} {expected}, this engine has {found}",
        hint="profile this engine's model and formats: beam profile --model MODEL",
    )
