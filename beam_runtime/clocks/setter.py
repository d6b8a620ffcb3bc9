"""Clock sets on a thread of their own: serial, the last wish wins, every outcome reported.

A set takes 7-35 ms and a stuck driver call a second; neither the engine nor the search waits
for it. The same thread tells the guard that this process is well.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from beam_runtime.clocks.guard import HEARTBEAT_S
from beam_runtime.clocks.guarded import GuardedActuator
from beam_runtime.clocks.lock import ClockLock
from beam_runtime.errors import ClockError


@dataclass(frozen=True, slots=True)
class SetOutcome:
    """What came of a wish: ``clock_mhz`` None was a release; ``error`` None is success."""

    clock_mhz: int | None
    error: ClockError | None
    seconds: float


class ClockSetter:
    """Carries out wishes for a clock.

    Args:
        lock: sets, reads back, releases.
        report: called on the setter's thread after every wish and when the guard is lost.
        guarded: the actuator under ``lock``, where it has a guard to be kept calm.
    """

    def __init__(
        self,
        lock: ClockLock,
        report: Callable[[SetOutcome], None],
        guarded: GuardedActuator | None = None,
    ) -> None:
        self._lock = lock
        self._report = report
        self._guarded = guarded
        self._wish: tuple[int | None] | None = None  # a wish in a box: None is a wish, too
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="beam-clocks", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def want(self, clock_mhz: int | None) -> None:
        """Wish for a clock, or for release with None; an older wish still waiting is dropped."""
        with self._changed:
            self._wish = (clock_mhz,)
            self._changed.notify()

    def close(self, timeout_s: float = 5.0) -> None:
        """Finish the set under way, then end; the caller releases."""
        with self._changed:
            self._closing = True
            self._wish = None
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._wish is None and not self._closing:
                    self._changed.wait(HEARTBEAT_S)
                if self._closing:
                    return
                wish, self._wish = self._wish, None
            if wish is not None:
                self._report(self._carry_out(wish[0]))
            self._calm_guard()

    def _carry_out(self, clock_mhz: int | None) -> SetOutcome:
        begin_s = time.monotonic()
        error = None
        try:
            if clock_mhz is None:
                self._lock.release()
            else:
                self._lock.set(clock_mhz)
        except ClockError as caught:
            error = caught
        except Exception as caught:  # an actuator's bug must not end the thread that releases
            error = ClockError(f"{type(caught).__name__}: {caught}")
        return SetOutcome(clock_mhz, error, time.monotonic() - begin_s)

    def _calm_guard(self) -> None:
        if self._guarded is None:
            return
        try:
            self._guarded.beat()
        except ClockError as error:
            self._report(SetOutcome(None, error, 0.0))
