"""Files are written whole or not at all, and never over another without being told to."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from beamprof.errors import OutputError

STDIN = Path("-")  # where a file is read: standard input


def check_writable(path: Path, *, force: bool) -> None:
    """Refuse early what would fail late: call it before hours of measuring.

    Raises:
        OutputError: the file exists (without force), is a directory, or its directory cannot be
            written to.
    """
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as error:  # a name too long for the file system
        raise OutputError(f"cannot write {path}", cause=error.strerror) from None
    if is_folder:
        raise OutputError(f"{path} is a directory", hint="name a file: --output FILE")
    if exists and not force:
        raise OutputError(
            f"{path} exists", hint="choose another --output, or replace it with --force"
        )
    folder = path.parent
    if not folder.is_dir():
        raise OutputError(f"there is no directory {folder}", hint=f"mkdir -p {folder}")
    if not os.access(folder, os.W_OK):
        raise OutputError(
            f"cannot write to {folder}",
            cause="the directory is not writable for this user",
            hint="choose another place: --output FILE",
        )


@contextmanager
def written_whole(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; flush it and rename it into place on success.

    Whatever fails, the temporary file is gone and an older file at ``path`` is untouched.

    Raises:
        OutputError: as check_writable; or the write itself failed (disk full, quota).
    """
    check_writable(path, force=force)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}",
            cause=error.strerror or str(error),
            hint="free some space or choose another --output; nothing was overwritten",
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def _sync_directory(folder: Path) -> None:
    # Without this the rename itself may be lost with the power.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
