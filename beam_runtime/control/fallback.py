"""When to stop steering, and when to try again.

    steering ──fault──> fallen back ──pause over, cause gone──> steering
                             └── too many times ──> off, until asked

Fallen back means: clocks released, the engine has its own settings, everything goes on being
counted. Pauses double; a long good run forgives them. What comes from the load or the engine
(nothing the table covers, a stall) is waited out and held against nobody.
"""

from dataclasses import dataclass
from enum import StrEnum


class Fault(StrEnum):
    """Why BEAM stops steering."""

    TABLE = "no usable table"
    COVERAGE = "the table does not cover this load"
    CLOCK = "clocks do not follow"
    SEARCH = "the search fails"
    ENGINE = "the engine refuses orders"
    LATE = "decisions come too late"
    MODEL = "steps are too far from the table"
    STALL = "the engine makes no steps"
    PASSED_OVER = "a prompt was passed over"
    PROMISE = "no setting keeps the promise"


# Nobody's failure: over when the load, the engine or the promise changes.
_OUTSIDE = (Fault.COVERAGE, Fault.STALL, Fault.PROMISE)
# Without these BEAM cannot do anything at all.
_FINAL = (Fault.TABLE,)


@dataclass(frozen=True, slots=True)
class FallbackRules:
    """How patient to be.

    Attributes:
        tolerated: failures of one kind in a row that are borne before falling back.
        pause_ms: the first pause; each further one is twice as long.
        failures: falls after which it stays off until asked.
        forgiven_ms: a run this long without a fault clears the record.
    """

    tolerated: int = 3
    pause_ms: float = 10_000.0
    failures: int = 3
    forgiven_ms: float = 600_000.0


class Fallback:
    """Decides whether to steer. Pure bookkeeping: it releases and applies nothing itself."""

    def __init__(self, rules: FallbackRules | None = None) -> None:
        self._rules = rules or FallbackRules()
        self._in_a_row: dict[Fault, int] = {}
        self._last_fault_ms = float("-inf")
        self._until_ms = float("-inf")
        self._standing: dict[Fault, str] = {}
        self.falls = 0
        self.fault: Fault | None = None
        self.detail = ""
        self.off = False

    @property
    def steering(self) -> bool:
        """Whether BEAM steers."""
        return self.fault is None

    @property
    def reason(self) -> str:
        """Why it does not, in words; empty while it does."""
        if self.fault is None:
            return ""
        asked = " (off until asked)" if self.off and self.fault not in _FINAL else ""
        detail = f": {self.detail}" if self.detail else ""
        return f"{self.fault}{asked}{detail}"

    def failed(self, fault: Fault, detail: str, now_ms: float) -> bool:
        """Count a failure; True when this one makes BEAM fall back."""
        self._last_fault_ms = now_ms
        self._in_a_row[fault] = self._in_a_row.get(fault, 0) + 1
        if not self.steering or self._in_a_row[fault] < self._rules.tolerated:
            return False
        self._fall(fault, detail, now_ms)
        return True

    def once(self, fault: Fault, detail: str, now_ms: float) -> bool:
        """A failure that is borne no second time. True when it makes BEAM fall back."""
        self._last_fault_ms = now_ms
        if not self.steering:
            return False
        self._fall(fault, detail, now_ms)
        return True

    def succeeded(self, fault: Fault) -> None:
        """What could have failed did not: failures in a row start anew."""
        self._in_a_row.pop(fault, None)

    def condition(self, fault: Fault, detail: str, now_ms: float) -> bool:
        """Report how things stand: ``detail`` empty = well. True when this makes BEAM fall back.

        While it does not stand well, BEAM does not come back.
        """
        if not detail:
            self._standing.pop(fault, None)
            return False
        self._standing[fault] = detail
        self._last_fault_ms = now_ms
        if not self.steering:
            return False
        self._fall(fault, detail, now_ms)
        return True

    def try_again(self, now_ms: float) -> bool:
        """Whether to come back now; True once, at the moment of coming back."""
        if self.steering:
            if self.falls and now_ms - self._last_fault_ms > self._rules.forgiven_ms:
                self.falls = 0
            return False
        if self.off or self._standing or now_ms < self._until_ms:
            return False
        self._come_back()
        return True

    def resume(self) -> None:
        """Asked to: forget what was, and steer again as soon as nothing stands against it."""
        self.falls = 0
        self.off = False
        self._until_ms = float("-inf")
        if not self._standing:
            self._come_back()

    def _fall(self, fault: Fault, detail: str, now_ms: float) -> None:
        self.fault, self.detail = fault, detail
        if fault not in _OUTSIDE:
            self.falls += 1
        self._until_ms = now_ms + self._rules.pause_ms * 2 ** max(0, self.falls - 1)
        self.off = fault in _FINAL or self.falls >= self._rules.failures

    def _come_back(self) -> None:
        self.fault, self.detail = None, ""
        self._in_a_row.clear()
