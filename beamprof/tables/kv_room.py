"""How many tokens the KV cache of a server holds: what its GPUs leave beside the weights."""

import math

from beam_runtime.table.perf_table import PerfTable
from beamprof.devices.device import Device, resolve_device
from beamprof.errors import DeviceError


def kv_room_tokens(device: Device, weight_bytes: float, kv_bytes_per_token: float) -> int:
    """Of a stage on GPUs of that kind, all numbers for one GPU; 0 where the weights do not fit."""
    left_bytes = max(0.0, device.weight_room_bytes - weight_bytes)
    return int(left_bytes / max(kv_bytes_per_token, 1.0))


def kv_room_of(table: PerfTable) -> int | None:
    """Tokens; None where the table does not say what one takes, or nobody knows its device."""
    known = _known(table)
    return None if known is None else kv_room_tokens(*known) or None


def most_kv_tokens(table: PerfTable) -> int | None:
    """Tokens with all of the memory, of which engines keep a part for other things; None likewise.

    More there cannot be, whatever an engine is told.
    """
    known = _known(table)
    if known is None:
        return None
    device, weight_bytes, token_bytes = known
    left_bytes = max(0.0, device.memory.size_gb * 1e9 - weight_bytes)
    return int(left_bytes / max(token_bytes, 1.0))


def _known(table: PerfTable) -> tuple[Device, float, float] | None:
    """Its device, bytes of weights on each GPU, and of a token."""
    try:
        weight_bytes, token_bytes = (
            float(table.metadata[key]) for key in ("stage_weight_bytes", "kv_bytes_per_token")
        )
        device = resolve_device(table.device)
    except (KeyError, ValueError, DeviceError):
        return None
    sound = math.isfinite(weight_bytes) and math.isfinite(token_bytes)
    return (device, weight_bytes, token_bytes) if sound else None
