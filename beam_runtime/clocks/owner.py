"""Who holds a clock: a process that cannot be mistaken for another one.

Pids are used again, so an owner is its pid, the moment that process started, and the boot
it started in. What this cannot see: processes of another pid namespace. Two containers that
share a GPU must not share a state folder.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_STARTTIME_FIELD = 22  # proc_pid_stat(5), counted from 1
_GONE_STATES = "ZX"  # a zombie holds nothing any more


@dataclass(frozen=True, slots=True)
class Owner:
    """A process.

    Attributes:
        pid: its number.
        started_ticks: clock ticks after boot at which it started.
        boot_id: the kernel's name for this boot.
    """

    pid: int
    started_ticks: int
    boot_id: str

    @classmethod
    def current(cls) -> Self:
        """This process."""
        return cls(os.getpid(), _stat(os.getpid())[1], boot_id())

    def alive(self) -> bool:
        """Whether this very process still runs."""
        if self.boot_id != boot_id():
            return False
        try:
            state, started_ticks = _stat(self.pid)
        except OSError:
            return False
        return started_ticks == self.started_ticks and state not in _GONE_STATES


def boot_id() -> str:
    """The kernel's name for this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _stat(pid: int) -> tuple[str, int]:
    """State letter and start time of a process. Raises OSError when there is none."""
    text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    # The second field is the command's name in parentheses, and may hold both blanks and ')'.
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[_STARTTIME_FIELD - 3])
