"""Nobody else watches the thread that searches: a turn of it that does not end is ended for it."""

import logging
import threading
import time
from collections.abc import Callable

_LOG = logging.getLogger("beam_runtime")

# The engine has its own settings, and the GPUs their clocks, within a second of a hang.
LONGEST_TURN_S = 0.7
_LOOK_S = 0.1


class Watchdog:
    """Watches turns of one thread from another, on the monotonic clock.

    Args:
        hung: called once for each turn that lasts too long, with how long it has lasted, s.
        each_look: called ten times a second.
    """

    def __init__(
        self, hung: Callable[[float], None], each_look: Callable[[], None] = lambda: None
    ) -> None:
        self._hung = hung
        self._each_look = each_look
        self._begun_s: float | None = None
        self._told = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="beam-watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def close(self) -> None:
        """Stop. Waits for nothing: what it called may hang as well."""
        self._closing.set()

    def __enter__(self) -> None:
        """A turn begins."""
        self._told = False
        self._begun_s = time.monotonic()

    def __exit__(self, *raised: object) -> None:
        """It has come back."""
        self._begun_s = None

    def _run(self) -> None:
        while not self._closing.wait(_LOOK_S):
            self._each_look()
            begun_s = self._begun_s
            if begun_s is None or self._told:
                continue
            lasted_s = time.monotonic() - begun_s
            if lasted_s > LONGEST_TURN_S:
                self._told = True
                try:
                    self._hung(lasted_s)
                except BaseException:  # whatever an engine's adapter does, the watch goes on
                    _LOG.exception("the engine's own settings could not be given back")
