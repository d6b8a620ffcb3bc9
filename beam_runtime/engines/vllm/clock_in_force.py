"""The clock that steps are planned with while another one comes into force.

NVML takes some milliseconds to change a clock. Steps planned with a higher clock that is not there
yet make decodes late; so a clock that was raised counts when it is in force, and one that was
lowered at once.
"""

from dataclasses import replace

from beam_runtime.types import Knobs


class ClockInForce:
    """Follows one engine's knobs.

    Args:
        delay_ms: from asking for a clock to running at it.
    """

    def __init__(self, delay_ms: float) -> None:
        self._delay_ms = delay_ms
        self._ordered: Knobs | None = None
        self._planned: Knobs | None = None
        self._risen_ms = float("-inf")

    def knobs(self, ordered: Knobs, now_ms: float) -> Knobs:
        """What to plan by; the same object as long as it is the same."""
        before, planned = self._ordered, self._planned
        if before is None or planned is None:
            self._ordered = self._planned = ordered
            return ordered
        if ordered is not before:
            self._ordered = ordered
            if before.clock_mhz != ordered.clock_mhz:
                rises = planned.clock_mhz < ordered.clock_mhz
                self._risen_ms = now_ms + self._delay_ms if rises else float("-inf")
            planned = replace(ordered, clock_mhz=planned.clock_mhz)
        self._planned = planned if now_ms < self._risen_ms else ordered
        return self._planned
