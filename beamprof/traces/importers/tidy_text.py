"""A text file as readers of CSV and JSON want it: UTF-8, without blank lines around it.

Spreadsheets and PowerShell write UTF-16; many programs leave blank lines at the end, which a CSV
reader takes for rows. Blank lines within a CSV file stay: they may be rows, or in quotes.
"""

import re
import shutil
from pathlib import Path

from beamprof.errors import ImportFormatError

_BOMS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_EDGE_BYTES = 1 << 16
_BEFORE = re.compile(rb"(?:\xef\xbb\xbf)?(?:[ \t]*\r?\n)+")
_BEHIND = re.compile(rb"(?:\r?\n[ \t]*){2,}\Z|\r?\n[ \t]+\Z")


def tidied(file: Path, path: Path, folder: Path) -> Path:
    """The file itself, or a copy in ``folder`` in UTF-8 and without blank lines around its text.

    Args:
        file: unpacked.
        path: what the user calls it.
        folder: for the copy.

    Raises:
        ImportFormatError: UTF-16 that is none.
    """
    copy = folder / "tidied"
    try:
        with file.open("rb") as source:
            head = source.read(_EDGE_BYTES)
            encoding = _BOMS.get(head[:2])
            if encoding is not None:
                _transcoded(file, copy, encoding)
                return tidied(copy.rename(folder / "utf-8"), path, folder)
            size = file.stat().st_size
            source.seek(max(0, size - _EDGE_BYTES))
            tail = source.read()
    except UnicodeError as error:
        raise ImportFormatError(
            f"{path} begins as UTF-16 text and is none", cause=str(error),
            hint="save it as UTF-8",
        ) from None  # fmt: skip
    except OSError as error:
        raise ImportFormatError(f"cannot read {path}", cause=error.strerror) from None
    before, behind = _BEFORE.match(head), _BEHIND.search(tail)
    start = before.end() if before else 0
    end = size - len(tail) + behind.start() if behind else size
    if head.startswith(b"PAR1") or start >= end or (start, end) == (0, size):
        return file
    _copied(file, copy, start, end, b"\n" if behind else b"")
    return copy


def _transcoded(file: Path, copy: Path, encoding: str) -> None:
    with (
        file.open("r", encoding=encoding, newline="") as source,
        copy.open("w", encoding="utf-8", newline="") as target,
    ):
        shutil.copyfileobj(source, target)


def _copied(file: Path, copy: Path, start: int, end: int, behind: bytes) -> None:
    """The bytes from ``start`` to ``end``, and those behind."""
    with file.open("rb") as source, copy.open("wb") as target:
        source.seek(start)
        while block := source.read(min(1 << 20, end - source.tell())):
            target.write(block)
        target.write(behind)
