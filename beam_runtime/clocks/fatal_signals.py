"""SIGTERM and SIGHUP end the process, once it has given its GPUs back, and whatever it is doing.

Python runs a handler in the main thread, between two steps of its own: never, while that sits in
C. A thread hears of the signal all the same (the wakeup descriptor) and, where the handler is not
run, does its work.
"""

import contextlib
import ctypes
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

FATAL_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
# How long the main thread is given to come back from C before another one takes its place.
GRACE_S = 2.0


class FatalSignals:
    """Handlers for the signals that the program has none for; nothing outside the main thread.

    Args:
        before_death: gives the GPUs back, in bounded time and without raising.
    """

    def __init__(self, before_death: Callable[[], None]) -> None:
        self._before_death = before_death
        self._replaced: dict[signal.Signals, Any] = {}
        self._obeyed = threading.Event()
        self._woken = -1
        self._pid = os.getpid()

    def catch(self) -> None:
        """From now on."""
        if threading.current_thread() is not threading.main_thread():
            return  # Python allows handlers in the main thread only
        for number in FATAL_SIGNALS:
            # A handler of the program's own leads out through the with block; leave it alone.
            if signal.getsignal(number) is signal.SIG_DFL:
                self._replaced[number] = signal.signal(number, self.on_signal)
        if self._replaced:
            self._listen()

    def restore(self) -> None:
        """As it was before."""
        if threading.current_thread() is not threading.main_thread() or not self._replaced:
            return
        for number, handler in self._replaced.items():
            if signal.getsignal(number) == self.on_signal:
                signal.signal(number, handler)
        self._replaced.clear()
        if self._woken >= 0:
            current = signal.set_wakeup_fd(-1)
            if current != self._woken:
                signal.set_wakeup_fd(current)
            os.close(self._woken)  # which ends the thread that listens
            self._woken = -1

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """The handler: give back, then die by the signal, so that the parent sees the cause."""
        if os.getpid() == self._pid:
            self._obeyed.set()
            self._before_death()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def _listen(self) -> None:
        in_use = signal.set_wakeup_fd(-1)
        if in_use >= 0:  # an event loop's, which sees to it that handlers are run
            signal.set_wakeup_fd(in_use)
            return
        heard, self._woken = os.pipe()
        os.set_blocking(self._woken, False)
        signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=self._forget_in_child)
        threading.Thread(target=self._hear, args=(heard,), name="beam-signals", daemon=True).start()

    def _hear(self, heard: int) -> None:
        try:
            while data := os.read(heard, 64):
                fatal = [number for number in data if number in self._replaced]
                if fatal and not self._obeyed.wait(GRACE_S):
                    self._before_death()
                    # signal.signal() is for the main thread alone.
                    ctypes.CDLL(None).signal(fatal[0], int(signal.SIG_DFL))
                    os.kill(os.getpid(), fatal[0])
        finally:
            os.close(heard)

    def _forget_in_child(self) -> None:
        """What a forked child is told is not meant for its parent."""
        if self._woken >= 0:
            with contextlib.suppress(ValueError, OSError):
                signal.set_wakeup_fd(-1)
            self._woken = -1
