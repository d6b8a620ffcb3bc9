"""A time axis that stands still until a test moves it."""


class FakeClock:
    """Milliseconds for ``Controller(now_ms=...)``.

    Args:
        now_ms: where it begins.

    Attributes:
        now_ms: the time now; set it to any value, also backwards.
    """

    def __init__(self, now_ms: float = 0.0) -> None:
        self.now_ms = now_ms

    def __call__(self) -> float:
        """The time now."""
        return self.now_ms

    def advance(self, ms: float) -> float:
        """Let time pass; the time then."""
        self.now_ms += ms
        return self.now_ms
