"""Values of a decision log's records: what no controller writes is refused here, once for all."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Milliseconds of thirty thousand years: times, joules and counts of a controller are less.
_LARGEST = 1e15
_YEAR_9999_S = 253_370_764_800.0


def number(value: Any) -> float:
    """A finite number. Raises ValueError or TypeError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"a number is expected, found {value!r:.60}")
    if not -_LARGEST < value < _LARGEST:
        raise ValueError(f"{value!r:.60} is no number that a controller writes")
    return float(value)


def number_or_none(value: Any) -> float | None:
    """The same; null stays what it is."""
    return None if value is None else number(value)


def numbers(values: Iterable[Any]) -> Floats:
    """Finite numbers, NaN for null."""
    return np.array([math.nan if value is None else number(value) for value in values])


def numbers_by_name(values: Any) -> dict[str, float]:
    """An object of numbers."""
    return {name: number(value) for name, value in _named(values)}


def seconds(records: Iterable[Mapping[str, Any]], start_ms: float) -> Floats:
    """(R,) when each record was written, since the start: what an engine dates back is at 0."""
    return np.maximum([number(one["at_ms"]) - start_ms for one in records], 0.0) / 1e3


def promises(values: Iterable[Any]) -> Floats:
    """SLOs, NaN for null. Raises ValueError for a time that is none."""
    found = numbers(values)
    if np.any(found <= 0.0):
        raise ValueError("a promise is a time above 0")
    return found


def start_record(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """A run's first record, if it can be shown."""
    began_s = number_or_none(record.get("unix_s"))
    if began_s is not None and not 0.0 <= began_s < _YEAR_9999_S:
        raise ValueError(f"unix_s {began_s:g} is no date")
    for _ in _named(record.get("limits") or {}):
        pass
    return record


def _named(values: Any) -> Iterable[tuple[str, Any]]:
    if not isinstance(values, Mapping):
        raise TypeError(f"an object is expected, found {values!r:.60}")
    return values.items()
