"""What happens to files and messages: unexpected values, cuts, bytes that fell over."""

import math
import random
import re
import uuid
from typing import Any

# Numbers, quoted texts and words: what stands where a value or a name belongs.
_TOKEN = re.compile(rb'-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|"[^"\n]{0,80}"|[A-Za-z_][\w.]*')
_DEEP = 100_000
VALUES: tuple[bytes, ...] = (
    # Numbers of JSON, TOML, CSV and Prometheus, and of none of them.
    b"0", b"-0.0", b"-1", b"1", b"2", b"0.5", b"1e999", b"-1e999", b"NaN", b"nan", b"inf", b"-inf",
    b"Infinity", b"-Infinity", b"+Inf", b"1e308", b"1e-320", b"2147483648", b"9007199254740993",
    b"9223372036854775807", b"18446744073709551616", b"1" + b"0" * 30, b"1" + b"0" * 400,
    b"9" * 5000, b"0x" + b"f" * 20_000, b"--1", b"1e9999999", b"1_000",
    "\u00b2".encode(), "\u0661".encode(), b"1,5",
    b"true", b"false", b"null", b"None", b"[]", b"{}", b"[0]", b'{"a": 1}', b"{a = 1}", b"[[1]]",
    b"1979-05-27T07:32:00Z", b"0001-01-01", b"07:32:00", b"1790000000000000000",
    # Texts.
    b'""', b'" "', b'"x"', b"", b"x", b'"' + b"x" * 20_000 + b'"', b'"\\u0000"', b'"\\ud800"',
    b'"\\u001b[31m"', b"\x1b]0;x\x07", b"\x00", b"\xff\xfe", b"\xed\xa0\x80", "\u202e".encode(),
    b'"../../../../etc/passwd"', b'"/dev/null"', b'"nan"', b'"1e999"', b'"%s{}"', b"'", b'"', b"\\",
    # Nesting without an end.
    b"[" * _DEEP, b"[" * _DEEP + b"]" * _DEEP, b'{"a":' * _DEEP, b"{a=" * 1000,
    b"(" * 1000, b"[" * 200 + b"]" * 200,
)  # fmt: skip


def damaged(data: bytes, moments: random.Random) -> bytes:
    """One to three things happen to it."""
    for _ in range(moments.choice((1, 1, 1, 2, 3))):
        data = moments.choices(_WAYS, _OFTEN)[0](data, moments)
    return data


def _another_value(data: bytes, moments: random.Random) -> bytes:
    """A number, text or name is replaced, or taken away."""
    found = _tokens(data, moments)
    if not found:
        return _bytes(data, moments)
    begin, end = found
    return data[:begin] + moments.choice(VALUES) + data[end:]


def _moved(data: bytes, moments: random.Random) -> bytes:
    """What stands at one place stands at another, too."""
    one, other = _tokens(data, moments), _tokens(data, moments)
    if not one or not other:
        return data
    return data[: one[0]] + data[other[0] : other[1]] + data[one[1] :]


def _tokens(data: bytes, moments: random.Random) -> tuple[int, int] | None:
    """Where one of its tokens begins and ends."""
    begin = moments.randrange(len(data)) if data else 0
    found = _TOKEN.search(data, begin) or _TOKEN.search(data)
    return found.span() if found else None


def _lines(data: bytes, moments: random.Random) -> bytes:
    """A line goes, comes twice, changes places, or is cut."""
    lines = data.split(b"\n")
    at = moments.randrange(len(lines))
    match moments.randrange(4):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, lines[at])
        case 2:
            lines.insert(moments.randrange(len(lines)), lines.pop(at))
        case 3:
            lines[at] = lines[at][: moments.randrange(len(lines[at]) + 1)]
    return b"\n".join(lines)


def _bytes(data: bytes, moments: random.Random) -> bytes:
    """Bytes fall over, come between, or are gone."""
    at = moments.randrange(len(data) + 1)
    some = moments.randbytes(moments.choice((1, 1, 2, 8)))
    match moments.randrange(4):
        case 0:
            return data[:at] + some + data[at + len(some) :]
        case 1:
            return data[:at] + some + data[at:]
        case 2:
            return data[:at] + data[at + moments.randrange(1, 9) :]
    return data[:at]


_WAYS = (_another_value, _moved, _lines, _bytes)
_OFTEN = (6, 2, 1, 2)


class _Odd:
    """A value whose every use raises."""

    def __getattribute__(self, name: str) -> object:
        raise RuntimeError("odd")

    def __hash__(self) -> int:
        raise RuntimeError("odd")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("odd")

    def __iter__(self) -> Any:
        raise RuntimeError("odd")


ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 10**12, 10**400, -(10**30), 0.5, -0.0, math.inf, -math.inf,
    math.nan, 1e300, "", "x", "\ud800", "\x1b[31m", "x" * 100_000, b"\xff", [], {}, (), [[]],
    {"a": 1}, [None], ["r1", "r1"], [("r1", 5)], [("r1", -5)], [("r1",)], [1, 2], uuid.UUID(int=7),
    frozenset({1}), range(3), _Odd(), object(), int, 3 + 4j,
)  # fmt: skip
