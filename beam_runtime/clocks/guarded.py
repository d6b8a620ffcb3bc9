"""An actuator whose locks are on record before they are set, and watched by a guard.

set:      claim the GPUs on record -> guard is up -> set -> (read back by ClockLock)
release:  release -> note that nothing is locked
close:    release -> guard goes home -> off the record
"""

import contextlib
import os
from collections.abc import Callable

from beam_runtime.clocks.base import ClockActuator, ClockReading
from beam_runtime.clocks.claims import claim, give_up, restore, unlock
from beam_runtime.clocks.guard import Guard
from beam_runtime.clocks.owner import Owner
from beam_runtime.clocks.spec import ActuatorSpec
from beam_runtime.clocks.state_file import Holding, StateFile
from beam_runtime.errors import ClockError

GuardFactory = Callable[[ActuatorSpec, StateFile, Owner], Guard]


class GuardedActuator:
    """Wraps another actuator; is one itself. Used by one thread at a time (ClockLock sees to it).

    Args:
        actuator: sets the clocks.
        spec: the same in words, for the guard.
        state: where locks are on record.
        guard: starts the guard; replaced in tests.
    """

    def __init__(
        self,
        actuator: ClockActuator,
        spec: ActuatorSpec,
        state: StateFile | None = None,
        *,
        guard: GuardFactory = Guard,
    ) -> None:
        self._actuator = actuator
        self._spec = spec
        self._state = state or StateFile()
        self._start_guard = guard
        self._guard: Guard | None = None
        self._owner = Owner.current()

    @property
    def gpus(self) -> tuple[str, ...]:
        """UUIDs."""
        return self._actuator.gpus

    def supported_clocks_mhz(self) -> tuple[int, ...]:
        """As the wrapped actuator's."""
        return self._actuator.supported_clocks_mhz()

    def read_back(self) -> tuple[ClockReading, ...]:
        """As the wrapped actuator's."""
        return self._actuator.read_back()

    def set(self, clock_mhz: int) -> None:
        """Register, then lock. Raises ClockError as ClockActuator.set, and where it may not."""
        if os.getpid() != self._owner.pid:
            raise ClockError("these clocks belong to the process that forked this one")
        if self._guard is None:
            restore(self._state, release_orphan)
            claim(self._state, self._owner, self.gpus, self._spec.name, None)
            self._guard = self._start_guard(self._spec, self._state, self._owner)
        claim(self._state, self._owner, self.gpus, self._spec.name, clock_mhz)
        self._actuator.set(clock_mhz)

    def release(self, *, orphans: bool = False) -> None:
        """Give the GPUs back; they stay this process's to lock. Raises ClockError."""
        self._actuator.release(orphans=orphans)
        if self._guard is not None:
            # Nothing is locked any more: a record that says otherwise costs a needless release.
            with contextlib.suppress(ClockError):
                unlock(self._state, self._owner)

    def beat(self) -> None:
        """Tell the guard that this process is well; call it about every HEARTBEAT_S.

        Raises:
            ClockError: the guard is gone. It may have released the clocks, so they have been
                released here too; the next set starts another one.
        """
        if self._guard is None or self._guard.beat():
            return
        guard, self._guard = self._guard, None
        guard.close()
        self._actuator.release()
        give_up(self._state, self._owner)
        raise ClockError(
            "the guard that releases clocks after a crash has ended",
            cause=f"process {guard.pid} was killed, or saw no heartbeat and released the clocks",
            hint="clocks are free; BEAM tries again after a pause",
        )

    def close(self) -> None:
        """Give the GPUs back and send the guard home. May be called twice.

        Raises:
            ClockError: a GPU stays locked; it stays on record, and the guard goes on trying.
        """
        if self._guard is None or os.getpid() != self._owner.pid:
            return
        guard, self._guard = self._guard, None
        try:
            self._actuator.release()
        except ClockError:
            guard.abandon()
            raise
        guard.close()
        with contextlib.suppress(ClockError):
            give_up(self._state, self._owner)


def release_orphan(holding: Holding) -> None:
    """Free a dead owner's GPUs, as its record tells. Raises ClockError."""
    for one in ActuatorSpec.from_name(holding.actuator, holding.gpus).open_releasers():
        one.release(orphans=True)
