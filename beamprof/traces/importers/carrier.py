"""From what a user names to a plain file: standard input is kept, packed files are unpacked.

Recognised by their first bytes, never by their name: gzip, bzip2, xz and zstd.
"""

import bz2
import gzip
import lzma
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import IO, Any

from beamprof.errors import ImportFormatError
from beamprof.files import STDIN, is_stream
from beamprof.traces.importers.import_command import FROM_STDIN
from beamprof.traces.importers.sheet import Sheet
from beamprof.traces.importers.sheet_kinds import open_sheet
from beamprof.traces.importers.tidy_text import tidied

# A file that unpacks into more is refused before it fills the disk.
_MOST_BYTES = 16 << 30
# A client's part of a ServeGen pool.
POOL_FILE = re.compile(r"chunk-\d+-(trace|dataset)\.(csv|json)")
_MOST_NAMED = 4


def _open_zstd(path: Path, mode: str) -> Any:
    del mode
    import pyarrow as pa

    return pa.input_stream(str(path), compression="zstd")


_PACKED: tuple[tuple[bytes, Callable[[Path, str], Any]], ...] = (
    (b"\x1f\x8b", gzip.open),
    (b"BZh", bz2.open),
    (b"\xfd7zXZ\x00", lzma.open),
    (b"\x28\xb5\x2f\xfd", _open_zstd),
)


@contextmanager
def opened_sheet(path: Path) -> Iterator[tuple[Sheet, Path]]:
    """The sheet in the file at ``path`` (``-``: standard input), and the file as it came.

    Raises:
        ImportFormatError: missing, unreadable, a directory, damaged, or no known carrier.
    """
    with tempfile.TemporaryDirectory(prefix="beam-trace-") as folder:
        shown = FROM_STDIN if path == STDIN else path
        came = _kept(path, Path(folder))
        plain = tidied(_unpacked(came, shown, Path(folder)), shown, Path(folder))
        yield open_sheet(plain, shown), came


def _kept(path: Path, folder: Path) -> Path:
    """A file that can be read more than once: what comes down a pipe is kept."""
    if path != STDIN and not is_stream(path):
        return path
    kept = folder / "kept"
    with kept.open("wb") as file:
        if path == STDIN:
            _copy(sys.stdin.buffer, file, path)
        else:
            with path.open("rb") as source:
                _copy(source, file, path)
    return kept


def _inside(folder: Path) -> str:
    """What to do with a folder: a pool is drawn from, another one holds files to be named."""
    try:
        files = sorted(file.name for file in folder.iterdir() if file.is_file())
    except OSError:
        files = []
    if any(POOL_FILE.fullmatch(name) for name in files):
        return f"draw from a ServeGen pool with: beam trace generate servegen {quote(str(folder))}"
    found = f": {', '.join(files[:_MOST_NAMED])}{', ...' * (len(files) > _MOST_NAMED)}"
    return "name a file in it" + (found if files else "; it holds none")


def _unpacked(came: Path, path: Path, folder: Path) -> Path:
    try:
        with came.open("rb") as file:
            first = file.read(8)
    except FileNotFoundError:
        raise ImportFormatError(f"there is no file {path}", hint="check the path") from None
    except IsADirectoryError:
        raise ImportFormatError(f"{path} is a directory", hint=_inside(path)) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in its name
        cause = error.strerror if isinstance(error, OSError) else str(error)
        raise ImportFormatError(f"cannot read {path}", cause=cause) from None
    opener = next((opener for magic, opener in _PACKED if first.startswith(magic)), None)
    if opener is None:
        return came
    plain = folder / "unpacked"
    try:
        with opener(came, "rb") as packed, plain.open("wb") as file:
            _copy(packed, file, path)
    except (OSError, EOFError, lzma.LZMAError, zlib.error, ValueError) as error:
        raise ImportFormatError(
            f"{path} cannot be unpacked", cause=str(error) or "the file ends too early",
            hint="download the file again, or unpack it by hand",
        ) from None  # fmt: skip
    return plain


def _copy(source: Any, target: IO[bytes], path: Path) -> None:
    room = min(_MOST_BYTES, shutil.disk_usage(tempfile.gettempdir()).free // 2)
    written = 0
    while block := source.read(1 << 20):
        written += len(block)
        if written > room:
            raise ImportFormatError(
                f"{path} unpacks into more than {room / 1e9:.0f} GB",
                cause=f"that is what may be used of {tempfile.gettempdir()}",
                hint="unpack it by hand, or set TMPDIR to a larger disk",
            )
        target.write(block)
