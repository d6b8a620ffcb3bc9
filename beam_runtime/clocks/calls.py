"""Driver calls on a thread of their own: in order, and waited for as long as is sensible.

A call into the driver may never return, and while the main thread sits in one, Python runs no
handler of signals. Whoever waits here can still be told to end.
"""

import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from beam_runtime.clocks.broken_pipes import broken_pipes_raise
from beam_runtime.errors import ClockError, ClockHangsError

T = TypeVar("T")
_LOOK_S = 0.05
# The first call of all may wait until the driver has woken eight boards.
OPEN_LIMIT_S = 30.0


class _Call(Generic[T]):
    def __init__(self, function: Callable[[], T]) -> None:
        self.function = function
        self.done = threading.Event()
        self.result: T | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self.function()
        except BaseException as error:  # whatever it is, it is the caller's to see
            self.error = error
        self.done.set()


def within(limit_s: float, function: Callable[[], T]) -> T:
    """Call a driver once, as at an engine's start, where nobody else watches yet.

    Raises:
        ClockHangsError: it does not return; its thread stays behind.
    """
    calls = DriverCalls()
    try:
        return calls.run(function, limit_s)
    finally:
        calls.close()


class DriverCalls:
    """Runs calls one after the other; a forked child has none of it."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[_Call[object] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._hung: _Call[object] | None = None
        self._pid = os.getpid()

    def run(
        self, function: Callable[[], T], limit_s: float, lost: Callable[[], bool] = lambda: False
    ) -> T:
        """Call it, behind whatever is under way, and return or raise what it does.

        Args:
            function: what to call.
            limit_s: how long to wait.
            lost: asked meanwhile; True = somebody else takes care, do not wait any longer.

        Raises:
            ClockHangsError: it, or one before it, has not returned. It may still take effect.
            ClockError: it raised something that is no Exception.
        """
        if self._hung is not None and not self._hung.done.is_set():
            raise _hangs("a driver call from before")
        call = self.later(function)
        until_s = time.monotonic() + limit_s
        while not call.done.wait(max(0.0, min(_LOOK_S, until_s - time.monotonic()))):
            if time.monotonic() >= until_s or lost():
                self._hung = call  # type: ignore[assignment]
                raise _hangs("a driver call")
        if call.error is None:
            return call.result  # type: ignore[return-value]
        if isinstance(call.error, Exception):
            raise call.error
        raise ClockError(f"{type(call.error).__name__}: {call.error}") from call.error

    def later(self, function: Callable[[], T]) -> _Call[T]:
        """Have it called behind whatever is under way, and do not wait.

        Raises:
            ClockError: in a forked child, or no thread can be had.
        """
        if os.getpid() != self._pid:
            raise ClockError("these clocks belong to the process that forked this one")
        if self._thread is None:
            thread = threading.Thread(target=self._work, name="beam-driver", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # no thread is left: nothing was called
                raise ClockError("the driver cannot be called", cause=str(error)) from error
            self._thread = thread
        call = _Call(function)
        self._queue.put(call)  # type: ignore[arg-type]
        return call

    def close(self) -> None:
        """Let the thread end after what is under way; the next call starts another one."""
        if self._thread is not None and os.getpid() == self._pid:
            self._queue.put(None)
            self._thread = None

    def _work(self) -> None:
        broken_pipes_raise()
        while (call := self._queue.get()) is not None:
            call.run()


def _hangs(what: str) -> ClockHangsError:
    return ClockHangsError(
        f"{what} does not return",
        hint="look for Xid errors in dmesg; the guard gives the GPUs back as soon as it can",
    )
