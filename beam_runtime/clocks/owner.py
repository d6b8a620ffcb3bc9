"""Who holds a clock: a process that cannot be mistaken for another one.

Pids are used again, so an owner is its pid, the moment that process started, and the boot
it started in. A pid means nothing in another pid namespace, so the namespace is told, too; whether
a process of another container lives is then for its presence to say (presence.py).
"""

import os
import platform
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
        namespace: inode of its pid namespace; 0 = not told, taken as this one.
        host: what its machine or container is called; empty = not told.
    """

    pid: int
    started_ticks: int
    boot_id: str
    namespace: int = 0
    host: str = ""

    @classmethod
    def current(cls) -> Self:
        """This process."""
        started_ticks = _stat(os.getpid())[1]
        host = "".join(filter(str.isprintable, platform.node()))  # the kernel takes any bytes
        return cls(os.getpid(), started_ticks, boot_id(), pid_namespace(), host)

    @property
    def visible(self) -> bool:
        """Whether its pid means here what it means to itself."""
        return self.namespace in (0, pid_namespace())

    def alive(self) -> bool:
        """Whether this very process still runs, as far as /proc shows it here."""
        if self.boot_id != boot_id() or not self.visible:
            return False
        try:
            state, started_ticks = _stat(self.pid)
        except (OSError, ValueError, IndexError):
            return False
        return started_ticks == self.started_ticks and state not in _GONE_STATES


def boot_id() -> str:
    """The kernel's name for this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def pid_namespace() -> int:
    """Inode of this process's pid namespace; 0 where the kernel does not tell."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0


def _stat(pid: int) -> tuple[str, int]:
    """State letter and start time of a process. Raises OSError when there is none."""
    text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    # The second field is the command's name in parentheses, and may hold both blanks and ')'.
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[_STARTTIME_FIELD - 3])
