"""Files are written whole or not at all, and never over another without being told to.

An output may also be a stream: ``-`` (standard output), a pipe, a device such as /dev/null. Those
are written into, never replaced. Nor is a symbolic link: the file that it points to is.
"""

import contextlib
import errno
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from beamprof.errors import OutputError

STDIN = STDOUT = Path("-")
_MOST_TEXT_BYTES = 1 << 26
_STDOUT_NAMES = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


def is_stdout(path: Path | None) -> bool:
    """Whether ``path`` names standard output."""
    return path is not None and str(path) in _STDOUT_NAMES


def is_stream(path: Path) -> bool:
    """Whether an output at ``path`` is written into, not replaced: it is no regular file."""
    if is_stdout(path):
        return True
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def read_text(path: Path) -> str:
    """A text of ours or another program's, as long as such texts are.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no text, or larger than any; or no file can have this name.
    """
    with path.open("rb") as file:
        data = file.read(_MOST_TEXT_BYTES + 1)
    if len(data) > _MOST_TEXT_BYTES:
        raise ValueError(f"it has more than {_MOST_TEXT_BYTES} bytes")
    return data.decode("utf-8")


def user_path(text: str) -> Path:
    """A file as a user names it: ~ is a home, where there is such a user."""
    try:
        return Path(text).expanduser()
    except (RuntimeError, ValueError):  # a home that is nobody's
        return Path(text)


def there_is(path: Path) -> bool:
    """Whether something lies there; a name that no file can have is none, and no error."""
    return os.path.exists(path)  # noqa: PTH110 - Path.exists() raises for a name too long


def check_writable(path: Path, *, force: bool, inputs: Iterable[Path] = ()) -> None:
    """Refuse early what would fail late: call it before hours of measuring.

    Args:
        path: the output.
        force: it may replace a file.
        inputs: files that are read for it: no output is one of them, under whatever name.

    Raises:
        OutputError: the file exists (without force), is a directory, a disk or an input, or
            cannot be written.
    """
    if is_stdout(path):
        return
    try:
        target = _target(path)
        is_folder, exists = target.is_dir(), target.exists()
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, a loop of links
        cause = error.strerror if isinstance(error, OSError) else str(error)
        raise OutputError(f"cannot write {path}", cause=cause) from None
    if is_folder:
        raise OutputError(f"{path} is a directory", hint="name a file for the output")
    for source in inputs:
        if _same_file(source, target):
            raise OutputError(
                f"{path} is an input of this command",
                cause="it would be replaced by what is made of it"
                if str(source) == str(path)
                else f"it is the same file as {source}",
                hint="choose another output",
            )
    if exists and is_stream(target):
        _check_stream(path, target)
        return
    if exists and not force:
        raise OutputError(
            f"{path} exists", hint="choose another output, or replace it with --force"
        )
    folder = target.parent
    if not folder.is_dir():
        raise OutputError(f"there is no directory {folder}", hint=f"mkdir -p {folder}")
    if not os.access(folder, os.W_OK):
        raise OutputError(
            f"cannot write to {folder}",
            cause="the directory is not writable for this user",
            hint="choose another place for the output",
        )


@contextmanager
def written_whole(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a temporary path; flush it and rename it into place on success.

    Whatever fails, the temporary file is gone and an older file at ``path`` is untouched. A
    stream gets the bytes once all are there.

    Raises:
        OutputError: as check_writable; or the write itself failed (disk full, quota).
        BrokenPipeError: the reader of standard output or a pipe has gone.
    """
    check_writable(path, force=force)
    stream = is_stream(path)
    target = path if stream else _target(path)
    folder = Path(tempfile.gettempdir()) if stream else target.parent
    # A name near the limit of the file system leaves no room for more.
    temporary = folder / f".{target.name[:80]}.{os.urandom(4).hex()}.tmp"
    try:
        yield temporary
        if stream:
            _pour(temporary, path)
            return
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        temporary.replace(target)
        _sync_directory(folder)
    except BrokenPipeError:
        raise
    except OSError as error:
        hint = "free some space or choose another output; nothing was overwritten"
        raise OutputError(
            f"cannot write {'standard output' if is_stdout(path) else path}",
            cause=error.strerror or str(error),
            hint=None if stream and error.errno != errno.ENOSPC else hint,
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def read_twice(path: Path) -> Iterator[Path]:
    """A regular file with what ``path`` holds: itself, or a copy of standard input or a pipe."""
    if path != STDIN and not is_stream(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="beam-input-") as folder:
        copy = Path(folder) / "standard-input"
        with copy.open("wb") as file:
            if path == STDIN:
                shutil.copyfileobj(sys.stdin.buffer, file)
            else:
                with path.open("rb") as source:
                    shutil.copyfileobj(source, file)
        yield copy


def _target(path: Path) -> Path:
    """The file that a symbolic link stands for."""
    return path.resolve() if path.is_symlink() else path


def _same_file(source: Path, target: Path) -> bool:
    try:
        if is_stream(source):
            return False
        return source.resolve() == target.resolve() or source.samefile(target)
    except (OSError, RuntimeError):
        return False


def _check_stream(path: Path, target: Path) -> None:
    if stat.S_ISBLK(target.stat().st_mode):
        raise OutputError(f"{path} is a disk, not a file", hint="choose another output")
    if not os.access(target, os.W_OK):
        raise OutputError(f"cannot write to {path}", cause="no permission for this user")


def _pour(temporary: Path, path: Path) -> None:
    with temporary.open("rb") as source:
        if not is_stdout(path):
            with path.open("wb") as file:
                shutil.copyfileobj(source, file)
            return
        out = sys.stdout.buffer
        if sys.stdout.isatty() and source.peek(4).startswith(b"PAR1"):
            raise OutputError(
                "a terminal cannot show a Parquet file", hint="send it on: ... -o - > FILE"
            )
        sys.stdout.flush()
        shutil.copyfileobj(source, out)
        out.flush()


def _sync_directory(folder: Path) -> None:
    # Without this the rename itself may be lost with the power.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
