"""What a guard has been told by its owner, message by message (guard.py draws how they talk)."""

import time
from dataclasses import dataclass, replace

from beam_runtime.clocks.state_file import Holding

_MOST_DIGITS = 8  # of a clock


@dataclass(slots=True)
class Memory:
    """What the owner has told.

    Attributes:
        lease: the clocks that it may have in force.
        setting_since_s: when the set began that has not returned, or last moved on to another
            GPU; None where none is under way.
        calling_since_s: the same of any driver call: readings and releases, too.
        quit: it has ended cleanly.
    """

    lease: Holding
    setting_since_s: float | None = None
    calling_since_s: float | None = None
    quit: bool = False

    def take_in(self, line: str) -> None:
        """One message; what is not understood is a heartbeat at least."""
        word, _, rest = line.partition(" ")
        if word == "set" and len(rest) < _MOST_DIGITS and rest.isdecimal():
            before_mhz = self.lease.clock_mhz or self.lease.before_mhz
            self.lease = replace(
                self.lease, clock_mhz=int(rest), before_mhz=before_mhz, confirmed=False
            )
            self.setting_since_s = time.monotonic()
        elif word == "moved":
            self._moved()
        elif word == "call":
            self.calling_since_s = time.monotonic()
        elif word == "answered":
            self.calling_since_s = None
        elif word == "returned":
            self.setting_since_s = None
        elif word == "confirmed":
            self.lease = replace(self.lease, confirmed=True)
        elif word == "free":
            self.lease = replace(self.lease, clock_mhz=None, before_mhz=None, confirmed=False)
        elif word == "quit":
            self.quit = True

    def excuse(self, seconds: float) -> None:
        """So long the owner, or who watches it, could not run: no call counts it as its own."""
        if self.setting_since_s is not None:
            self.setting_since_s += seconds
        if self.calling_since_s is not None:
            self.calling_since_s += seconds

    def _moved(self) -> None:
        if self.setting_since_s is not None:
            self.setting_since_s = time.monotonic()
        if self.calling_since_s is not None:
            self.calling_since_s = time.monotonic()
