"""BEAM inside one vLLM scheduler: hooks on the engine's thread, orders read from the controller.

    add_request          -> added
    schedule             -> gate, constrained (Planner -> Plan), issued
    update_from_output   -> returned (step, tokens, ends)
    finish_requests      -> aborted

No hook waits or searches, and none raises: what goes wrong here is logged once, and from then
on vLLM schedules as if BEAM were absent.
"""

import functools
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from beam_runtime.emulator.passes import Passes
from beam_runtime.engines.config import EmbeddedPolicy
from beam_runtime.engines.vllm.admission import has_next_input
from beam_runtime.engines.vllm.features import Features
from beam_runtime.engines.vllm.followed import Followed
from beam_runtime.engines.vllm.gate import Gate
from beam_runtime.engines.vllm.head_watch import HeadWatch, Verdict
from beam_runtime.engines.vllm.plan import Constraint, Plan
from beam_runtime.engines.vllm.planner import Planner
from beam_runtime.engines.vllm.step_meter import StepMeter
from beam_runtime.engines.vllm.tally import Tally
from beam_runtime.engines.vllm.view import Flying, SchedulerView, arrival_ms
from beam_runtime.search.keepable import Keepable
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import Forecast, Slo

if TYPE_CHECKING:
    from beam_runtime.control.controller import Controller
    from beam_runtime.control.decision_log import DecisionLog
    from beam_runtime.emulator.next_step import NextStep
    from beam_runtime.engines.vllm.power import Wattmeter

_LOG = logging.getLogger("beam_runtime.vllm")

_NOTHING = nullcontext()

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
        class_of: what its SLO is called.
        now_ms: the controller's time axis.
        wattmeter: of the replica's GPUs, where they have counters.
        log: the decision log, where one is kept.
        about: what serves here, by label.
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
        class_of: Callable[[Any], str],
        now_ms: Callable[[], float],
        wattmeter: "Wattmeter | None" = None,
        log: "DecisionLog | None" = None,
        about: Mapping[str, str] | None = None,
    ) -> None:
        self.view = view
        self.failure = ""
        self.policy = policy
        # Asked before every step, where an enumeration's name is a slow thing to look up.
        self._may_steer = policy is EmbeddedPolicy.STEER
        self.slo = slo
        self.wattmeter = wattmeter
        self.log = log
        self.about = about or {}
        self._unlogged = ""
        self.tally = Tally()
        self._passes = Passes(cost, view.limits)
        self._planner = Planner(view, self._passes, features)
        self._head = HeadWatch(view)
        self._constraint = Constraint(view.scheduler, by_step=features.eligible_step)
        self._slo_of, self._class_of = slo_of, class_of
        self._keepable = Keepable(cost, view.limits)
        self._meter = StepMeter(cost, self._passes, self.tally, view.limits)
        self._now_ms = now_ms
        self._controller: Controller | None = None
        self._closing: list[Callable[[], None]] = []
        self._begun_ms: float | None = None

    @property
    def log_failure(self) -> str:
        """Why no decisions are written down although they should be; empty while all is well."""
        return self._unlogged or (self.log.failure if self.log is not None else "")

    def without_log(self, why: str) -> None:
        """There should be one, and there is none."""
        self._unlogged = why

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
        return self._may_steer and not self.failure and self.controller.orders.steering

    def obey(self, policy: EmbeddedPolicy) -> None:
        """Observe, and give the clocks back, or steer again. From any thread."""
        self.policy = policy
        self._may_steer = policy is EmbeddedPolicy.STEER
        (self.controller.steer if self._may_steer else self.controller.observe)()

    def promise(self, slo: Slo) -> None:
        """What requests are promised from now on that say nothing themselves. From any thread."""
        self.slo = slo
        self.controller.promise(slo)

    # The engine's thread

    @_never_raises
    def added(self, request: Any) -> None:
        """A request came in, or more input for one that is there: a streaming session."""
        self._planner.drop()
        name = request.request_id
        # Of a session, vLLM keeps the request that came first.
        kept = self.view.scheduler.requests.get(name)
        if kept is not None and name not in self.view.followed:
            self._follow(kept, self._now_ms())

    def _follow(self, request: Any, now_ms: float) -> None:
        slo = self._slo_of(request, self.slo)
        known = self.view.follow(request, arrival_ms(request, now_ms, time.time), slo)
        known.planned = self._keepable.served(slo, self.slo)
        known.slo_class = self._class_of(request)
        known.tally = self.tally.of_class(known.slo_class)
        known.tally.requests += 1
        # A session goes on from what it has computed.
        cached_tokens = request.num_computed_tokens or self.view.hits.find(request)[0]
        self.controller.arrival(
            request.request_id, request.num_prompt_tokens, slo=known.slo,
            cached_tokens=cached_tokens, at_ms=known.arrival_ms,
        )  # fmt: skip

    @_never_raises
    def aborted(self, names: Iterable[str]) -> None:
        """Requests were ended from outside: the client is gone."""
        now_ms = self._now_ms()
        self._planner.drop()
        for name in names:
            if self.view.forget(name):
                self.tally.aborts += 1
                self.controller.abort(name, at_ms=now_ms)

    def gate(self, oldest_is_back: bool) -> Gate:
        """What EngineCore is to do: asked before every step."""
        return self._gate(oldest_is_back) or Gate.GO

    @_never_raises
    def _gate(self, oldest_is_back: bool) -> Gate:
        planned = self._plan(self._now_ms())
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
        planned = self._plan(now_ms)
        self._planner.drop()
        return None if planned is None else self._constraint.of(planned)

    def _plan(self, now_ms: float) -> Plan | None:
        """The plan for a step now; None = vLLM's own way."""
        orders = self.controller.orders
        if not (self._may_steer and orders.steering) or self._head.hands_off(now_ms):
            return None
        return self._planner.plan(now_ms, orders)

    def _watch_head(self, tokens: dict[str, int], now_ms: float) -> None:
        """See that no prompt is passed over because of BEAM."""
        head = self._head
        name = head.head
        if head.issued(tokens, now_ms) is Verdict.PASSED_OVER:
            self.tally.passed_over += 1
            detail = f"{name} got no tokens for {head.still_ms:.0f} ms until vLLM had its own"
            self.controller.passed_over(name, detail, at_ms=now_ms)

    @_never_raises
    def issued(self, output: Any) -> None:
        """A step was scheduled."""
        now_ms = self._now_ms()
        begun_ms, self._begun_ms = self._begun_ms, None
        begun_ms = now_ms if begun_ms is None else begun_ms
        for name in self.view.preempted(output):
            self.tally.preemptions += 1
            self.view.lose(name)
            self.controller.preemption(name, at_ms=now_ms)
        step = self.view.issued(output)
        if step is None:
            return
        controller = self.controller
        orders = controller.orders
        if self._may_steer and orders.steering:
            self._watch_head(output.num_scheduled_tokens, now_ms)
        pass_ms, step_j = self._meter.step(step, orders, self._may_steer, now_ms)
        self.view.times.issue(begun_ms, pass_ms)
        self.tally.steps += 1
        self._share(step, output.num_scheduled_tokens, step_j)
        controller.step_issued(step.decodes, step.chunks, at_ms=begun_ms)

    def _share(self, step: Flying, tokens: dict[str, int], step_j: float) -> None:
        """A step's energy, shared among its requests by the tokens that they have in it."""
        if step.cohort is not None:
            step.cohort.energy_j += step_j
            return
        each_j = step_j / sum(tokens.values())
        followed = self.view.followed
        for name, count in tokens.items():
            known = followed.get(name)
            if known is not None:
                known.energy_j += count * each_j

    @_never_raises
    def returned(self, output: Any, outputs: Any) -> None:
        """A step came back, and vLLM has taken its tokens."""
        now_ms = self._now_ms()
        self._planner.drop()
        step = self.view.returned(output)
        if step is None:
            return
        self.view.times.finish(now_ms)
        # Where nothing is held back, the engine goes straight on to its next step: what lies
        # between two steps is that step's host gap, and part of what it takes.
        if not self.view.flying and (self.view.scheduler.running or self.view.scheduler.waiting):
            self._begun_ms = now_ms
        controller = self.controller
        controller.step_finished(at_ms=now_ms)
        expected, cohort, clients = (
            controller.orders.expected,
            step.cohort,
            (outputs or {}).values(),
        )
        if cohort is not None and cohort.whole:
            if not _each_a_token(clients, len(cohort.names)):
                cohort.dissolve()
            elif cohort.last_ms is not None:
                cohort.token(now_ms, expected, self.tally)
                return
            else:
                cohort.last_ms = now_ms  # from here on the same for all
        for client in clients:
            self._take(client.outputs, now_ms, expected)

    def _take(self, outputs: Iterable[Any], now_ms: float, expected: Forecast | None) -> None:
        """What requests got from a step. Once per token: written for speed."""
        followed, tally = self.view.followed, self.tally
        requests = self.view.scheduler.requests
        longest_ms = 0.0
        for one in outputs:
            name = one.request_id
            known = followed.get(name)
            if known is None:
                continue
            got = len(one.new_token_ids)
            if got:
                known.tokens += got
                known.tally.generated_tokens += got
                last_ms = known.last_token_ms
                if last_ms is None:
                    self._first_token(name, known, now_ms, expected)
                else:
                    gap_ms = now_ms - last_ms
                    known.tally.gap(gap_ms)
                    known.note_late(gap_ms)
                    known.longest_gap_ms = max(known.longest_gap_ms, gap_ms)
                    longest_ms = max(longest_ms, gap_ms)
                known.last_token_ms = now_ms
            if one.finish_reason is not None:
                self.view.forget(name)
                self._keepable.answered(known.tokens - known.prompt_tokens)
                self.controller.completion(name, at_ms=now_ms, told=known.done())
                kept = requests.get(name)
                if getattr(kept, "resumable", False) and has_next_input(kept):
                    self._follow(kept, now_ms)
        if longest_ms:
            tally.gap(longest_ms, now_ms, expected)

    def _first_token(
        self, name: str, known: Followed, now_ms: float, expected: Forecast | None
    ) -> None:
        known.first_token_ms = now_ms
        predicted_ms = None if expected is None else expected.ttft_ms.get(name)
        ttft_ms = now_ms - known.arrival_ms
        known.note_first(ttft_ms)
        self.tally.predicted(ttft_ms, predicted_ms)
        self.controller.first_token(name, at_ms=now_ms)

    def compose_with(self, step: "NextStep") -> None:
        """The compiled composer is loaded: it plans from here on. From any thread."""
        self._planner.compose_with(step)

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
        """The engine shuts down: give the clocks back, before anything else may fail."""
        if self._controller is not None:
            self._controller.close()
        closing, self._closing = self._closing, []
        for action in closing:
            try:
                action()
            except Exception:
                _LOG.debug("not closed", exc_info=True)

    def fail(self, error: Exception) -> None:
        """Stay out from now on; the clocks are given back on another thread."""
        self.failure = f"{type(error).__name__}: {error}"
        _LOG.exception("BEAM stays out from here on, vLLM schedules by itself: %s", self.failure)
        controller = self._controller
        if controller is None:
            return
        try:
            threading.Thread(target=controller.close, name="beam-close", daemon=True).start()
        except RuntimeError:  # no thread is left: its own gives them back
            controller.observe()


def _each_a_token(clients: Collection[Any], count: int) -> bool:
    """Whether these outputs are a token each for so many requests, and nobody's last."""
    for client in clients:
        for one in client.outputs:
            if one.finish_reason is not None or len(one.new_token_ids) != 1:
                return False
        count -= len(client.outputs)
    return count == 0
