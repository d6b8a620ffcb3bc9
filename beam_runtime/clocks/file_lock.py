"""One at a time, by flock on a file: between threads, processes, users and containers.

A lock goes with its process. A forked child would hold it on, so its copy is closed at the fork; a
command that was started with the descriptor (command.py) holds it until it ends, and that is meant.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from beam_runtime.errors import ClockError

_POLL_S = 0.005
_TRIES = 5  # a file that is removed while it is waited for is made anew
_open_here: set[int] = set()


@contextmanager
def file_lock(path: Path, *, timeout_s: float, mode: int = 0o600) -> Iterator[int]:
    """Hold ``path``'s lock; yields its descriptor. The file is made, and stays.

    Args:
        path: the file; a link is refused.
        timeout_s: how long to wait for whoever holds it.
        mode: of a new file.

    Raises:
        ClockError: it cannot be opened, or somebody holds it for longer.
    """
    until_s = time.monotonic() + timeout_s
    for _ in range(_TRIES):
        descriptor = _opened(path, mode)
        try:
            _wait(descriptor, path, timeout_s, until_s)
            if _is_still(descriptor, path):
                yield descriptor
                return
        finally:
            _open_here.discard(descriptor)
            os.close(descriptor)
    raise ClockError(f"cannot lock {path}", cause="somebody removes it again and again")


def _opened(path: Path, mode: int) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, mode)
    except OSError as error:
        raise ClockError(f"cannot lock {path}", cause=error.strerror or str(error)) from error
    _open_here.add(descriptor)
    with contextlib.suppress(OSError):  # of a file system that has no such thing
        if os.fstat(descriptor).st_uid == os.geteuid():
            os.fchmod(descriptor, mode)  # whatever the umask is
    return descriptor


def _wait(descriptor: int, path: Path, timeout_s: float, until_s: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until_s:
                raise ClockError(
                    f"{path} is in use by another process",
                    cause=f"waited {timeout_s:g} s for its lock",
                    hint="is a BEAM process stopped? try again",
                ) from None
            time.sleep(_POLL_S)
        except OSError as error:
            raise ClockError(f"cannot lock {path}", cause=error.strerror or str(error)) from error
        else:
            return


def _is_still(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _close_in_child() -> None:
    for descriptor in _open_here:
        try:
            os.close(descriptor)
        except OSError:
            continue
    _open_here.clear()


os.register_at_fork(after_in_child=_close_in_child)
