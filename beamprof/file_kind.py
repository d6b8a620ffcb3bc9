"""What a file that is not the expected one looks like, for a message that helps."""

import stat
from pathlib import Path

_PACKERS = (
    (b"\x1f\x8b", "a gzip file"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ", "an xz file"),
    (b"\x28\xb5\x2f\xfd", "a zstd file"),
    (b"PK\x03\x04", "a zip file"),
)
PACKED = tuple(words for _, words in _PACKERS)
_MAGICS = (
    (b"PAR1", "a Parquet file"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"%PDF", "a PDF"),
    *_PACKERS,
    (b"ARROW1", "an Arrow file"),
    (b"SQLite format 3", "a database"),
    (b"\x7fELF", "a program"),
)


def kind_of(path: Path) -> str:
    """``empty``, ``a directory``, ``a Parquet file``, ``JSON``, ``text`` ...; "" if there is none.

    Only the first bytes are looked at.
    """
    try:
        if stat.S_ISDIR(path.stat().st_mode):
            return "a directory"
        with path.open("rb") as file:
            head = file.read(512)
    except (OSError, ValueError):
        return ""
    known = (words for magic, words in _MAGICS if head.startswith(magic))
    return next(known, _kind_of_text(head)) if head else "empty"


def _kind_of_text(head: bytes) -> str:
    try:
        text = head.decode("utf-8", "ignore" if len(head) == 512 else "strict").lstrip(
            "\ufeff \r\n\t"
        )
    except UnicodeDecodeError:
        return "some binary file"
    if "\0" in text:
        return "some binary file"
    if text.startswith(("{", "[")):
        return "JSON"
    first = text.partition("\n")[0]
    return "CSV" if first.count(",") + first.count("\t") >= 2 else "text"
