"""How many tokens of KV cache a server of a table can hold at the very most."""

import json

from beam_runtime.table.perf_table import PerfTable
from beamprof.devices.device import resolve_device
from beamprof.errors import DeviceError, ModelShapeError
from beamprof.models.registry import registry, registry_name
from beamprof.models.shape import ModelShape


def most_kv_tokens(table: PerfTable) -> int | None:
    """Tokens for which the GPUs have memory beside the weights; None where nobody knows.

    All of it is counted, where engines keep a tenth for other things: more there cannot be. Known
    of models of the registry as it has them, on devices with a file.
    """
    try:
        shape = _shape(table)
        if shape is None:
            return None
        parts = {key: int(table.metadata.get(key) or 1) for key in ("ep", "dp")}
        stage = shape.shard(table.tp, table.pp, **parts)
        memory_bytes = resolve_device(table.device).memory.size_gb * 1e9
    except (DeviceError, ModelShapeError, ValueError):  # a table of somebody else's
        return None
    if not stage.kv_bytes_per_token:
        return None
    return max(0, int((memory_bytes - stage.weight_bytes) / stage.kv_bytes_per_token))


def _shape(table: PerfTable) -> ModelShape | None:
    """The registry's model, where the table is of that very shape."""
    name = registry_name(table.model)
    shape = None if name is None else registry()[name]
    if shape is None or json.loads(shape.to_json()) != dict(table.model_shape):
        return None
    return shape
