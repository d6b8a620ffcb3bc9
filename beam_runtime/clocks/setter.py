"""Clock sets on a thread of their own: serial, the last wish wins, every outcome reported.

A set takes 7-35 ms and a stuck driver call is given up on (lock.py); neither the engine nor the
search waits for it. The same thread hears of it when the guard has ended.
"""

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

from beam_runtime.clocks.base import ClockActuator
from beam_runtime.clocks.guard import HEARTBEAT_S
from beam_runtime.clocks.guarded import GuardedActuator
from beam_runtime.clocks.lock import SETTLE_S, ClockLock
from beam_runtime.errors import ClockError, ClockLostError

_LOG = logging.getLogger("beam_runtime")


@dataclass(frozen=True, slots=True)
class SetOutcome:
    """What came of a wish: ``clock_mhz`` None was a release; ``error`` None is success."""

    clock_mhz: int | None
    error: ClockError | None = None


class ClockSetter:
    """Carries out wishes for a clock, and gives the GPUs back at the end.

    Args:
        actuator: sets the clocks; a GuardedActuator is kept calm and closed, too.
        report: called after every wish and when the guard is lost, on the setter's thread.
        threaded: False = wishes are carried out at once, by whoever has them.
        settle_s: see ClockLock.
    """

    def __init__(
        self,
        actuator: ClockActuator,
        report: Callable[[SetOutcome], None],
        *,
        threaded: bool = True,
        settle_s: float = SETTLE_S,
    ) -> None:
        self._lock = ClockLock(actuator, settle_s=settle_s)
        self._guarded = actuator if isinstance(actuator, GuardedActuator) else None
        self._report = report
        self._wish: tuple[int | None] | None = None  # a wish in a box: None is a wish, too
        self._changed = threading.Condition()
        self._closing = False
        self._pid = os.getpid()
        self._thread = (
            threading.Thread(target=self._run, name="beam-clocks", daemon=True)
            if threaded
            else None
        )

    def open(self) -> None:
        """Begin; in the main thread this also watches for fatal signals (see ClockLock)."""
        self._lock.__enter__()
        if self._thread is not None:
            self._thread.start()

    def want(self, clock_mhz: int | None) -> None:
        """Wish for a clock, or for release with None; an older wish still waiting is dropped."""
        if os.getpid() != self._pid:
            return
        if self._thread is None:
            self._calm_guard()
            self._tell(self._carry_out(clock_mhz))
            return
        with self._changed:
            self._wish = (clock_mhz,)
            self._changed.notify()

    def close(self, timeout_s: float = 5.0) -> None:
        """Finish the set under way, release, and end. Never raises; logs what stays locked."""
        if os.getpid() != self._pid:
            return  # a forked child: the thread and the GPUs are its parent's
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None and self._thread.is_alive():
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                if self._guarded is not None:
                    self._guarded.abandon()
                _LOG.error("a clock call does not return; the guard will release the GPUs")
                return
        for give_back in (self._lock.close, *((self._guarded.close,) if self._guarded else ())):
            try:
                give_back()
            except ClockLostError as error:
                _LOG.warning("%s", error)
            except Exception as error:  # a user's actuator must not raise into the engine's end
                _LOG.error("a GPU may still be locked: %s", error)

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._wish is None and not self._closing:
                    self._changed.wait(HEARTBEAT_S)
                if self._closing:
                    return
                wish, self._wish = self._wish, None
            self._calm_guard()
            if wish is not None:
                self._tell(self._carry_out(wish[0]))

    def _carry_out(self, clock_mhz: int | None) -> SetOutcome:
        try:
            if clock_mhz is None:
                self._lock.release()
            else:
                self._lock.set(clock_mhz)
        except ClockError as error:
            return SetOutcome(clock_mhz, error)
        except BaseException as error:  # an actuator's bug must not end the thread that releases
            return SetOutcome(clock_mhz, ClockError(f"{type(error).__name__}: {error}"))
        return SetOutcome(clock_mhz)

    def _tell(self, outcome: SetOutcome) -> None:
        try:
            self._report(outcome)
        except BaseException:
            _LOG.exception("who asked for a clock does not take the answer")

    def _calm_guard(self) -> None:
        if self._guarded is None:
            return
        try:
            self._guarded.beat()
        except ClockError as error:
            self._lock.forget()
            self._tell(SetOutcome(None, error))
        except Exception:  # a user's actuator, asked to give back
            _LOG.exception("the lease could not be looked after")
