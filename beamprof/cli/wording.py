"""What the option parser says of a wrong value, said as the rest of BEAM does.

typer checks values with a validator whose words are for programmers ("Input should be greater
than or equal to 0"). Here they name the flag, what was expected and what was found.
"""

import re
from collections.abc import Sequence

_VALUE = re.compile(r"Invalid value for (?P<name>.+?): (?P<words>.*)", re.DOTALL)
_WORDS = (
    (r"Input should be greater than or equal to (\S+?)\.?$", r"expected \1 or more"),
    (r"Input should be less than or equal to (\S+?)\.?$", r"expected \1 or less"),
    (r"Input should be greater than (\S+?)\.?$", r"expected more than \1"),
    (r"Input should be less than (\S+?)\.?$", r"expected less than \1"),
    (r"Input should be a valid integer.*", "expected a whole number"),
    (r"Input should be a valid number.*", "expected a number"),
    (r"Input should be a finite number.*", "expected a finite number"),
    (r"(?:Value error, )?'.*' is not one of (.*?)\.?$", r"expected one of \1"),
    (r"Input should be (.*)", r"expected \1"),
)


def in_our_words(message: str, words: Sequence[str]) -> str:
    """The message for people.

    Args:
        message: the parser's.
        words: the command line, for the value that was found.
    """
    match = _VALUE.fullmatch(message)
    if match is None:
        return message
    name, said = match["name"].replace("'", ""), match["words"].strip()
    for pattern, ours in _WORDS:
        changed, count = re.subn(pattern, ours, said, count=1, flags=re.DOTALL)
        if count:
            found = _found(name, words)
            return f"{name}: {changed}" + (f", found {found!r}" if found is not None else "")
    return f"{name}: {said.removeprefix('Value error, ')}"


def _found(name: str, words: Sequence[str]) -> str | None:
    """The value that stands after any spelling of a flag (``--a / -b``)."""
    for flag in name.split(" / "):
        for place, word in enumerate(words):
            if word == flag and place + 1 < len(words):
                return words[place + 1]
            if word.startswith(f"{flag}="):
                return word.partition("=")[2]
    return None
