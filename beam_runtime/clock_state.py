"""Which clock was asked for, and which one the GPUs run at meanwhile."""


class ClockState:
    """Bookkeeping of wishes and their confirmation.

    Args:
        top_mhz: the clock of released GPUs.

    Attributes:
        asked_mhz: asked for last.
        since_ms: when.
        previous_mhz: what the GPUs ran at before; None once ``asked_mhz`` is confirmed.
        settled_ms: since when the clock has been known; infinite while it is not.
    """

    def __init__(self, top_mhz: int) -> None:
        self.top_mhz = top_mhz
        self.asked_mhz = top_mhz
        self.since_ms = float("-inf")
        self.previous_mhz: int | None = None
        self.settled_ms = float("-inf")

    @property
    def running_mhz(self) -> int:
        """What the GPUs run at now, as far as is known."""
        return self.asked_mhz if self.previous_mhz is None else self.previous_mhz

    def ask(self, clock_mhz: int, now_ms: float) -> bool:
        """Note a wish; False where it is no change."""
        if clock_mhz == self.asked_mhz:
            return False
        self.previous_mhz = self.running_mhz
        self.asked_mhz = clock_mhz
        self.since_ms = now_ms
        self.settled_ms = float("inf")
        return True

    def confirm(self, clock_mhz: int | None, now_ms: float) -> None:
        """The GPUs read back at a clock (None: released). An overtaken wish changes nothing."""
        if (self.top_mhz if clock_mhz is None else clock_mhz) == self.asked_mhz:
            self.previous_mhz = None
            self.settled_ms = now_ms

    def refuse(self, now_ms: float) -> None:
        """A wish failed, and the GPUs were released."""
        self.asked_mhz = self.top_mhz
        self.previous_mhz = None
        self.settled_ms = now_ms
