"""How many tokens the KV cache of a server holds: what its GPUs leave beside the weights."""

from beam_runtime.table.perf_table import PerfTable
from beamprof.devices.device import Device, resolve_device
from beamprof.errors import DeviceError


def kv_room_tokens(device: Device, weight_bytes: float, kv_bytes_per_token: float) -> int:
    """Of a stage on GPUs of that kind, all numbers for one GPU; 0 where the weights do not fit."""
    left_bytes = max(0.0, device.weight_room_bytes - weight_bytes)
    return int(left_bytes / max(kv_bytes_per_token, 1.0))


def kv_room_of(table: PerfTable) -> int | None:
    """Tokens; None where the table does not say what one takes, or nobody knows its device."""
    try:
        weight_bytes, token_bytes = (
            float(table.metadata[key]) for key in ("stage_weight_bytes", "kv_bytes_per_token")
        )
        return kv_room_tokens(resolve_device(table.device), weight_bytes, token_bytes) or None
    except (KeyError, ValueError, DeviceError):
        return None
