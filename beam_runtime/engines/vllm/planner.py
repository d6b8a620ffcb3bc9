"""From the controller's orders to a plan for vLLM's next step, on the engine's thread.

The composer plans, on columns of requests; until its machine code is loaded vLLM has its own
settings. Two shortcuts leave it out where what it would say is known, which tests hold them to:

    closed            the pipeline takes no step now
    all at once       nothing but decodes that are together: told from what their cohort knows

A hold is asked about again when its time is over or something has happened, not at every poll.
"""

import functools
from dataclasses import replace
from typing import TYPE_CHECKING

from beam_runtime.control.orders import Orders
from beam_runtime.emulator.passes import Passes
from beam_runtime.engines.vllm.clock_in_force import ClockInForce
from beam_runtime.engines.vllm.features import Features
from beam_runtime.engines.vllm.followed import Cohort
from beam_runtime.engines.vllm.plan import Plan
from beam_runtime.engines.vllm.view import SchedulerView
from beam_runtime.types import SAME_MS, Correction, Knobs, Rules

if TYPE_CHECKING:
    from beam_runtime.emulator.next_step import NextStep
    from beam_runtime.engines.vllm.columns import Columns

# No step for this long while nothing is in flight: whatever the composer thinks, vLLM goes.
LONGEST_HOLD_MS = 2_000.0
# A plan that gate() made serves the schedule() that follows at once.
_FRESH_MS = 1.0


class Planner:
    """Plans for one engine.

    Args:
        view: reads its scheduler.
        passes: when a step will be back.
        features: what this vLLM can do.
    """

    def __init__(self, view: SchedulerView, passes: Passes, features: Features) -> None:
        self._view = view
        self._passes = passes
        self._features = features
        self._compiled: tuple[Columns, NextStep] | None = None
        self._plan: Plan | None = None
        self._planned_ms = float("-inf")
        self._planned_for: Orders | None = None
        self._idle_since_ms: float | None = None
        self._everybody: Plan | None = None
        self._clock = ClockInForce(view.limits.clock_delay_ms)

    def compose_with(self, step: "NextStep") -> None:
        """The compiled composer is loaded. From any thread."""
        from beam_runtime.engines.vllm.columns import Columns

        self._compiled = Columns(self._view, step), step

    def drop(self) -> None:
        """Something happened: the plan there is no longer holds."""
        self._plan = None

    def plan(self, now_ms: float, orders: Orders) -> Plan | None:
        """The plan for a step now; None = vLLM's own way."""
        old = self._plan
        if old is not None and self._planned_for is orders:
            if old.holds and now_ms < old.until_ms:
                return self._unless_stuck(old, now_ms)
            if not old.holds and now_ms - self._planned_ms < _FRESH_MS:
                return old
        self._plan = made = self._make(now_ms, orders)
        self._planned_ms, self._planned_for = now_ms, orders
        return None if made is None else self._unless_stuck(made, now_ms)

    def _make(self, now_ms: float, orders: Orders) -> Plan | None:
        if self._compiled is None:
            return None
        rules = orders.rules if self._features.pollable else _without_waiting(orders.rules)
        knobs, learnt = self._clock.knobs(orders.knobs, now_ms), orders.correction
        known = self._closed(now_ms, rules) or self._all_at_once(now_ms, knobs, learnt, rules)
        return known or self._composed(self._compiled, now_ms, knobs, learnt, rules)

    def _composed(
        self,
        compiled: "tuple[Columns, NextStep]",
        now_ms: float,
        knobs: Knobs,
        learnt: Correction,
        rules: Rules,
    ) -> Plan | None:
        """The composer's plan."""
        columns, step = compiled
        running, waiting = columns.fill(now_ms)
        answer = step.ask(
            running, waiting, now_ms, knobs, learnt, rules,
            self._view.times.stage_free_ms(), self._view.free_blocks,
            flying=columns.flying(),
        )  # fmt: skip
        if answer.until_ms is not None:
            if not self._view.flying and answer.until_ms == float("inf"):
                return None  # the composer sees nothing to do; vLLM may know more
            return Plan(0, until_ms=answer.until_ms)
        hidden = frozenset(columns.name(column) for column in answer.left_out)
        return Plan(answer.budget_tokens, hidden, each_tokens=answer.each_tokens)

    def _closed(self, now_ms: float, rules: Rules) -> Plan | None:
        """Whether the pipeline takes no step now; an empty one does."""
        if not self._view.flying:
            return None
        times = self._view.times
        if len(self._view.flying) >= self._view.limits.max_steps_in_flight:
            return Plan(0, until_ms=times.finishes_ms()[0])
        if not rules.just_in_time:
            return None
        first_stage_ms = times.stage_free_ms()[0] - rules.lead_ms
        return Plan(0, until_ms=first_stage_ms) if now_ms < first_stage_ms - SAME_MS else None

    def _all_at_once(
        self, now_ms: float, knobs: Knobs, learnt: Correction, rules: Rules
    ) -> Plan | None:
        """The plan, where it can only be: all decodes, now or when their pace is over."""
        running = self._only_decodes(knobs)
        if not running:
            return None
        if rules.pace and knobs.pace_ms > 0.0:
            cohort = self._view.together()
            last_ms = None if cohort is None else self._last_ms(cohort)
            if cohort is None or last_ms is None or not cohort.by_gap:
                return None
            until_ms = self._paced_until_ms(cohort, last_ms, now_ms, knobs, learnt)
            if now_ms < until_ms - SAME_MS:
                return Plan(0, until_ms=until_ms)
        least = running + rules.min_chunk_tokens if rules.min_chunk_tokens else 0
        budget = min(max(knobs.chunk_tokens, least), self._view.limits.max_batched_tokens)
        if self._everybody is None or self._everybody.budget_tokens != budget:
            self._everybody = Plan(budget)
        return self._everybody

    def _only_decodes(self, knobs: Knobs) -> int:
        """How many requests run, where all that vLLM has are decodes that can go together.

        Everybody's prompt is done, nobody waits or all seats are taken, nothing is in flight or
        asynchronous scheduling has made a place for it: most steps of most engines, told without
        a look at requests.
        """
        view = self._view
        if knobs.microbatches > 1:
            return 0
        if view.flying and not (view.asynchronous and view.limits.pp == 1):
            return 0
        running = len(view.scheduler.running)
        # Who waits although nobody is unsettled was preempted, and vLLM did not say so.
        if view.unsettled or view.queued:
            seated = running >= view.limits.max_num_seqs
            if not seated or view.together() is None:
                return 0
        # Each may need one KV block more; where there are too few, somebody is preempted.
        return running if running <= view.free_blocks else 0

    def _last_ms(self, cohort: Cohort) -> float | None:
        """When its latest tokens came, or come: asynchronous scheduling counts those as given."""
        flying = self._view.flying
        if not flying:
            return cohort.last_ms
        return self._view.times.finishes_ms()[-1] if flying[-1].cohort is cohort else None

    def _paced_until_ms(
        self, cohort: Cohort, last_ms: float, now_ms: float, knobs: Knobs, learnt: Correction
    ) -> float:
        """The composer's hold_until_ms, for one microbatch of equal requests."""
        passes = self._passes
        pass_ms, _ = passes.decodes(
            len(cohort.names), cohort.computed_tokens, knobs.clock_mhz, learnt
        )
        stage_free_ms = self._view.times.stage_free_ms()
        due_ms = last_ms + cohort.due_every_ms - learnt.wide_margin_ms
        until_ms = now_ms
        for _ in range(2):
            travel_ms = passes.finish_ms(pass_ms, until_ms, stage_free_ms) - until_ms
            until_ms = min(due_ms - travel_ms, last_ms + knobs.pace_ms)
            if until_ms <= now_ms:
                break
        return until_ms

    def _unless_stuck(self, planned: Plan, now_ms: float) -> Plan | None:
        """A hold that lasts too long with nothing in flight is a mistake: vLLM goes."""
        if planned.budget_tokens:
            self._idle_since_ms = None
            return planned
        if self._view.admission.loading():  # vLLM learns of their arrival by running steps
            return None
        if self._view.flying:
            self._idle_since_ms = None
            return planned
        if self._idle_since_ms is None:
            self._idle_since_ms = now_ms
        return planned if now_ms - self._idle_since_ms < LONGEST_HOLD_MS else None


@functools.cache
def _without_waiting(rules: Rules) -> Rules:
    """An engine that cannot be told to come back takes a step whenever it has room."""
    return replace(rules, just_in_time=False)
