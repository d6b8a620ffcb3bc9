"""TOML as its specification has it: whole numbers have 64 bits.

Python's reader takes any, and a number of ten thousand digits can then not even be printed.
"""

import tomllib
from pathlib import Path
from typing import Any

_MOST_BYTES = 1 << 20
_LEAST, _MOST = -(1 << 63), (1 << 63) - 1


def load(path: Path) -> dict[str, Any]:
    """What a TOML file says.

    Raises:
        OSError: it cannot be read.
        ValueError: as loads(), or it is no text, or larger than any settings are.
    """
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES} bytes")
    return loads(data.decode("utf-8"))


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
