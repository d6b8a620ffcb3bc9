"""vLLM's scheduler in columns, as the composer takes them.

One attribute is read of every running request before every step, where async scheduling needs
it three: the engine's thread pays for each. The rest is BEAM's own, or is kept for as long as
the list of running requests stays the same.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from beam_runtime.emulator.next_step import NextStep
from beam_runtime.emulator.promises import promise, settle_times
from beam_runtime.engines.vllm.followed import Followed
from beam_runtime.engines.vllm.view import SchedulerView
from beam_runtime.types import StreamKind


class Columns:
    """Fills the arrays of a NextStep.

    Args:
        view: of the scheduler.
        step: whose state they are.
    """

    def __init__(self, view: SchedulerView, step: NextStep) -> None:
        self._view = view
        requests = self._requests = step.state.requests
        self._rows = len(requests)
        self._total, self._computed = requests["total_tokens"], requests["computed_tokens"]
        self._generated, self._cached = requests["generated_tokens"], requests["cached_tokens"]
        self._shared_blocks = requests["shared_blocks"]
        self._last_ms, self._first_ms = requests["last_token_ms"], requests["first_token_ms"]
        self._by_gap = True
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
        known, end = self._known, len(running)
        for cohort in {one.cohort for one in known}:
            if cohort is not None:
                cohort.settle()
        self._total[:end] = [one.tokens for one in known]
        self._computed[:end] = [request.num_computed_tokens for request in running]
        self._last_ms[:end] = [one.last_token_ms or now_ms for one in known]
        self._generated[:end] = self._total[:end] - self._prompts
        if not self._by_gap:
            self._first_ms[:end] = [one.first_token_ms or now_ms for one in known]
            settle_times(self._requests[:end], now_ms)
        self._shared_blocks[:end] = 0
        if self._asynchronous:
            self._count_placeholders(running, end)
        waiting = self._fill_waiting(end, now_ms)
        self._prefill = waiting > 0 or bool((self._computed[:end] < self._prompts).any())
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
        if self._known:  # most have the same SLO: written at once, the others over it
            self._requests["broken"][: len(running)] = 0
            common = self._known[0].planned
            promise(self._requests[: len(running)], common)
            for at, one in enumerate(self._known):
                if one.planned is not common:
                    promise(self._requests[at], one.planned)
        slos = {id(one.slo): one.slo for one in self._known}
        self._by_gap = all(slo.kind is StreamKind.GAP for slo in slos.values())

    def _count_placeholders(self, running: list[Any], end: int) -> None:
        """Async scheduling lets a request go on before its token is back.

        That token counts as given, at the time it is expected.
        """
        view = self._view
        placeholders = np.array([request.num_output_placeholders for request in running])
        if not placeholders.any():
            return
        self._total[:end] += placeholders
        self._generated[:end] += placeholders
        for finish_ms, flying in zip(view.times.finishes_ms(), view.flying, strict=False):
            columns = [self._at[name] for name in flying.token_for if name in self._at]
            self._last_ms[columns] = finish_ms
        if view.limits.pp > 1:
            number = getattr(view.scheduler, "current_step", 0) + 1
            later = np.array(
                [getattr(request, "next_decode_eligible_step", 0) > number for request in running]
            )
            later &= placeholders > 0
            self._computed[:end][later] = self._total[:end][later]

    def _fill_waiting(self, begin: int, now_ms: float) -> int:
        """As many as could fill the largest step."""
        limits, hits = self._view.limits, self._view.hits
        room, at = limits.max_batched_tokens, begin
        for request in self._view.admission.admissible():
            if room <= 0 or at == self._rows:
                break
            tokens = request.num_tokens
            # Whoever waits with KV blocks of its own (they were loaded for it) needs no others.
            own = request.num_computed_tokens
            cached, unheld = (own, 0) if own else hits.find(request)
            room -= tokens - cached
            if request.num_prompt_tokens > limits.max_model_len:
                continue
            self._total[at] = tokens
            self._computed[at] = 0
            self._cached[at] = cached
            self._shared_blocks[at] = (cached - unheld) // limits.block_size
            self._generated[at] = tokens - request.num_prompt_tokens
            self._last_ms[at] = now_ms
            at += 1
        return at - begin
