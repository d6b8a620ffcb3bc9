"""Which clock was asked for, and which one the GPUs run at meanwhile.

ask            confirm
 |................|
 before, known    asked, known
   in between: one or the other
"""

import math


class ClockState:
    """Bookkeeping of wishes and their confirmation.

    Args:
        top_mhz: the clock of released GPUs.

    Attributes:
        asked_mhz: asked for last.
        since_ms: when.
        previous_mhz: what the GPUs ran at before; None once ``asked_mhz`` is confirmed.
        settled_ms: since when the clock has been known; infinite while it is not.
        before_mhz: the clock before the last change, confirmed or not.
    """

    def __init__(self, top_mhz: int) -> None:
        self.top_mhz = top_mhz
        self.asked_mhz = top_mhz
        self.since_ms = -math.inf
        self.previous_mhz: int | None = None
        self.settled_ms = -math.inf
        self.before_mhz = top_mhz
        self._before_settled_ms = math.inf

    @property
    def running_mhz(self) -> int:
        """What the GPUs run at now, as far as is known."""
        return self.asked_mhz if self.previous_mhz is None else self.previous_mhz

    def share_before(self, from_ms: float, to_ms: float) -> tuple[float, float] | None:
        """The share of a time, not empty, that GPUs ran at ``before_mhz`` and not ``asked_mhz``.

        Returns:
            (at least, at most), as nobody saw the change itself, only what was before and after
            it; None where it reaches back to what was before that.
        """
        if from_ms >= self.settled_ms:
            return 0.0, 0.0
        if from_ms < self._before_settled_ms:
            return None
        whole_ms = to_ms - from_ms
        least_ms = max(0.0, min(to_ms, self.since_ms) - from_ms)
        return least_ms / whole_ms, (min(to_ms, self.settled_ms) - from_ms) / whole_ms

    def ask(self, clock_mhz: int, now_ms: float) -> bool:
        """Note a wish; False where it is no change."""
        if clock_mhz == self.asked_mhz:
            return False
        self.previous_mhz = self.before_mhz = self.running_mhz
        self.asked_mhz = clock_mhz
        self.since_ms = now_ms
        self._before_settled_ms = self.settled_ms
        self.settled_ms = math.inf
        return True

    def confirm(self, clock_mhz: int | None, now_ms: float) -> None:
        """The GPUs read back at a clock (None: released). An overtaken wish changes nothing."""
        if (self.top_mhz if clock_mhz is None else clock_mhz) == self.asked_mhz:
            self.previous_mhz = None
            self.settled_ms = min(self.settled_ms, now_ms)

    def refuse(self, now_ms: float) -> None:
        """A wish failed, and the GPUs were released."""
        self.asked_mhz = self.top_mhz
        self.previous_mhz = None
        self._before_settled_ms = math.inf
        self.settled_ms = now_ms
