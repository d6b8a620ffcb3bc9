"""Sees the prompt whose turn it is, and that it does not move while steps go by.

vLLM does not cut every prompt to a step's tokens, and nobody knows all the cases in which it does
not. So the first prompt in its order is watched, whatever the reason:

    moves                       all is well
    still for STILL_MS          vLLM has its own settings for a few steps, as a trial
    moves in the trial          BEAM was in its way: passed over
    still in the trial, too     vLLM itself waits for something; the watch begins anew

A prompt that waits for a seat or for KV blocks is not looked at: that is not the budget's fault.
"""

from enum import Enum
from typing import Any

from beam_runtime.engines.vllm.view import SchedulerView

# With the trial's steps it makes less than a second until a prompt has its turn.
STILL_MS = 400.0
_LOOK_MS = 50.0
_LEAST_STEPS = 3
# Until the controller has heard of it and gives the engine its own settings for longer.
_REST_MS = 1_000.0


class Verdict(Enum):
    """What is to be done."""

    WELL = "well"
    TRIAL = "trial"
    PASSED_OVER = "passed over"


class HeadWatch:
    """Watches one scheduler's first prompt.

    Args:
        view: of the scheduler.

    Attributes:
        head: the request that is watched; empty = none.
        still_ms: for how long it has not moved.
        on_trial: whether vLLM has its own settings to see whether the prompt moves.
    """

    def __init__(self, view: SchedulerView) -> None:
        self._view = view
        self.head = ""
        self.still_ms = 0.0
        self.on_trial = False
        self._computed = 0
        self._since_ms = self._looked_ms = float("-inf")
        self._rest_until_ms = float("-inf")
        self._steps = 0

    def hands_off(self, now_ms: float) -> bool:
        """Whether vLLM is to have its own settings now."""
        return self.on_trial or now_ms < self._rest_until_ms

    def issued(self, tokens: dict[str, int], now_ms: float) -> Verdict:
        """A step was scheduled, with these tokens by request. Once per step: mostly a return."""
        if self.head and self.head in tokens:
            return self._moved(now_ms)
        if not self._view.unsettled:
            if self.head:
                self._watch(None, now_ms)
            return Verdict.WELL
        self._steps += 1
        if self.on_trial:
            if self._steps <= self._trial_steps:
                return Verdict.TRIAL
            self._watch(None, now_ms)  # it waits for something else
        elif now_ms - self._looked_ms >= _LOOK_MS:
            self._looked_ms = now_ms
            self._look(now_ms)
        return Verdict.TRIAL if self.on_trial else Verdict.WELL

    def _moved(self, now_ms: float) -> Verdict:
        found = Verdict.WELL
        if self.on_trial:
            found, self._rest_until_ms = Verdict.PASSED_OVER, now_ms + _REST_MS
        self._watch(None, now_ms)
        return found

    def _look(self, now_ms: float) -> None:
        """Whether it is still the same prompt, and how long for."""
        head = self._first_prompt()
        if (
            head is None
            or head.request_id != self.head
            or head.num_computed_tokens != self._computed
        ):
            self._watch(head, now_ms)
            return
        self.still_ms = now_ms - self._since_ms
        if self.still_ms >= STILL_MS and self._steps >= _LEAST_STEPS:
            self.on_trial, self._steps = True, 0

    @property
    def _trial_steps(self) -> int:
        """So many that those scheduled before it are back, and a few."""
        return self._view.limits.max_steps_in_flight + _LEAST_STEPS

    def _watch(self, head: Any | None, now_ms: float) -> None:
        self.head = "" if head is None else head.request_id
        self._computed = 0 if head is None else head.num_computed_tokens
        self._since_ms, self._steps, self.on_trial = now_ms, 0, False

    def _first_prompt(self) -> Any | None:
        """The first request in vLLM's order with a prompt to compute, which it could compute."""
        view = self._view
        unsettled = view.unsettled
        for request in view.scheduler.running:
            if request.request_id in unsettled:
                # Tokens of it that are in flight count as computed.
                return request if request.num_computed_tokens < request.num_tokens else None
        if not view.admission.open():
            return None
        head = next(view.admission.admissible(), None)
        if head is None:
            return None
        missing = head.num_tokens - head.num_computed_tokens
        blocks = -(-missing // view.limits.block_size)
        return head if blocks < view.free_blocks else None
