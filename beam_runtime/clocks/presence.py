"""Whether a lease's owner lives, for those who cannot see its pid.

Each lease has a file that its owner keeps locked (fcntl, which a forked child does not inherit and
the kernel lets go of at death). Anybody who shares the state folder can see whether it is: another
container, another user, or where /proc hides other people's processes.
"""

import contextlib
import fcntl
import os
import stat
from pathlib import Path
from typing import Self

from beam_runtime.errors import ClockError

_ended_here: set[Path] = set()


class Presence:
    """This process's sign that a lease is looked after.

    Args:
        path: its file.
        descriptor: of the file, locked.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._pid = os.getpid()

    @classmethod
    def show(cls, path: Path, mode: int) -> Self | None:
        """Make and lock the file; None where there is one of that name already.

        Raises:
            ClockError: no file can be made there.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(path, flags, mode)
        except FileExistsError:
            return None
        except OSError as error:
            raise ClockError(
                f"cannot write {path}",
                cause=error.strerror or str(error),
                hint="no clock is locked that is not on record: free some space",
            ) from error
        try:
            os.fchmod(descriptor, mode)
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # a file system without locks: then nobody else can see us, and must ask
            os.close(descriptor)
            forget(path)
            descriptor = -1
        _ended_here.discard(path)
        return cls(path, descriptor)

    def end(self) -> None:
        """Take the sign away. A forked child's copy is not its own to take."""
        if os.getpid() == self._pid:
            _ended_here.add(self._path)
            if self._descriptor >= 0:
                forget(self._path)
                os.close(self._descriptor)
        self._descriptor = -1


def forget(path: Path) -> None:
    """Remove a sign; where that cannot be (a folder that is read-only by now), nobody locks it."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def ended_here(path: Path) -> bool:
    """Whether this process has taken this sign away, whatever is still on record."""
    return path in _ended_here


def shows(path: Path) -> bool | None:
    """Whether a process keeps this file locked; None where that cannot be told.

    Never to be asked of a file of this very process: closing it would let its lock go.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK)  # a pipe of that name has no writer
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    except OSError:
        return None
    else:
        return False
    finally:
        os.close(descriptor)
