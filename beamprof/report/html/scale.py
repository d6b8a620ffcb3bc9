"""From a value to a share of an axis, and the round values that are worth a label."""

import math
from dataclasses import dataclass
from typing import Protocol

# Multiples within a decade, and every how manieth decade; the densest first.
_FACTORS = (
    ((1, 1.5, 2, 3, 4, 5, 7), 1), ((1, 2, 3, 5), 1), ((1, 2, 5), 1), ((1, 3), 1),
    ((1,), 1), ((1,), 2), ((1,), 4),
)  # fmt: skip


class Scale(Protocol):
    """An axis: ``share`` is 0 at its low end and 1 at its high end, clamped."""

    def share(self, value: float) -> float:
        """Where ``value`` lies."""
        ...

    def ticks(self, most: int) -> tuple[float, ...]:
        """At most ``most`` round values inside."""
        ...


@dataclass(frozen=True, slots=True)
class Linear:
    """From ``low`` to ``high``; a single value lies at the low end."""

    low: float
    high: float

    def share(self, value: float) -> float:
        """Where ``value`` lies."""
        span = self.high - self.low
        return _clamped((value - self.low) / span) if span > 0 else 0.0

    def ticks(self, most: int) -> tuple[float, ...]:
        """Multiples of 1, 2 or 5 times a power of ten."""
        span = self.high - self.low
        if span <= 0:
            return (self.low,)
        power = 10.0 ** math.floor(math.log10(span / most))
        for factor in (1, 2, 5, 10, 20):
            step = factor * power
            first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
            if last - first + 1 <= most:
                break
        return tuple(round(n * step, 12) for n in range(first, last + 1))


@dataclass(frozen=True, slots=True)
class Log:
    """From ``low`` to ``high``, both above 0."""

    low: float
    high: float

    def share(self, value: float) -> float:
        """Where ``value`` lies; 0 and below at the low end."""
        if value <= self.low or self.high <= self.low:
            return 0.0
        return _clamped(math.log(value / self.low) / math.log(self.high / self.low))

    def ticks(self, most: int) -> tuple[float, ...]:
        """As many of the usual multiples of powers of ten as fit."""
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for factors, every in _FACTORS:
            found = tuple(
                round(factor * 10.0**decade, 12)
                for decade in decades
                for factor in factors
                if decade % every == 0
                and self.low * (1 - 1e-9) <= factor * 10.0**decade <= self.high * (1 + 1e-9)
            )
            if len(found) <= most:
                return found
        return ()


def _clamped(share: float) -> float:
    return min(1.0, max(0.0, share))
