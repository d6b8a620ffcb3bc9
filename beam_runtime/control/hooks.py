"""What an engine tells: hooks that note an event and return. They never raise and never wait.

Each makes one named tuple and appends it to a deque, and nothing else, for the engine's thread
pays for it. Nobody is woken: that would cost more than the rest of the hook.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from beam_runtime.control.events import (
    Abort,
    Arrival,
    Completion,
    Event,
    FirstToken,
    PassedOver,
    Preemption,
    StepFinished,
    StepIssued,
)
from beam_runtime.types import Slo

# A named tuple's own constructor is a function in Python: too slow for what every step calls.
_event = tuple.__new__


def _monotonic_ms() -> float:
    return time.monotonic() * 1e3


class Hooks:
    """The engine's side of a controller.

    Args:
        now_ms: the time axis; None = time.monotonic().
        append: takes an event.
    """

    def __init__(self, now_ms: Callable[[], float] | None, append: Callable[[Event], None]) -> None:
        self._now_ms = now_ms or _monotonic_ms
        self._append = append
        self._dropped = 0

    def arrival(
        self,
        request_id: str,
        prompt_tokens: int,
        *,
        slo: Slo | str | None = None,
        cached_tokens: int = 0,
        at_ms: float | None = None,
    ) -> None:
        """A request has come in.

        Args:
            request_id: the engine's name for it.
            prompt_tokens: of its prompt.
            slo: its own, or a class by name, or the default.
            cached_tokens: tokens of the prompt that a prefix cache holds.
            at_ms: when, where that was earlier than now.
        """
        self._append(
            Arrival(
                self._now_ms() if at_ms is None else at_ms,
                request_id,
                prompt_tokens,
                slo,
                cached_tokens,
            )
        )

    def first_token(self, request_id: str, *, at_ms: float | None = None) -> None:
        """A request has its first token."""
        self._append(FirstToken(self._now_ms() if at_ms is None else at_ms, request_id))

    def completion(
        self,
        request_id: str,
        *,
        at_ms: float | None = None,
        told: Mapping[str, Any] | None = None,
    ) -> None:
        """A request has its last token.

        Args:
            request_id: which.
            at_ms: when, where that was earlier than now.
            told: fields of its record in the decision log; none is written without.
        """
        self._append(Completion(self._now_ms() if at_ms is None else at_ms, request_id, told))

    def abort(self, request_id: str, *, at_ms: float | None = None) -> None:
        """A request is gone before its time."""
        self._append(Abort(self._now_ms() if at_ms is None else at_ms, request_id))

    def preemption(self, request_id: str, *, at_ms: float | None = None) -> None:
        """A running request has lost its KV blocks and waits again."""
        self._append(Preemption(self._now_ms() if at_ms is None else at_ms, request_id))

    def passed_over(self, request_id: str, detail: str, *, at_ms: float | None = None) -> None:
        """A prompt had its turn only when the engine got its own settings back."""
        now_ms = self._now_ms() if at_ms is None else at_ms
        self._append(PassedOver(now_ms, request_id, detail))

    def step_issued(
        self,
        decodes: Iterable[str],
        chunks: Iterable[tuple[str, int]] = (),
        *,
        at_ms: float | None = None,
    ) -> None:
        """A step has entered the pipeline.

        Args:
            decodes: requests that compute one token each.
            chunks: (request, tokens) of prompts.
            at_ms: when, where that was earlier than now.
        """
        try:
            when_ms = self._now_ms() if at_ms is None else at_ms
            event = _event(StepIssued, (when_ms, tuple(decodes), tuple(chunks)))
        except Exception:  # not iterable, or its own iteration failed
            self._dropped += 1
            return
        self._append(event)

    def step_finished(self, *, at_ms: float | None = None) -> None:
        """The oldest step in the pipeline is back, with a token for its requests."""
        self._append(_event(StepFinished, (self._now_ms() if at_ms is None else at_ms,)))
