"""What one stage took, from nothing but when steps were issued and when they came back.

A step goes through ``pp`` equal stages and waits at each for the step before. It is back at

    F = max over stages s of  base_s + (pp - s) t + (pp - 1 - s) hop

where base_s is when the step before left stage s (for s = 0 not before its own issue) and t
what it takes per stage. Every term grows with t, so t follows:

    t = min over stages s of  (F - base_s - (pp - 1 - s) hop) / (pp - s)

With t known, so is when this step left each stage, and the next one can be read. Exact for
equal stages; what noise in single stages makes of it evens out over the steps.

The base_s of the least term is where the step last waited for anybody: from there on it ran,
and that time is all that was measured.
"""

from collections import deque
from typing import NamedTuple


class StageTime(NamedTuple):
    """What a stage took, host gap included, and the time that it was read from.

    Attributes:
        stage_ms: per stage.
        since_ms: when the step last waited; it ran from then to its return.
    """

    stage_ms: float
    since_ms: float


class PipelineTimes:
    """Follows steps through the pipeline.

    Args:
        pp: stages.
        transfer_ms: sending a step's activations from one stage to the next.
    """

    def __init__(self, pp: int, transfer_ms: float = 0.0) -> None:
        self._pp = pp
        self._transfer_ms = transfer_ms
        self._issued: deque[tuple[float, float]] = deque()  # (when, expected stage time)
        self._free_ms = [float("-inf")] * pp  # when the last step that is back left each stage

    @property
    def in_flight(self) -> int:
        """Steps issued and not back."""
        return len(self._issued)

    def issue(self, at_ms: float, stage_ms: float) -> None:
        """A step enters; ``stage_ms`` is what each stage is expected to take."""
        self._issued.append((at_ms, stage_ms))

    def finish(self, at_ms: float) -> StageTime | None:
        """The oldest step is back: what a stage took; None where that cannot be told."""
        if not self._issued:
            return None
        issued_ms, _ = self._issued.popleft()
        if self._pp == 1:  # the same, written out
            since_ms = max(issued_ms, self._free_ms[0])
            self._free_ms = [max(at_ms, since_ms)]
            return StageTime(at_ms - since_ms, since_ms) if at_ms > since_ms else None
        stage_ms = since_ms = float("inf")
        left = self._pp
        for free_ms in self._free_ms:
            base_ms = free_ms
            if left == self._pp and issued_ms > free_ms:
                base_ms = issued_ms
            one_ms = (at_ms - base_ms - (left - 1) * self._transfer_ms) / left
            if one_ms < stage_ms:
                stage_ms, since_ms = one_ms, base_ms
            left -= 1
        if stage_ms <= 0.0:  # times that went backwards
            self._free_ms = [max(at_ms, free_ms) for free_ms in self._free_ms]
            return None
        self._free_ms = self._through(issued_ms, stage_ms, self._free_ms)
        return StageTime(stage_ms, since_ms)

    def lose(self) -> None:
        """The oldest step is back at a time that nobody told: when it was expected, perhaps."""
        if self._issued:
            self._free_ms = self._through(*self._issued.popleft(), self._free_ms)

    def finishes_ms(self) -> tuple[float, ...]:
        """When each step in flight is expected back, oldest first."""
        finishes = []
        free_ms = self._free_ms
        for at_ms, stage_ms in self._issued:
            free_ms = self._through(at_ms, stage_ms, free_ms)
            finishes.append(free_ms[-1])
        return tuple(finishes)

    def stage_free_ms(self) -> tuple[float, ...]:
        """For each stage, when it is done with all steps issued so far."""
        free_ms = self._free_ms
        for at_ms, stage_ms in self._issued:
            free_ms = self._through(at_ms, stage_ms, free_ms)
        return tuple(free_ms)

    def _through(self, ready_ms: float, stage_ms: float, free_ms: list[float]) -> list[float]:
        """When each stage is done with a step that was issued then."""
        ends = []
        for stage_free_ms in free_ms:
            end_ms = (ready_ms if ready_ms > stage_free_ms else stage_free_ms) + stage_ms
            ends.append(end_ms)
            ready_ms = end_ms + self._transfer_ms
        return ends
