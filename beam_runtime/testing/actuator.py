"""A clock actuator without a GPU: for tests, dry runs and the emulated engine.

It obeys like a driver would, remembers every call, and misbehaves when told to.
"""

from collections.abc import Sequence

from beam_runtime.clocks.base import ClockReading, check_supported
from beam_runtime.errors import ClockError


class FakeActuator:
    """Locks that exist in memory only.

    Args:
        gpus: how many.
        clocks_mhz: what they offer; the last one is what they run at unlocked.
        slow_reads: how many read-backs after a set still show the old clock.
        stuck: a reading that every locked GPU shows, whatever was set (None: the lock's).

    Attributes:
        calls: ("set", clock) and ("release", 0) in the order they came.
        locked_mhz: each GPU's lock; None where it is free.
        refuse: error that the next calls of set raise until it is None again.
    """

    def __init__(
        self,
        gpus: int = 1,
        clocks_mhz: Sequence[int] = tuple(range(210, 1411, 15)),
        *,
        slow_reads: int = 0,
        stuck: ClockReading | None = None,
    ) -> None:
        self._gpus = tuple(f"GPU-fake-{number}" for number in range(gpus))
        self._clocks_mhz = tuple(sorted(clocks_mhz))
        self._slow_reads = slow_reads
        self._reads_to_wait = 0
        self._stuck = stuck
        self._before_mhz = self._clocks_mhz[-1]
        self.calls: list[tuple[str, int]] = []
        self.locked_mhz: list[int | None] = [None] * gpus
        self.refuse: ClockError | None = None

    @property
    def gpus(self) -> tuple[str, ...]:
        """Invented UUIDs."""
        return self._gpus

    def supported_clocks_mhz(self) -> tuple[int, ...]:
        """The list given."""
        return self._clocks_mhz

    def set(self, clock_mhz: int) -> None:
        """Lock all, or raise ``refuse`` and release all."""
        self.calls.append(("set", clock_mhz))
        check_supported(clock_mhz, self._clocks_mhz)
        if self.refuse is not None:
            self.locked_mhz = [None] * len(self._gpus)
            raise self.refuse
        self._before_mhz = self.locked_mhz[0] or self._clocks_mhz[-1]
        self.locked_mhz = [clock_mhz] * len(self._gpus)
        self._reads_to_wait = self._slow_reads

    def read_back(self) -> tuple[ClockReading, ...]:
        """The lock, what it was before while ``slow_reads`` last, or what is stuck."""
        waiting = self._reads_to_wait > 0
        self._reads_to_wait -= waiting
        return tuple(
            self._reading(gpu, self._before_mhz if waiting and lock is not None else lock)
            for gpu, lock in zip(self._gpus, self.locked_mhz, strict=True)
        )

    def release(self, *, orphans: bool = False) -> None:
        """Free all."""
        self.calls.append(("release", 0))
        self.locked_mhz = [None] * len(self._gpus)

    def _reading(self, gpu: str, clock_mhz: int | None) -> ClockReading:
        if clock_mhz is None:
            return ClockReading(gpu, self._clocks_mhz[-1])
        if self._stuck is not None:
            return ClockReading(gpu, self._stuck.clock_mhz, self._stuck.reasons)
        return ClockReading(gpu, clock_mhz)
