"""Text from elsewhere (files, daemons, commands) and times, fit for a terminal and for a log."""

import re

# What moves a cursor, changes colours or the order of letters, and what no terminal can show.
_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """The text with such characters spelt out; lines and tabs stay."""
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text: str, most: int = 500) -> str:
    """The same on one line, and not all of it where it is long."""
    return " ".join(printable(text[: 4 * most]).split())[:most]


def in_ms(ms: float) -> str:
    """A time in words: whole milliseconds, two digits where there are fewer than ten of them."""
    return f"{ms + 0.0:.0f} ms" if abs(ms) >= 9.5 else f"{ms + 0.0:.2g} ms"
