"""A processor's own energy counters (RAPL), as Linux shows them under /sys/class/powercap.

Counts whole packages and, where they report it apart, their memory: everything that runs on
the machine, not this process alone. Most kernels let only root read them (since 2020, because
of the Platypus attack). AMD's counters appear under the same names.
"""

from dataclasses import dataclass, field
from pathlib import Path

from beamprof.errors import BackendError

POWERCAP = Path("/sys/class/powercap")
TICK_S = 0.001  # Intel SDM volume 3B, 15.10.3: RAPL counters are updated about every millisecond
_MICRO = 1e-6


@dataclass(slots=True)
class _Zone:
    path: Path
    range_uj: int
    last_uj: int
    total_uj: int = field(default=0)

    def read_j(self) -> float:
        now_uj = _number(self.path / "energy_uj")
        # The counter starts again at 0 after its range, within minutes on a busy server.
        self.total_uj += (now_uj - self.last_uj) % (self.range_uj + 1)
        self.last_uj = now_uj
        return self.total_uj * _MICRO


class RaplCounter:
    """An EnergyCounter (beam_runtime.clocks.energy) of all packages of this machine.

    Args:
        root: where the kernel's powercap tree is.

    Raises:
        BackendError: no RAPL here, or it may not be read; the hint names --assume-power.
    """

    tick_s = TICK_S

    def __init__(self, root: Path = POWERCAP) -> None:
        self._zones = [
            _Zone(path, _number(path / "max_energy_range_uj"), _number(path / "energy_uj"))
            for path in sorted(root.glob("intel-rapl:*"))
            if _counts(path)
        ]
        if not self._zones:
            raise BackendError(
                "this machine's energy cannot be measured",
                cause=f"no RAPL packages under {root}",
                hint="state its power: --assume-power 65W",
            )

    def read_energy_j(self) -> tuple[float, ...]:
        """Joules of the whole machine since this object was made."""
        return (sum(zone.read_j() for zone in self._zones),)


def _counts(zone: Path) -> bool:
    """Packages and their DRAM; cores and uncore are inside packages, psys around them."""
    try:
        name = (zone / "name").read_text("ascii").strip()
    except OSError:
        return False
    return name.startswith("package") or name == "dram"


def _number(path: Path) -> int:
    try:
        return int(path.read_text("ascii"))
    except OSError as error:
        raise BackendError(
            "this machine's energy counter may not be read",
            cause=f"{path}: {error.strerror}",
            hint="run as root, or state the power: --assume-power 65W",
        ) from None
    except ValueError as error:
        raise BackendError(
            f"{path} holds no number", cause=str(error), hint="state the power: --assume-power 65W"
        ) from None
