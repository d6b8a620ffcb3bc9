"""What a table's numbers do not rest on, said wherever they are used."""

import math

from beam_runtime.table.perf_table import PerfTable
from beamprof.devices.assumed import NOT_MEASURED
from beamprof.devices.device import resolve_device
from beamprof.errors import DeviceError

_MODELLED, _NEVER = "modelled", "never compared"


def doubts(table: PerfTable) -> list[str]:
    """Lines where a table's numbers were not measured: what their model was compared with.

    The words are the device file's own: of the device that the table names. What the table's model
    has that no device file measured stands in the table.
    """
    if _MODELLED not in table.sources:
        return []
    accuracy = _accuracy(table)
    if accuracy is None:
        return [f"modelled numbers, of a device that this BEAM does not know ({table.device})"]
    unmeasured = table.metadata.get("accuracy", "").partition(NOT_MEASURED)[2]
    besides = [f"{NOT_MEASURED}{unmeasured}"] if unmeasured else []
    return [f"modelled numbers, by {table.device}'s file: {accuracy}", *besides, *_too_large(table)]


def _too_large(table: PerfTable) -> list[str]:
    """A line where no such server can be: its weights do not fit into its GPUs."""
    try:
        weight_bytes = float(table.metadata.get("stage_weight_bytes") or 0.0)
    except ValueError:  # somebody else's
        return []
    room = resolve_device(table.device).weight_room_bytes
    if not room < weight_bytes < math.inf:
        return []
    return [
        f"no such server can be: {weight_bytes / 1e9:.0f} GB of weights for each GPU do not "
        f"fit into the {room / 1e9:.0f} GB that {table.device} leaves them"
    ]


def compared(table: PerfTable) -> bool:
    """Whether its numbers, or the model that they come from, were held against hardware."""
    if _MODELLED not in table.sources:
        return True
    accuracy = _accuracy(table)
    return accuracy is not None and _NEVER not in accuracy


def _accuracy(table: PerfTable) -> str | None:
    try:
        return resolve_device(table.device).accuracy
    except DeviceError:
        return None
