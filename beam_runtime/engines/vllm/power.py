"""What the replica's GPUs really draw, from their own counters, whenever somebody asks.

The counters go on by themselves, so nothing runs between two looks, and reading needs no rights.
A counter that went backwards (a driver reload) loses that one stretch. It does not know who else
works on these GPUs.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from beam_runtime.clocks.calls import OPEN_LIMIT_S, within
from beam_runtime.clocks.energy import EnergyCounter
from beam_runtime.clocks.nvml import NvmlGpus
from beam_runtime.clocks.places import by_place
from beam_runtime.errors import ClockError, ClockHangsError

# Counters tick every 100 ms: over a second the mean is good to a few percent.
LEAST_S = 1.0
# A driver call may not return: who asks next does not wait for it.
_PATIENCE_S = 0.5


@dataclass(frozen=True, slots=True)
class PowerReading:
    """All GPUs together.

    Attributes:
        energy_j: since the meter was made.
        power_w: the mean over the latest second or more; None until there was one.
    """

    energy_j: float
    power_w: float | None


class Wattmeter:
    """Adds up a counter's devices; may be asked from several threads.

    Args:
        counter: of the GPUs.
        now_s: the clock on the wall; replaced in tests.

    Raises:
        ClockError: the counter cannot be read.
    """

    def __init__(
        self, counter: EnergyCounter, *, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._counter = counter
        self._now_s = now_s
        self._one_at_a_time = threading.Lock()
        self._before_j = counter.read_energy_j()
        self._energy_j = 0.0
        self._mark = (now_s(), 0.0)
        self._power_w: float | None = None

    def read(self) -> PowerReading:
        """The energy so far, and the power of late.

        Raises:
            ClockError: the counter cannot be read, or somebody else's look does not return.
        """
        if not self._one_at_a_time.acquire(timeout=_PATIENCE_S):
            raise ClockHangsError("the energy counters do not answer")
        try:
            now_j = self._counter.read_energy_j()
            self._energy_j += sum(
                max(0.0, after - before)
                for before, after in zip(self._before_j, now_j, strict=True)
            )
            self._before_j = now_j
            now_s, (mark_s, mark_j) = self._now_s(), self._mark
            if now_s - mark_s >= LEAST_S:
                self._power_w = (self._energy_j - mark_j) / (now_s - mark_s)
                self._mark = now_s, self._energy_j
            return PowerReading(self._energy_j, self._power_w)
        finally:
            self._one_at_a_time.release()


def open_wattmeter(gpus: Sequence[str | int]) -> Wattmeter | None:
    """A meter for those GPUs that are this machine's; None without any, or without counters."""
    own = by_place(gpus).get("", ())
    if not own:
        return None
    try:
        return within(OPEN_LIMIT_S, lambda: Wattmeter(NvmlGpus(own)))
    except ClockError:
        return None
