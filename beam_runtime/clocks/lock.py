"""Hold a clock, and give it back whatever happens to this process.

    with ClockLock(actuator) as lock:
        lock.set(1005)          # set, then waited for until it is read back
        ...

Released when the block ends, by an exception, by SIGTERM and SIGHUP (where the program has
no handler of its own, and the block was entered in the main thread), by SIGINT once or more
often, and at interpreter exit. Nothing here waits for ever: a driver call that does not return is
left behind. What it cannot release then, or after SIGKILL or a crash of the interpreter, is the
guard's work.
"""

import atexit
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

from beam_runtime.clocks.base import ClockActuator, ClockReading
from beam_runtime.clocks.calls import DriverCalls
from beam_runtime.clocks.fatal_signals import FATAL_SIGNALS, FatalSignals
from beam_runtime.clocks.guarded import GuardedActuator
from beam_runtime.errors import (
    ClockError,
    ClockHangsError,
    ClockLostError,
    ClockNotAppliedError,
)

T = TypeVar("T")

# Locks take 7-10 ms on an A100 and up to 35 ms on a V100 (design/device-model.md);
# a slow driver call was seen to take 200 ms.
SETTLE_S = 1.0
POLL_S = 0.005
# How long a call without a guard may take; with one, its actuator says (guarded.py).
CALL_LIMIT_S = 3.0
# How long a process that was told to end waits for its GPUs, before it leaves them to the guard.
_LAST_LIMIT_S = 4.0


class ClockLock:
    """Sole holder of an actuator's GPUs within this process. Safe to use from several threads.

    Sets are serial. Only a lock that was set here is released here, and only by the process
    that set it: a forked child leaves its parent's clocks alone.

    Args:
        actuator: drives the replica's GPUs.
        settle_s: how long a set may take until it is read back.
        now_s, sleep_s: the clock on the wall; replaced in tests.
    """

    def __init__(
        self,
        actuator: ClockActuator,
        *,
        settle_s: float = SETTLE_S,
        now_s: Callable[[], float] = time.monotonic,
        sleep_s: Callable[[float], None] = time.sleep,
    ) -> None:
        self._actuator = actuator
        self._guarded = actuator if isinstance(actuator, GuardedActuator) else None
        self._calls = DriverCalls()
        self._settle_s = settle_s
        self._now_s = now_s
        self._sleep_s = sleep_s
        self._serial = threading.RLock()
        self._owner_pid = os.getpid()
        self._locked = False
        self._clock_mhz: int | None = None
        self._signals = FatalSignals(self._release_at_exit)

    @property
    def clock_mhz(self) -> int | None:
        """The clock that is held; None where nothing is."""
        return self._clock_mhz

    def __enter__(self) -> Self:
        atexit.register(self._release_at_exit)
        self._signals.catch()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release and stop watching over this process. May be called twice."""
        try:
            self.release()
        finally:
            if os.getpid() == self._owner_pid:
                self._signals.restore()
                atexit.unregister(self._release_at_exit)
                self._calls.close()

    def set(
        self, clock_mhz: int, *, while_waiting: Callable[[], object] | None = None
    ) -> tuple[ClockReading, ...]:
        """Lock all GPUs and wait until each reads back as locked.

        Args:
            clock_mhz: one of the actuator's supported clocks.
            while_waiting: called between two readings; work for the GPU shows its true clock,
                where an idle one may read lower than its lock.

        Returns:
            The readings that confirmed it, one per GPU.

        Raises:
            ClockNotAppliedError: it was accepted and did not take effect; all are released.
            ClockHangsError: a driver call does not return; the guard takes over.
            ClockLostError: the GPUs are another's by now.
            ClockError: the set failed otherwise; every GPU has been released.
        """
        if os.getpid() != self._owner_pid:  # before any lock of a thread, as in release()
            raise ClockError("these clocks belong to the process that forked this one")
        with self._serial:
            if self._clock_mhz == clock_mhz and self._still_holds(clock_mhz):
                readings = self._call(self._actuator.read_back)
                if _obeyed(readings, clock_mhz):
                    return readings
            self._locked = True  # before the call: it may take effect and still fail
            try:
                self._call(lambda: self._actuator.set(clock_mhz))
                readings = self._await(clock_mhz, while_waiting)
            except BaseException:
                with contextlib.suppress(Exception):  # the first error says more
                    self.release()
                raise
            self._clock_mhz = clock_mhz
            return readings

    def release(self) -> None:
        """Give the GPUs back, if they were locked here. Raises ClockError if one stays locked."""
        if os.getpid() != self._owner_pid:
            return  # before any lock of a thread: the one that holds it is not in this process
        with self._serial:
            self._release(self._limit_s)

    def forget(self) -> None:
        """The lock is gone, and not by this hand: the next set of the same clock is a set."""
        self._clock_mhz = None

    def _release(self, limit_s: float) -> None:
        if not self._locked:
            return
        with _signals_held_back():
            self._clock_mhz = None
            try:
                self._call(self._actuator.release, limit_s)
            except ClockLostError:
                self._locked = False  # it is another's lock
                raise
            self._locked = False

    def _still_holds(self, clock_mhz: int) -> bool:
        guarded = self._guarded
        return guarded is None or self._call(lambda: guarded.holds(clock_mhz))

    @property
    def _limit_s(self) -> float:
        return CALL_LIMIT_S if self._guarded is None else self._guarded.call_limit_s

    def _call(self, function: Callable[[], T], limit_s: float | None = None) -> T:
        """Call the driver; what hangs is left to the guard, and undone if it ever returns."""
        guarded = self._guarded
        try:
            return self._calls.run(
                function,
                self._limit_s if limit_s is None else limit_s,
                lambda: guarded is not None and guarded.overdue,
            )
        except ClockHangsError:
            self._clock_mhz = None
            if guarded is not None and not guarded.overdue:
                guarded.abandon()
            self._calls.later(self._actuator.release)
            raise

    def _await(
        self, clock_mhz: int, while_waiting: Callable[[], object] | None
    ) -> tuple[ClockReading, ...]:
        deadline_s = self._now_s() + self._settle_s
        while True:
            readings = self._call(self._actuator.read_back)
            if _obeyed(readings, clock_mhz):
                return readings
            if self._now_s() >= deadline_s:
                raise _not_applied(clock_mhz, readings, self._settle_s)
            if while_waiting is not None:
                while_waiting()
            self._sleep_s(POLL_S)

    # Ways out

    def _release_at_exit(self) -> None:
        """Bounded: whatever holds the GPUs up must not hold up the process's end."""
        if os.getpid() != self._owner_pid:
            return
        if not self._serial.acquire(timeout=_LAST_LIMIT_S):
            return
        try:
            with contextlib.suppress(Exception):
                self._release(_LAST_LIMIT_S)
        finally:
            self._serial.release()


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Keep an impatient second Ctrl-C from cutting a release short; deliver it afterwards.

    Handlers are swapped rather than the thread's mask, since any other thread could take
    the signal and Python would run its handler here all the same.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals' handlers run in the main thread, so nothing can cut in here
        return
    arrived: list[int] = []
    before: dict[signal.Signals, Any] = {}
    try:
        for number in (signal.SIGINT, *FATAL_SIGNALS):
            if signal.getsignal(number) is not None:  # None: set by C code, not ours to put back
                before[number] = signal.signal(number, lambda number, _: arrived.append(number))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in arrived:
            signal.raise_signal(late)


def _obeyed(readings: tuple[ClockReading, ...], clock_mhz: int) -> bool:
    return all(reading.obeys(clock_mhz) for reading in readings)


def _not_applied(clock_mhz: int, readings: tuple[ClockReading, ...], settle_s: float) -> ClockError:
    found = ", ".join(
        f"{reading.gpu} reads {reading.clock_mhz} MHz"
        + (f" ({'; '.join(reading.throttle)})" if reading.throttle else "")
        for reading in readings
        if not reading.obeys(clock_mhz)
    )
    return ClockNotAppliedError(
        f"the lock at {clock_mhz} MHz was accepted but not applied within {settle_s:g} s",
        cause=found,
        hint="another tool may hold the clock, or the GPU is hot or short of power: "
        "nvidia-smi -q -d CLOCK,PERFORMANCE tells",
    )
