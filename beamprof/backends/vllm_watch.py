"""What vLLM schedules and how long it takes, seen from outside its scheduler.

                schedule()          update_from_output()
                     | issued             | done
      gap            |        pass        |       gap
    -----------------+====================+-----------------+=====

Both calls are vLLM's own, seen from outside: with steps in flight (async scheduling) a pass
counts from when the one before it was done, and the gap between them is 0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from beam_runtime.types import StepShape


@dataclass(slots=True)
class Step:
    """One step that was scheduled.

    Attributes:
        output: vLLM's SchedulerOutput, by identity.
        shape: what was in it.
        issued_s, done_s: by the watch's clock; None while it is in flight.
        pass_ms: what it took; gap_ms: host time before it, None where it cannot be told.
    """

    output: Any
    shape: StepShape
    issued_s: float
    done_s: float | None = None
    pass_ms: float = 0.0
    gap_ms: float | None = None


class StepWatch:
    """Sees every step of one scheduler: what was in it, when it went and came back."""

    def __init__(self, scheduler: Any, now_s: Callable[[], float]) -> None:
        self.steps: list[Step] = []
        self._scheduler = scheduler
        self._now_s = now_s
        self._done_s = now_s()
        self._schedule, self._update = scheduler.schedule, scheduler.update_from_output
        scheduler.schedule, scheduler.update_from_output = self._scheduled, self._updated

    def _scheduled(self, *args: Any, **kwargs: Any) -> Any:
        output = self._schedule(*args, **kwargs)
        issued_s = self._now_s()
        if output.num_scheduled_tokens:
            self.steps.append(Step(output, self._shape(output.num_scheduled_tokens), issued_s))
        return output

    def _updated(self, output: Any, *args: Any, **kwargs: Any) -> Any:
        done_s = self._now_s()
        for step in self.steps:
            if step.output is output:
                step.done_s = done_s
                step.pass_ms = (done_s - max(step.issued_s, self._done_s)) * 1e3
                step.gap_ms = max(0.0, step.issued_s - self._done_s) * 1e3
                self._done_s = done_s
        return self._update(output, *args, **kwargs)

    def _shape(self, scheduled: dict[str, int]) -> StepShape:
        chunk = chunk_context = decodes = context = 0
        for name, tokens in scheduled.items():
            request = self._scheduler.requests[name]
            before = request.num_computed_tokens - tokens
            if before >= request.num_prompt_tokens:
                decodes, context = decodes + 1, context + before
            else:
                chunk, chunk_context = chunk + tokens, chunk_context + before
        return StepShape(chunk, chunk_context, decodes, context)
