"""Whether a GPU runs under somebody else's lock, as far as its clock can tell.

NVML does not say who locked a clock, nor whether one is locked. What it tells is the clock now and
what holds it back. A clock that stays where it is, that is not ours, and that no reason but a
setting explains, is another's lock. What this cannot see: a lock at the clock that we asked for,
and any lock on a GPU that idles or is throttled.
"""

import time
from collections.abc import Callable, Collection
from typing import Any

from beam_runtime.clocks.base import CLOCK_SETTING, ClockReading

# One supported clock beside the one asked for is still ours: boards are known that hold 15 MHz
# less. A free GPU may stay further below the highest clock that it lists.
OURS_SHARE, FREE_SHARE = 0.02, 0.05
_SAMPLES, _PAUSE_S = 5, 0.01  # a clock that is on its way is another one in each of them


def foreign_clocks(
    read_back: Callable[[], tuple[ClockReading, ...]],
    ours_mhz: Collection[int],
    *,
    free_mhz: int | None = None,
    sleep_s: Callable[[float], None] = time.sleep,
) -> dict[str, int]:
    """The GPUs that somebody else's lock holds, and where; empty where nothing says so.

    Args:
        read_back: of the GPUs, see ClockActuator.
        ours_mhz: the clocks at which our own lock would hold them.
        free_mhz: what they run at unlocked, where they may be.
        sleep_s: replaced in tests.
    """
    suspects: dict[str, int] | None = None
    for sample in range(_SAMPLES):
        if sample:
            sleep_s(_PAUSE_S)
        try:
            readings = read_back()
        except Exception:  # a GPU that cannot be read proves nothing
            return {}
        found = {
            one.gpu: one.clock_mhz for one in readings if not _explained(one, ours_mhz, free_mhz)
        }
        suspects = (
            found
            if suspects is None
            else {gpu: mhz for gpu, mhz in suspects.items() if found.get(gpu) == mhz}
        )
        if not suspects:
            return {}
    return suspects or {}


def free_clock_mhz(actuator: Any) -> int | None:
    """What its GPUs run at unlocked and under load; None where they do not tell."""
    try:
        return max(actuator.supported_clocks_mhz(), default=None)
    except Exception:  # as above
        return None


def _explained(reading: ClockReading, ours_mhz: Collection[int], free_mhz: int | None) -> bool:
    near = [(clock, max(8.0, OURS_SHARE * clock)) for clock in ours_mhz]
    if free_mhz is not None:
        near.append((free_mhz, FREE_SHARE * free_mhz))
    if any(abs(reading.clock_mhz - clock) <= reach for clock, reach in near):
        return True
    held_back = reading.reasons is None or any(one != CLOCK_SETTING for one in reading.reasons)
    return held_back and reading.clock_mhz < max((clock for clock, _ in near), default=0)
