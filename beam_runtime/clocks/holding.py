"""A lease: whose GPUs they are, since which number, and at which clock. And how it is read."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from beam_runtime.clocks.owner import Owner

_LARGEST = (1 << 63) - 1
_HIGHEST_MHZ = 100_000
_MOST_GPUS = 1024
_LONGEST_NAME = 4096
_PRINTABLE = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]+")


@dataclass(frozen=True, slots=True)
class Holding:
    """A lease on a replica's GPUs.

    Attributes:
        owner: the process.
        gpus: UUIDs, or HOST:PORT/INDEX on other nodes.
        clock_mhz: the lock in force or about to be; None where they are held, not locked.
        actuator: what sets them: nvml, zeusd, command, file.
        generation: grows with every lease, so that an owner that comes back is not taken for
            the one that it was.
        before_mhz: the lock that may still be in force while ``clock_mhz`` is being set.
        confirmed: whether every GPU was read at ``clock_mhz``.
    """

    owner: Owner
    gpus: tuple[str, ...]
    clock_mhz: int | None
    actuator: str
    generation: int = 0
    before_mhz: int | None = None
    confirmed: bool = False

    def same_lease(self, other: "Holding") -> bool:
        """Whether both are entries of one lease, of which there is one for each machine."""
        return (self.owner, self.generation) == (other.owner, other.generation)

    @property
    def clocks_mhz(self) -> tuple[int, ...]:
        """The locks of this lease that may be in force."""
        before = () if self.confirmed else (self.before_mhz,)
        return tuple(clock for clock in (self.clock_mhz, *before) if clock is not None)


def parse_holding(entry: Any) -> Holding:
    """A holding out of JSON. Raises ValueError, naming the field that is not what it must be."""
    found = _object(entry, "holding")
    owner = _object(found.get("owner"), "owner")
    gpus = found.get("gpus")
    if not isinstance(gpus, list) or not 0 < len(gpus) <= _MOST_GPUS:
        raise ValueError(f"gpus: expected a list of 1 to {_MOST_GPUS}")
    confirmed = found.get("confirmed", False)
    if not isinstance(confirmed, bool):
        raise ValueError("confirmed: expected true or false")  # noqa: TRY004
    return Holding(
        owner=Owner(
            pid=whole_number(owner.get("pid"), "pid", least=1),
            started_ticks=whole_number(owner.get("started_ticks"), "started_ticks"),
            boot_id=text(owner.get("boot_id"), "boot_id"),
            namespace=whole_number(owner.get("namespace", 0), "namespace"),
            host=text(owner["host"], "host") if owner.get("host") else "",
        ),
        gpus=tuple(text(gpu, "gpus") for gpu in gpus),
        clock_mhz=_clock_mhz(found.get("clock_mhz"), "clock_mhz"),
        actuator=text(found.get("actuator"), "actuator"),
        generation=whole_number(found.get("generation", 0), "generation"),
        before_mhz=_clock_mhz(found.get("before_mhz"), "before_mhz"),
        confirmed=confirmed,
    )


def whole_number(value: Any, field: str, *, least: int = 0, most: int = _LARGEST) -> int:
    """An integer in range, and no boolean. Raises ValueError."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{field}: expected a whole number, found {_short(value)}")
    return value


def text(value: Any, field: str) -> str:
    """Printable text of a sensible length. Raises ValueError."""
    if not isinstance(value, str) or len(value) > _LONGEST_NAME or not _PRINTABLE.fullmatch(value):
        raise ValueError(f"{field}: expected text, found {_short(value)}")
    return value


def _clock_mhz(value: Any, field: str) -> int | None:
    return None if value is None else whole_number(value, field, least=1, most=_HIGHEST_MHZ)


def _object(value: Any, field: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{field}: expected an object, found {_short(value)}")  # noqa: TRY004
    return value


def _short(value: Any) -> str:
    if isinstance(value, list | dict):
        return type(value).__name__
    return ascii(value if not isinstance(value, int) else float(min(abs(value), 10**300)))[:60]
