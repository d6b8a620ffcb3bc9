"""Which clocks a table's GPUs offer: another cannot be locked, whatever a table says of it."""

from collections.abc import Iterable

from beam_runtime.errors import ClockUnavailableError
from beam_runtime.table.perf_table import PerfTable
from beamprof.devices.device import resolve_device
from beamprof.errors import DeviceError


def offered_mhz(table: PerfTable) -> tuple[int, ...]:
    """As the table says, else as its device's file does; empty where nobody knows."""
    if table.offered_mhz:
        return table.offered_mhz
    try:
        return resolve_device(table.device).clocks.supported_mhz
    except DeviceError:
        return ()


def not_offered(table: PerfTable, clocks_mhz: Iterable[int]) -> list[int]:
    """Those that its GPUs do not offer, ascending; none where nobody knows."""
    offered = set(offered_mhz(table))
    return sorted(set(clocks_mhz) - offered) if offered else []


def check_offered(table: PerfTable, clock_mhz: int) -> None:
    """Refuse a clock that the table's GPUs do not offer.

    Raises:
        ClockUnavailableError: the hint names the nearest that the table covers.
    """
    if not not_offered(table, [clock_mhz]):
        return
    covered = [c for c in offered_mhz(table) if table.clocks_mhz[0] <= c <= table.clocks_mhz[-1]]
    nearest = sorted(sorted(covered, key=lambda one: abs(one - clock_mhz))[:2])
    raise ClockUnavailableError(
        f"{table.device} cannot be locked to {clock_mhz} MHz",
        hint=f"nearest: {' or '.join(map(str, nearest))} MHz" if nearest else None,
    )
