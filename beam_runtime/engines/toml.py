"""TOML as its specification has it: whole numbers have 64 bits.

Python's reader takes any, and a number of ten thousand digits can then not even be printed.
"""

import tomllib
from typing import Any

_LEAST, _MOST = -(1 << 63), (1 << 63) - 1


def loads(text: str) -> dict[str, Any]:
    """What a TOML text says.

    Raises:
        ValueError: it is no TOML, is nested without end, or holds a number of more than 64 bits.
    """
    try:
        found = tomllib.loads(text)
        _check(found, "")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return found


def _check(value: object, name: str) -> None:
    if isinstance(value, int) and not _LEAST <= value <= _MOST:
        raise ValueError(f"{name} is a whole number of more than 64 bits")
    if isinstance(value, dict):
        for key, one in value.items():
            _check(one, f"{name}.{key}" if name else key)
    if isinstance(value, list):
        for one in value:
            _check(one, name)
