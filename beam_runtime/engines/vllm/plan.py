"""The composer's answer in vLLM's terms: a token budget, and which requests to hide.

    hold               nothing is scheduled: budget 0
    mixed step         budget = its tokens, decodes that do not ride are hidden
    chunks alone       the same, and no prompt gets more than it may (each_tokens), so that those
                       that would be done are left a token; those that have just that are hidden
    decode-only step   budget = its decodes, everything else is hidden

vLLM's own schedule() then fills the step, allocates blocks and preempts. Where it knows more
than the composer (prefix-cache hits make prompts shorter) it may do more; never with more
tokens than the budget.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Self

# Larger than any step number: not eligible for as long as it stands.
_NOT_NOW = 1 << 62


@dataclass(frozen=True, slots=True)
class Plan:
    """How the next schedule() is constrained.

    Attributes:
        budget_tokens: vLLM's max_num_scheduled_tokens; 0 = an empty step.
        hidden: running requests that must not be scheduled.
        until_ms: for a hold, when it ends by itself.
        each_tokens: vLLM's long_prefill_token_threshold; 0 = as it is.
    """

    budget_tokens: int
    hidden: frozenset[str] = frozenset()
    until_ms: float = 0.0
    each_tokens: int = 0

    @property
    def holds(self) -> bool:
        """Whether nothing goes now."""
        return self.budget_tokens == 0


class Constraint(AbstractContextManager["Constraint"]):
    """Around vLLM's schedule(): a plan's budget, and its requests hidden.

    One for an engine, used again for each step, and no generator: either would cost the
    engine's thread more than what is done here.

    Args:
        scheduler: vLLM's.
        by_step: whether next_decode_eligible_step can hide requests.
    """

    __slots__ = (
        "_adaptive_before", "_before", "_by_step", "_each_before", "_hiding", "_plan", "_scheduler"
    )  # fmt: skip

    def __init__(self, scheduler: Any, *, by_step: bool) -> None:
        self._scheduler = scheduler
        self._by_step = by_step
        self._hiding: AbstractContextManager[None] | None = None
        self._plan = Plan(0)
        self._before = self._each_before = 0
        self._adaptive_before = False

    def of(self, planned: Plan) -> Self:
        """With this plan from the next ``with`` on."""
        self._plan = planned
        return self

    def __enter__(self) -> Self:
        scheduler, planned = self._scheduler, self._plan
        if planned.hidden:
            self._hiding = (
                hidden_by_step(scheduler.running, planned.hidden)
                if self._by_step
                else hidden_by_list(scheduler, planned.hidden)
            )
            self._hiding.__enter__()
        self._before = scheduler.max_num_scheduled_tokens
        scheduler.max_num_scheduled_tokens = planned.budget_tokens
        if planned.each_tokens:  # no more than the user's own, which the composer knows
            config = scheduler.scheduler_config
            self._each_before = config.long_prefill_token_threshold
            self._adaptive_before = getattr(scheduler, "adaptive_long_prefill_threshold", False)
            config.long_prefill_token_threshold = planned.each_tokens
            scheduler.adaptive_long_prefill_threshold = False
        return self

    def __exit__(self, *raised: Any) -> None:
        self._scheduler.max_num_scheduled_tokens = self._before
        if self._plan.each_tokens:
            self._scheduler.scheduler_config.long_prefill_token_threshold = self._each_before
            self._scheduler.adaptive_long_prefill_threshold = self._adaptive_before
        hiding, self._hiding = self._hiding, None
        if hiding is not None:
            hiding.__exit__(*raised)


@contextmanager
def hidden_by_step(running: Sequence[Any], hidden: frozenset[str]) -> Iterator[None]:
    """Hide requests through vLLM's own next_decode_eligible_step (0.24 and newer)."""
    before = []
    for request in running:
        if request.request_id in hidden:
            before.append((request, request.next_decode_eligible_step))
            request.next_decode_eligible_step = _NOT_NOW
    try:
        yield
    finally:
        for request, step in before:
            request.next_decode_eligible_step = step


@contextmanager
def hidden_by_list(scheduler: Any, hidden: frozenset[str]) -> Iterator[None]:
    """Hide requests by taking them out of the running list, which older versions need.

    A hidden request keeps its seat: the limit of running requests is lowered meanwhile.
    Preemption takes the last visible request, where vLLM would take the last of all.
    """
    everyone = scheduler.running
    away = [r for r in everyone if r.request_id in hidden]
    scheduler.running = [r for r in everyone if r.request_id not in hidden]
    seats = {
        name: getattr(scheduler, name)
        for name in ("max_num_running_reqs", "max_num_active_reqs")
        if hasattr(scheduler, name)
    }
    for name, seat in seats.items():
        setattr(scheduler, name, max(0, seat - len(away)))
    try:
        yield
    finally:
        for name, seat in seats.items():
            setattr(scheduler, name, seat)
        # In the engine's order again; who was admitted meanwhile comes last.
        still = set(map(id, scheduler.running)) | set(map(id, away))
        kept = [r for r in everyone if id(r) in still]
        known = set(map(id, everyone))
        scheduler.running = kept + [r for r in scheduler.running if id(r) not in known]
