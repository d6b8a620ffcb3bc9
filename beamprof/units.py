"""Values with units, as people type them on the command line and in TOML.

    duration     1s  200ms  10m  1.5h
    power        65W  0.3kW
    clocks       510,810,1410   510:1410:120   510:1410:x2   1410   all   current

A number whose unit is in doubt is refused with its readings; it is never guessed. What this
module does not know: which clocks a device has (see beamprof.profiler.plan).
"""

import math
import re
from dataclasses import dataclass
from enum import StrEnum

from beam_runtime.printable import in_ms
from beamprof.errors import SweepError

_SECONDS: dict[str, float] = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_WATTS: dict[str, float] = {"mW": 1e-3, "W": 1.0, "kW": 1e3}
_MEGAHERTZ: dict[str, float] = {"MHz": 1.0, "GHz": 1e3}
_NUMBER = re.compile(
    r"\s*((?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*)\s*\Z"
)
# SM clocks of every GPU of the last ten years lie inside; a bare number outside is in another unit.
_CLOCK_MHZ = (100.0, 5000.0)
_MOST_VALUES = 1000
# Longer or stronger than anything that is measured or promised here: a slip of the finger.
_MOST = 1e9
# (below, of one unit, its name), ascending
_DURATIONS = (
    (0.9995, 1e-3, "ms"), (90.0, 1.0, "s"), (5400.0, 60.0, "min"), (172_800.0, 3600.0, "h"),
)  # fmt: skip
_ENERGIES = (
    (0.9995, 1e-3, "mJ"), (999.5, 1.0, "J"), (36e3, 1e3, "kJ"), (3.5982e6, 3.6e3, "Wh"),
    (3.5982e9, 3.6e6, "kWh"),
)  # fmt: skip


class ClockMode(StrEnum):
    """Clocks that are named rather than listed."""

    AUTO = "auto"
    ALL = "all"
    CURRENT = "current"


@dataclass(frozen=True, slots=True)
class Clocks:
    """Which clocks to measure: a mode, or the list ``mhz`` (ascending, without repeats)."""

    mode: ClockMode | None = None
    mhz: tuple[int, ...] = ()

    def __str__(self) -> str:
        return str(self.mode) if self.mode else ",".join(str(clock) for clock in self.mhz)


def parse_duration_s(text: object, name: str) -> float:
    """Seconds from ``1s``, ``200ms``, ``10m`` or ``1.5h``.

    Args:
        text: what was typed; a bare number is refused with both readings.
        name: the flag or key, for the message.

    Raises:
        SweepError: no number, no unit, another unit, or not above zero.
    """
    return _quantity(text, name, _SECONDS, ("s", "ms"), "a duration such as 1s, 200ms or 10m")


def parse_power_w(text: object, name: str) -> float:
    """Watts from ``65W`` or ``0.3kW``. Raises SweepError as parse_duration_s does."""
    return _quantity(text, name, _WATTS, ("W", "mW"), "a power such as 65W")


def parse_clocks(text: object, name: str) -> Clocks:
    """Clocks from a list, a range ``lo:hi:step``, a geometric range ``lo:hi:x2``, or a mode.

    A range holds its upper end also where the step would jump over it: the highest clock is
    the one that latency is promised at.

    Raises:
        SweepError: not such a thing, or a number that is no clock in MHz.
    """
    if isinstance(text, list):
        text = ",".join(str(item) for item in text)
    if isinstance(text, int | float) and not isinstance(text, bool):
        text = str(text)
    expected = "clocks such as 510,810,1410 or 510:1410:120 (MHz), or auto, all, current"
    if not isinstance(text, str) or not text.strip():
        raise SweepError(f"{name}: expected {expected}, found {text!r}")
    text = text.strip()
    if text in tuple(ClockMode):
        return Clocks(mode=ClockMode(text))
    if ":" in text:
        return Clocks(mhz=_range(text, name, expected))
    return Clocks(mhz=tuple(sorted({_clock_mhz(part, name, expected) for part in text.split(",")})))


def format_duration(seconds: float) -> str:
    """A duration for people: 850 ms, 12.3 s, 14.2 min, 51 min, 1.5 h, 3 days."""
    for below, scale, unit in _DURATIONS:
        if seconds < below:
            return f"{_three_digits(seconds / scale)} {unit}"
    return f"{seconds / 86_400:,.0f} days"


def format_ms(ms: float) -> str:
    """A latency for people: 0.4 ms, 850 ms, 1,700 ms, then 11.1 s."""
    if abs(ms) < 999.5:
        return in_ms(ms)
    return f"{ms:,.0f} ms" if abs(ms) < 9999.5 else format_duration(ms / 1e3)


def format_energy(joules: float, beside_j: float | None = None) -> str:
    """An energy for people: 850 mJ, 66.1 J, 14 kJ, then 12 Wh, 1.2 kWh.

    Joules belong to steps, watt-hours to traces; 36 kJ are 10 Wh. What stands beside others, in a
    column or a sentence, has one unit with them: ``beside_j`` is the largest of them.
    """
    measure_j = abs(joules if beside_j is None else beside_j)
    for below, scale, unit in _ENERGIES:
        if 0 < measure_j < below or (measure_j == 0 and unit == "J"):
            return f"{_three_digits(joules / scale)} {unit}"
    return f"{joules / 3.6e9:,.3g} MWh"


def _three_digits(value: float) -> str:
    if value and abs(value) < 1:
        return f"{value:.3g}"
    digits = 0 if abs(value) >= 99.95 else 1
    text = f"{value:,.{digits}f}"
    return text.removesuffix(".0")


def _quantity(
    text: object, name: str, units: dict[str, float], readings: tuple[str, str], expected: str
) -> float:
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        raise SweepError(f"{name}: expected {expected}, found {text!r}")
    match = _NUMBER.match(str(text))
    if match is None:
        raise SweepError(f"{name}: expected {expected}, found {text!r}")
    number, unit = match.groups()
    if not unit:
        first, second = (f"{number} {reading}" for reading in readings)
        raise SweepError(
            f"{name}: {number} has no unit: {first} or {second}?",
            hint=f"write {number}{readings[0]} or {number}{readings[1]}",
        )
    if unit not in units:
        raise SweepError(
            f"{name}: unknown unit {unit!r} in {text!r}",
            cause=f"units here are {', '.join(units)}",
            hint=f"expected {expected}",
        )
    value = float(number) * units[unit]
    if value <= 0:
        raise SweepError(f"{name} must be above zero, found {text!r}", hint=f"expected {expected}")
    if not math.isfinite(value) or value > _MOST:
        raise SweepError(
            f"{name}: {text!r} is more than anything here can be", hint=f"expected {expected}"
        )
    return value


def _clock_mhz(text: str, name: str, expected: str) -> int:
    match = _NUMBER.match(text)
    if match is None:
        raise SweepError(f"{name}: expected {expected}, found {text.strip()!r}")
    number, unit = float(match.group(1)), match.group(2)
    if unit and unit not in _MEGAHERTZ:
        raise SweepError(
            f"{name}: unknown unit {unit!r} in {text.strip()!r}",
            cause=f"units here are {', '.join(_MEGAHERTZ)}",
        )
    clock_mhz = number * _MEGAHERTZ.get(unit, 1.0)
    low, high = _CLOCK_MHZ
    if not low <= clock_mhz <= high:
        raise SweepError(
            f"{name}: {text.strip()} is no SM clock: {number:g} MHz, or {number:g} GHz?",
            cause=f"clocks are in MHz, between {low:g} and {high:g}",
            hint=f"write {number * 1e3:g}" if number < low else "write the clock in MHz",
        )
    if clock_mhz != round(clock_mhz):
        raise SweepError(f"{name}: clocks are whole MHz, found {text.strip()!r}")
    return round(clock_mhz)


def _range(text: str, name: str, expected: str) -> tuple[int, ...]:
    parts = text.split(":")
    if len(parts) != 3:
        raise SweepError(
            f"{name}: a range is lo:hi:step or lo:hi:x2, found {text!r}",
            hint="for example 510:1410:120",
        )
    low, high = (_clock_mhz(part, name, expected) for part in parts[:2])
    match = re.fullmatch(r"\s*(x?)([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*", parts[2])
    step = float(match.group(2)) if match else 0.0
    geometric = bool(match and match.group(1))
    if low > high or step <= (1.0 if geometric else 0.0):
        raise SweepError(
            f"{name}: nothing lies in the range {text!r}",
            hint="lo must not be above hi, and the step must lead upwards: 510:1410:120",
        )
    values: list[int] = []
    value = float(low)
    while value < high:
        values.append(round(value))
        if len(values) > _MOST_VALUES:
            raise SweepError(f"{name}: {text!r} means more than {_MOST_VALUES} clocks")
        value = value * step if geometric else value + step
    return tuple(sorted({*values, high}))
