"""Stop after the cell under way: SIGINT and SIGTERM become a flag that the sweep looks at."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """An interrupt, with words on what was kept and how to go on."""


class Stop:
    """Whether to stop, and the signal that asked for it."""

    def __init__(self) -> None:
        self.signal_name: str | None = None

    @property
    def requested(self) -> bool:
        """True once a signal came."""
        return self.signal_name is not None


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Within the block the first SIGINT or SIGTERM sets the flag, a second one interrupts at once.

    The former handlers come back at the end. Works in the main thread only, as signals do.
    """
    stop = Stop()

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        if stop.requested:
            raise KeyboardInterrupt
        stop.signal_name = signal.Signals(number).name

    former = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
