"""BEAM inside one vLLM scheduler: hooks on the engine's thread, orders read from the controller.

    add_request          -> added
    schedule             -> gate, constrained (compose -> Plan), issued
    update_from_output   -> returned (step, tokens, ends)
    finish_requests      -> aborted

No hook waits or searches, and none raises: what goes wrong here is logged once, and from then
on vLLM schedules as if BEAM were absent.
"""

import functools
import logging
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from beam_runtime.composer import Hold, compose
from beam_runtime.cost import StepCost
from beam_runtime.engines.base import Orders
from beam_runtime.engines.config import EmbeddedPolicy
from beam_runtime.engines.vllm_features import Features
from beam_runtime.engines.vllm_gate import Gate
from beam_runtime.engines.vllm_passes import Passes
from beam_runtime.engines.vllm_plan import Plan, constrained, plan
from beam_runtime.engines.vllm_tally import Tally
from beam_runtime.engines.vllm_view import Followed, SchedulerView, arrival_ms
from beam_runtime.types import SAME_MS, Forecast, Knobs, Rules, Slo, StepShape

if TYPE_CHECKING:
    from beam_runtime.controller import Controller
    from beam_runtime.engines.vllm_columns import Columns
    from beam_runtime.engines.vllm_power import Wattmeter
    from beam_runtime.kernel.next_step import NextStep

_LOG = logging.getLogger("beam_runtime.vllm")

# No step for this long while nothing is in flight: whatever the composer thinks, vLLM goes.
LONGEST_HOLD_MS = 2_000.0
_NOTHING = nullcontext()
# A plan that gate() made serves the schedule() that follows at once.
_FRESH_MS = 1.0

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _never_raises(
    hook: Callable[Concatenate["Embedded", _P], _R],
) -> Callable[Concatenate["Embedded", _P], _R | None]:
    """A hook that answers None once anything has gone wrong, then and for ever."""

    @functools.wraps(hook)
    def guarded(self: "Embedded", /, *args: _P.args, **kwargs: _P.kwargs) -> _R | None:
        if self.failure:
            return None
        try:
            return hook(self, *args, **kwargs)
        except Exception as error:
            self.fail(error)
            return None

    return guarded


class Embedded:
    """One scheduler's BEAM.

    Args:
        view: reads the scheduler.
        cost: step costs, for when a step will be back.
        features: what this vLLM can do.
        policy: observe = watch, predict and log without touching anything.
        slo: what requests are promised that say nothing themselves.
        slo_of: what one request was promised, given that.
        now_ms: the controller's time axis.
        wattmeter: of the replica's GPUs, where they have counters.
    """

    def __init__(
        self,
        view: SchedulerView,
        cost: StepCost,
        features: Features,
        *,
        policy: EmbeddedPolicy,
        slo: Slo,
        slo_of: Callable[[Any, Slo], Slo],
        now_ms: Callable[[], float],
        wattmeter: "Wattmeter | None" = None,
    ) -> None:
        self.view = view
        self.failure = ""
        self.policy = policy
        self.slo = slo
        self.wattmeter = wattmeter
        self.tally = Tally()
        self._passes = Passes(cost, view.limits)
        self._compiled = _compiled(view, cost)
        self._features = features
        self._slo_of = slo_of
        self._now_ms = now_ms
        self._controller: Controller | None = None
        self._closing: list[Callable[[], None]] = []
        self._plan: Plan | None = None
        self._planned_ms = float("-inf")
        self._planned_for: Orders | None = None
        self._idle_since_ms: float | None = None
        self._begun_ms: float | None = None

    def connect(self, controller: "Controller") -> None:
        """From now on events go there."""
        self._controller = controller

    @property
    def controller(self) -> "Controller":
        """Whom events go to."""
        if self._controller is None:
            raise RuntimeError("connect() comes first")
        return self._controller

    @property
    def steering(self) -> bool:
        """Whether steps are being constrained."""
        may = self.policy is EmbeddedPolicy.STEER and not self.failure
        return may and self.controller.orders.steering

    def obey(self, policy: EmbeddedPolicy) -> None:
        """Observe, and give the clocks back, or steer again. From any thread."""
        self.policy = policy
        steers = policy is EmbeddedPolicy.STEER
        (self.controller.steer if steers else self.controller.observe)()

    # The engine's thread

    @_never_raises
    def added(self, request: Any) -> None:
        """A request came in."""
        now_ms = self._now_ms()
        self._plan = None
        slo = self._slo_of(request, self.slo)
        known = self.view.follow(request, arrival_ms(request, now_ms, time.time), slo)
        self.controller.arrival(
            request.request_id, request.num_prompt_tokens, slo=known.slo, at_ms=known.arrival_ms
        )

    @_never_raises
    def aborted(self, names: Iterable[str]) -> None:
        """Requests were ended from outside: the client is gone."""
        now_ms = self._now_ms()
        self._plan = None
        for name in names:
            if self.view.forget(name):
                self.tally.aborts += 1
                self.controller.abort(name, at_ms=now_ms)

    def gate(self, oldest_is_back: bool) -> Gate:
        """What EngineCore is to do: asked before every step."""
        return self._gate(oldest_is_back) or Gate.GO

    @_never_raises
    def _gate(self, oldest_is_back: bool) -> Gate:
        now_ms = self._now_ms()
        planned = self._current_plan(now_ms)
        if planned is None or not planned.holds:
            return Gate.GO
        self.tally.holds += 1
        self._begun_ms = None
        if not self.view.flying:
            return Gate.WAIT
        back_ms = self.view.times.finishes_ms()[0]
        if oldest_is_back or planned.until_ms >= back_ms:
            return Gate.COLLECT
        return Gate.WAIT

    def constrained(self) -> AbstractContextManager[object]:
        """Around vLLM's schedule(): the budget and what it gets to see."""
        return self._constrain() or _NOTHING

    @_never_raises
    def _constrain(self) -> AbstractContextManager[object] | None:
        now_ms = self._now_ms()
        if self._begun_ms is None:
            self._begun_ms = now_ms
        planned = self._current_plan(now_ms)
        self._plan = None
        self.view.chunk_owed = planned is not None and planned.chunk_owed
        if planned is None:
            return None
        return constrained(self.view.scheduler, planned, by_step=self._features.eligible_step)

    @_never_raises
    def issued(self, output: Any) -> None:
        """A step was scheduled."""
        now_ms = self._now_ms()
        begun_ms, self._begun_ms = self._begun_ms, None
        begun_ms = now_ms if begun_ms is None else begun_ms
        for name in self.view.preempted(output):
            self.tally.preemptions += 1
            self.view.unsettled.add(name)
            self.controller.preemption(name, at_ms=now_ms)
        issued = self.view.issued(output)
        if issued is None:
            return
        (step, shape), orders = issued, self.controller.orders
        clock_mhz = orders.knobs.clock_mhz
        pass_ms = self._passes.pass_ms(shape, clock_mhz, orders.correction)
        self.view.times.issue(begun_ms, pass_ms)
        self.tally.steps += 1
        pass_j = self._passes.energy_j(shape, clock_mhz)
        self.tally.active_energy_j += pass_j * self.view.limits.pp
        self.controller.step_issued(step.decodes, step.chunks, at_ms=begun_ms)

    @_never_raises
    def returned(self, output: Any, outputs: Any) -> None:
        """A step came back, and vLLM has taken its tokens."""
        now_ms = self._now_ms()
        self._plan = None
        step = self.view.returned(output)
        if step is None:
            return
        self.view.times.finish(now_ms)
        # Where nothing is held back, the engine goes straight on to its next step: what lies
        # between two steps is that step's host gap, and part of what it takes.
        if not self.view.flying and (self.view.scheduler.running or self.view.scheduler.waiting):
            self._begun_ms = now_ms
        self.controller.step_finished(at_ms=now_ms)
        expected = self.controller.orders.expected
        for client in (outputs or {}).values():
            self._take(client.outputs, now_ms, expected)

    def _take(self, outputs: Iterable[Any], now_ms: float, expected: Forecast | None) -> None:
        """What requests got from a step. Once per token: written for speed."""
        followed, tally = self.view.followed, self.tally
        expected_ms = {} if expected is None else expected.worst_tbt_ms
        for one in outputs:
            name = one.request_id
            known = followed.get(name)
            if known is None:
                continue
            got = len(one.new_token_ids)
            if got:
                known.tokens += got
                last_ms = known.last_token_ms
                if last_ms is None:
                    self._first_token(name, known, now_ms, expected)
                else:
                    tally.gap(now_ms - last_ms, expected_ms.get(name), known.slo)
                known.last_token_ms = now_ms
            if one.finish_reason is not None:
                tally.completions += 1
                self.view.forget(name)
                self.controller.completion(name, at_ms=now_ms)

    def _first_token(
        self, name: str, known: Followed, now_ms: float, expected: Forecast | None
    ) -> None:
        known.first_token_ms = now_ms
        predicted_ms = None if expected is None else expected.ttft_ms.get(name)
        self.tally.first(now_ms - known.arrival_ms, predicted_ms, known.slo)
        self.controller.first_token(name, at_ms=now_ms)

    def at_close(self, action: Callable[[], None]) -> None:
        """Have something done when the engine shuts down."""
        self._closing.append(action)

    def last_words(self, why: str) -> None:
        """The engine may be killed in a moment. Fit for a signal handler: nothing is waited for."""
        try:
            if self._controller is not None:
                self._controller.last_words(why)
        except Exception:
            _LOG.debug("no last words", exc_info=True)

    def close(self) -> None:
        """The engine shuts down: give the clocks back."""
        for action in self._closing:
            action()
        self._closing.clear()
        if self._controller is not None:
            self._controller.close()

    def fail(self, error: Exception) -> None:
        """Stay out from now on; the clocks are given back on another thread."""
        self.failure = f"{type(error).__name__}: {error}"
        _LOG.exception("BEAM stays out from here on, vLLM schedules by itself: %s", self.failure)
        if self._controller is not None:
            threading.Thread(target=self._controller.close, name="beam-close", daemon=True).start()

    # Planning

    def _current_plan(self, now_ms: float) -> Plan | None:
        """The plan for a step now; None = vLLM's own way."""
        orders = self.controller.orders
        if self.policy is not EmbeddedPolicy.STEER or not orders.steering:
            return None
        old = self._plan
        if old is not None and self._planned_for is orders:
            if old.holds and now_ms < old.until_ms:
                return self._unless_stuck(old, now_ms)
            if not old.holds and now_ms - self._planned_ms < _FRESH_MS:
                return old
        self._plan = self._make_plan(now_ms, orders)
        self._planned_ms, self._planned_for = now_ms, orders
        return None if self._plan is None else self._unless_stuck(self._plan, now_ms)

    def _make_plan(self, now_ms: float, orders: Orders) -> Plan | None:
        rules = orders.rules if self._features.pollable else _without_waiting(orders.rules)
        closed = self._closed(now_ms, rules)
        if closed is not None:
            return closed
        if self._compiled is None:
            return self._composed_plan(now_ms, orders)
        if self._only_all_at_once(orders.knobs):
            least = len(self.view.scheduler.running) + rules.min_chunk_tokens
            chunk = max(orders.knobs.chunk_tokens, least if rules.min_chunk_tokens else 0)
            return Plan(min(chunk, self.view.limits.max_batched_tokens))
        columns, step = self._compiled
        running, waiting = columns.fill(now_ms)
        answer = step.ask(
            running, waiting, now_ms, orders.knobs, orders.correction, rules,
            self.view.times.stage_free_ms(), self.view.free_blocks,
            flying=columns.flying(), chunk_owed=self.view.chunk_owed,
        )  # fmt: skip
        if answer.until_ms is not None:
            if not self.view.flying and answer.until_ms == float("inf"):
                return None  # the composer sees nothing to do; vLLM may know more
            return Plan(0, until_ms=answer.until_ms)
        hidden = frozenset(columns.name(column) for column in answer.left_out)
        return Plan(answer.budget_tokens, hidden, chunk_owed=answer.chunk_owed)

    def _only_all_at_once(self, knobs: Knobs) -> bool:
        """Whether the composer's answer can only be: all decodes, now.

        Nobody waits, everybody's prompt is done, nothing is in flight or asynchronous scheduling
        has made a place for it: most steps of most engines, told without a look at requests.
        """
        view, scheduler = self.view, self.view.scheduler
        # Who waits although nobody is unsettled was preempted, and vLLM did not say so.
        if knobs.microbatches > 1 or knobs.pace_ms > 0.0 or view.unsettled or scheduler.waiting:
            return False
        in_place = not view.flying or (view.asynchronous and view.limits.pp == 1)
        # Each may need one KV block more; where there are too few, somebody is preempted.
        return in_place and 0 < len(scheduler.running) <= view.free_blocks

    def _closed(self, now_ms: float, rules: Rules) -> Plan | None:
        """Whether the pipeline takes no step now, which needs no look at requests."""
        flying, times = self.view.flying, self.view.times
        if not flying:
            return None
        if len(flying) >= self.view.limits.max_steps_in_flight:
            return Plan(0, until_ms=times.finishes_ms()[0])
        first_stage_ms = times.stage_free_ms()[0] - rules.lead_ms
        early = rules.just_in_time and now_ms < first_stage_ms - SAME_MS
        return Plan(0, until_ms=first_stage_ms) if early else None

    def _composed_plan(self, now_ms: float, orders: Orders) -> Plan | None:
        """The readable way: without numba, and what tests hold the other one to."""
        state = self.view.snapshot(now_ms, orders.knobs, orders.correction)
        rules = orders.rules if self._features.pollable else _without_waiting(orders.rules)
        clock_mhz, correction = orders.knobs.clock_mhz, orders.correction

        def finish_ms(shape: StepShape, issue_ms: float) -> float:
            pass_ms = self._passes.pass_ms(shape, clock_mhz, correction)
            return self._passes.finish_ms(pass_ms, issue_ms, state.stage_free_ms)

        move = compose(state, orders.knobs, now_ms, finish_ms, rules)
        if isinstance(move, Hold) and not state.in_flight and move.until_ms == float("inf"):
            return None  # the composer sees nothing to do; vLLM may know more
        return plan(move, state, orders.knobs, rules)

    def _unless_stuck(self, planned: Plan, now_ms: float) -> Plan | None:
        """A hold that lasts too long with nothing in flight is a mistake: vLLM goes."""
        if not planned.holds or self.view.flying:
            self._idle_since_ms = None
            return planned
        if self._idle_since_ms is None:
            self._idle_since_ms = now_ms
        return planned if now_ms - self._idle_since_ms < LONGEST_HOLD_MS else None


@functools.cache
def _without_waiting(rules: Rules) -> Rules:
    """An engine that cannot be told to come back takes a step whenever it has room."""
    return replace(rules, just_in_time=False)


def _compiled(view: SchedulerView, cost: StepCost) -> "tuple[Columns, NextStep] | None":
    """The compiled composer; None without numba."""
    if find_spec("numba") is None:
        return None
    from beam_runtime.engines.vllm_columns import Columns
    from beam_runtime.kernel.next_step import NextStep

    step = NextStep(cost, view.limits)
    return Columns(view, step), step
