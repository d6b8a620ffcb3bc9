"""What a table's numbers do not rest on, said wherever they are used."""

from beam_runtime.table.perf_table import PerfTable
from beamprof.devices.device import resolve_device
from beamprof.errors import DeviceError

_MODELLED, _NEVER = "modelled", "never compared"


def doubts(table: PerfTable) -> list[str]:
    """A line where a table's numbers were not measured and their model not compared either.

    The words are the device file's own: of the device that the table names.
    """
    if _MODELLED not in table.sources:
        return []
    try:
        accuracy = resolve_device(table.device).accuracy
    except DeviceError:
        return [f"modelled numbers, of a device that this BEAM does not know ({table.device})"]
    if _NEVER not in accuracy:
        return []
    return [f"modelled numbers: {table.device} is {accuracy}"]
