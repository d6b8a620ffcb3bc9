"""vLLM's scheduler as columns of the compiled composer: SchedulerView.snapshot, many times as fast.

One attribute is read of every running request before every step, where async scheduling needs
it three: the engine's thread pays for each. The rest is BEAM's own, or is kept for as long as
the list of running requests stays the same. Tests hold both ways equal.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from beam_runtime.engines.vllm.followed import Followed
from beam_runtime.engines.vllm.view import SchedulerView
from beam_runtime.kernel.next_step import NextStep


class Columns:
    """Fills the arrays of a NextStep.

    Args:
        view: of the scheduler.
        step: its arrays.
    """

    def __init__(self, view: SchedulerView, step: NextStep) -> None:
        self._view = view
        self._step = step
        self._running: list[Any] = []
        self._known: list[Followed] = []
        self._prompts: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._at: dict[str, int] = {}
        self._prefill = False
        self._asynchronous = view.asynchronous

    def fill(self, now_ms: float) -> tuple[int, int]:
        """Read the engine as the next step will find it: (running, waiting) requests."""
        running = self._view.scheduler.running
        if running != self._running:
            self._line_up(running)
        step, known, end = self._step, self._known, len(running)
        for cohort in {one.cohort for one in known}:
            if cohort is not None:
                cohort.settle()
        step.totals[:end] = [one.tokens for one in known]
        step.computed[:end] = [request.num_computed_tokens for request in running]
        step.last_ms[:end] = [one.last_token_ms or now_ms for one in known]
        step.generated[:end] = step.totals[:end] - self._prompts
        step.shared_blocks[:end] = 0
        if self._asynchronous:
            self._count_placeholders(running, end)
        waiting = self._fill_waiting(end, now_ms)
        self._prefill = waiting > 0 or bool((step.computed[:end] < self._prompts).any())
        return end, waiting

    def flying(self) -> list[tuple[float, list[int]]]:
        """Steps in flight, where there is prefill: when each is back, who gets a token from it."""
        if not self._prefill:
            return []
        view = self._view
        return [
            (finish_ms, [self._at[name] for name in step.token_for if name in self._at])
            for finish_ms, step in zip(view.times.finishes_ms(), view.flying, strict=False)
        ]

    def name(self, column: int) -> str:
        """The running request of a column."""
        name: str = self._running[column].request_id
        return name

    def _line_up(self, running: list[Any]) -> None:
        self._running = list(running)
        self._known = [self._view.known(request.request_id) for request in running]
        for one, request in zip(self._known, running, strict=True):
            one.tokens = request.num_tokens
        self._prompts = np.array([request.num_prompt_tokens for request in running], dtype=np.int64)
        self._at = {request.request_id: at for at, request in enumerate(running)}
        self._step.tbt_ms[: len(running)] = [one.slo.tbt_ms for one in self._known]

    def _count_placeholders(self, running: list[Any], end: int) -> None:
        """Async scheduling lets a request go on before its token is back.

        That token counts as given, at the time it is expected.
        """
        step, view = self._step, self._view
        placeholders = np.array([request.num_output_placeholders for request in running])
        if not placeholders.any():
            return
        step.totals[:end] += placeholders
        step.generated[:end] += placeholders
        for finish_ms, flying in zip(view.times.finishes_ms(), view.flying, strict=False):
            columns = [self._at[name] for name in flying.token_for if name in self._at]
            step.last_ms[columns] = finish_ms
        if view.limits.pp > 1:
            number = getattr(view.scheduler, "current_step", 0) + 1
            later = np.array(
                [getattr(request, "next_decode_eligible_step", 0) > number for request in running]
            )
            later &= placeholders > 0
            step.computed[:end][later] = step.totals[:end][later]

    def _fill_waiting(self, begin: int, now_ms: float) -> int:
        """As many as could fill the largest step."""
        step, limits, hits = self._step, self._view.limits, self._view.hits
        room, at = limits.max_batched_tokens, begin
        for request in self._view.waiting():
            if room <= 0 or at == step.columns:
                break
            # Output from before its preemption is still in flight: vLLM passes it over.
            if getattr(request, "num_stale_output_tokens", 0):
                continue
            tokens = request.num_tokens
            cached, unheld = hits.find(request)
            room -= tokens - cached
            if request.num_prompt_tokens > limits.max_model_len:
                continue
            step.totals[at] = tokens
            step.computed[at] = 0
            step.cached[at] = cached
            step.shared_blocks[at] = (cached - unheld) // limits.block_size
            step.generated[at] = tokens - request.num_prompt_tokens
            step.last_ms[at] = now_ms
            at += 1
        return at - begin
