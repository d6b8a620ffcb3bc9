"""Fields of a config.json, read with their types checked: whatever is wrong is named.

A config comes from anybody: a number may be a string, a list a number, an integer have 400
digits. No value leaves here that was not looked at.
"""

from collections.abc import Mapping
from typing import Any

from beamprof.errors import ModelShapeError

# No model comes near; larger ones are mistakes or attacks.
LARGEST_SIZE = 10**9
LARGEST_COUNT = 10**4  # of layers, heads, experts: things that are listed one by one


class Fields:
    """One JSON object of a config; ``where`` names the file (and the object inside it)."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.values.get(name) is not None

    def size(self, *names: str, default: int | None = None, most: int = LARGEST_SIZE) -> int:
        """A positive integer up to ``most``, under the first of several names that is there."""
        name = self._found(names)
        value = self.values.get(name)
        if value is None:
            if default is None:
                raise ModelShapeError(
                    f"{self.where} lacks the field {names[0]!r}",
                    hint="download the model's config.json again",
                )
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.wrong(name, "a positive integer")
        if value > most:
            raise self.wrong(name, f"{most} at most")
        return value

    def several(self, *names: str, default: int | None = None) -> int:
        """A positive integer of things that are listed one by one."""
        return self.size(*names, default=default, most=LARGEST_COUNT)

    def count(self, *names: str, default: int = 0) -> int:
        """An integer, 0 or more."""
        name = self._found(names)
        value = self.values.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST_SIZE:
            raise self.wrong(name, "an integer, 0 or more")
        return value

    def number(self, *names: str, default: float) -> float:
        """A positive number that is finite."""
        name = self._found(names)
        value = self.values.get(name)
        if value is None:
            return default
        ok = isinstance(value, int | float) and not isinstance(value, bool)
        if not ok or not 0 < value <= 1e15:
            raise self.wrong(name, "a positive number")
        return float(value)

    def flag(self, name: str, *, default: bool = False) -> bool:
        """True or false."""
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def text(self, name: str, default: str = "") -> str:
        """A string."""
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.wrong(name, "a string")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings; empty where there is none."""
        value = self.values.get(name)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise self.wrong(name, "a list of strings")
        return tuple(value)

    def sizes(self, name: str) -> tuple[int, ...]:
        """A list of integers, 0 or more; empty where there is none."""
        value = self.values.get(name)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(
            isinstance(entry, int) and not isinstance(entry, bool) and 0 <= entry <= LARGEST_SIZE
            for entry in value
        ):
            raise self.wrong(name, "a list of integers")
        return tuple(value)

    def level(self, *names: str) -> "Fields":
        """The same, with lists of one entry per layer that are all equal as that one entry.

        Raises:
            ModelShapeError: entries that differ from layer to layer.
        """
        levelled = {}
        for name in names:
            value = self.values.get(name)
            if isinstance(value, list) and value:
                if any(entry != value[0] for entry in value):
                    raise ModelShapeError(
                        f"{self.where}: {name} differs from layer to layer, which is not priced"
                    )
                levelled[name] = value[0]
        return Fields({**self.values, **levelled}, self.where)

    def inners(self, name: str) -> tuple["Fields", ...]:
        """A list of objects; empty where there is none."""
        value = self.values.get(name)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            raise self.wrong(name, "a list of objects")
        return tuple(Fields(one, f"{self.where}, {name}[{i}]") for i, one in enumerate(value))

    def inner(self, name: str) -> "Fields | None":
        """An object inside this one."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return Fields(value, f"{self.where}, {name}")

    def wrong(self, name: str, expected: str) -> ModelShapeError:
        """The error about a field of this object."""
        value = self.values.get(name)
        # A number of 5,000 digits cannot even be written (sys.set_int_max_str_digits).
        bits = value.bit_length() if isinstance(value, int) else 0
        found = f"a number of {bits} bits" if bits > 200 else repr(value)
        if len(found) > 60:
            found = f"{found[:57]}..."
        return ModelShapeError(f"{self.where}: {name} must be {expected}, found {found}")

    def _found(self, names: tuple[str, ...]) -> str:
        return next((name for name in names if self.has(name)), names[0])
