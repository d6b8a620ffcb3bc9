"""The controller without threads: events in, orders and clock wishes out.

    advance(events)  absorb -> watch (stall, coverage, trust) -> decide, if asked and due

Everything here runs on one thread, the controller's own or, in tests and replays, the
caller's. It never raises for what an engine, a table, a search or a clock does; it falls back.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from beam_runtime.calibration import Calibration, CalibrationRules
from beam_runtime.clock_state import ClockState
from beam_runtime.cost import StepCost
from beam_runtime.decisions import DecisionLog, decision_fields
from beam_runtime.engines.base import EngineAdapter, Orders, check_knobs
from beam_runtime.errors import ClockPermissionError, ClockUnavailableError, TableError
from beam_runtime.events import (
    ASK_FOR_A_DECISION,
    Abort,
    Arrival,
    ClockConfirmed,
    ClockRefused,
    Completion,
    Event,
    FirstToken,
    Preemption,
    Resume,
    StepFinished,
    StepIssued,
)
from beam_runtime.fallback import Fallback, FallbackRules, Fault
from beam_runtime.resources import Searcher
from beam_runtime.stance import Stance
from beam_runtime.step_watch import StepWatch
from beam_runtime.tracker import Tracker
from beam_runtime.types import EngineLimits, Knobs, Rules, Slo, Snapshot

_LOG = logging.getLogger("beam_runtime")


@dataclass(frozen=True, slots=True)
class SteeringRules:
    """How often, how long, how far.

    Attributes:
        least_gap_ms: between two decisions; what happens in between is taken in together.
        refresh_ms: a decision this old is made anew while there are requests.
        deadline_ms: a decision that took longer describes an engine that is gone.
        stall_ms: steps in flight and none back for this long: the engine hangs.
        resync_ms: how often an adapter is asked for the engine's own view.
        coverage: how far beyond its largest measured batch and context a table is believed.
        calibration, fallback: see there.
    """

    least_gap_ms: float = 5.0
    refresh_ms: float = 250.0
    deadline_ms: float = 20.0
    stall_ms: float = 5_000.0
    resync_ms: float = 1_000.0
    coverage: float = 2.0
    calibration: CalibrationRules = field(default_factory=CalibrationRules)
    fallback: FallbackRules = field(default_factory=FallbackRules)


@dataclass(slots=True)
class Counts:
    """What has happened so far; goes on while fallen back."""

    events: int = 0
    broken_events: int = 0
    decisions: int = 0
    late_decisions: int = 0
    failed_searches: int = 0
    clock_failures: int = 0
    falls: int = 0
    backward_times: int = 0
    lost_requests: int = 0
    unknown_classes: int = 0


class Steering:
    """Decides from events.

    Args:
        cost: step costs, or why there are none.
        limits: of the engine.
        own: the engine's own settings, given back whenever BEAM does not steer.
        search: finds the best knobs for a snapshot.
        search_unlocked: the same at the highest clock only; taken where clocks cannot be set.
        stance: the rules and margins that the searches were made with.
        now_ms: the time axis of all events.
        want_clock: asks for a clock, None to release; the answer comes as an event.
        slos: named classes; ``default`` is for requests that name none.
        kv_blocks: KV-cache blocks of the engine, where known.
        engine: its adapter, where there is one.
        rules: how often, how long, how far.
        log: where decisions go.
    """

    def __init__(
        self,
        cost: StepCost | TableError,
        limits: EngineLimits,
        own: Knobs,
        search: Searcher,
        search_unlocked: Searcher,
        stance: Stance,
        now_ms: Callable[[], float],
        want_clock: Callable[[int | None], None],
        *,
        slos: Mapping[str, Slo] | None = None,
        kv_blocks: int | None = None,
        engine: EngineAdapter | None = None,
        rules: SteeringRules | None = None,
        log: DecisionLog | None = None,
    ) -> None:
        self._cost = None if isinstance(cost, TableError) else cost
        self._limits = limits
        self._own = own
        self._search = search
        self._search_unlocked = search_unlocked
        self._stance = stance
        self._now_ms = now_ms
        self._want_clock = want_clock
        self._slos = {"default": Slo(), **(slos or {})}
        self._engine = engine
        self.rules = rules or SteeringRules()
        self._log = log
        self._tracker = Tracker(limits, kv_blocks)
        self._calibration = Calibration(limits.pp, stance.floor, self.rules.calibration)
        self._steps = StepWatch(self._cost, limits, self._calibration)
        self._clock = ClockState(own.clock_mhz)
        self._fallback = Fallback(self.rules.fallback)
        self._predicted_ttft_ms: Mapping[str, float] = {}
        self._asked = True
        self._release_failed = False
        self._last_ms = self._decided_ms = self._resynced_ms = float("-inf")
        self._taken_in_ms = float("-inf")
        self.counts = Counts()
        self.orders = Orders(own, Rules.vanilla(), steering=False, why="nothing decided yet")
        if isinstance(cost, TableError):
            self._fell(self._fallback.condition(Fault.TABLE, str(cost), now_ms()))

    # What others may ask

    @property
    def reason(self) -> str:
        """Why BEAM does not steer; empty while it does."""
        return self._fallback.reason

    @property
    def calibration(self) -> Calibration:
        """What was learnt of the table's errors."""
        return self._calibration

    @property
    def odd_events(self) -> int:
        """Events that contradicted what was known."""
        return self._tracker.odd_events

    def snapshot(self, now_ms: float) -> Snapshot:
        """The engine now, as far as events tell."""
        view = self._tracker.view(self._steps.finishes_ms(now_ms))
        return Snapshot(
            now_ms=now_ms,
            limits=self._limits,
            knobs=replace(self.orders.knobs, clock_mhz=self._clock.asked_mhz),
            running=view.running,
            waiting=view.waiting,
            in_flight=view.in_flight,
            stage_free_ms=self._steps.stage_free_ms(),
            free_blocks=view.free_blocks,
            clock_since_ms=self._clock.since_ms,
            previous_clock_mhz=self._clock.previous_mhz,
            correction=self._calibration.correction,
        )

    # The loop's body

    def advance(self, events: Sequence[Event]) -> Orders:
        """Absorb what happened, look after things, decide if that is asked for and due."""
        self._taken_in_ms = self._now_ms()
        for event in events:
            try:
                self._absorb(event)
            except Exception:  # whatever an engine put into it
                self.counts.broken_events += 1
                _LOG.debug("broken event %r", event, exc_info=True)
        now_ms = self._time(self._now_ms())
        self._look_after(now_ms)
        asked = self._asked or now_ms - self._decided_ms >= self.rules.refresh_ms
        if asked and now_ms - self._decided_ms >= self.rules.least_gap_ms:
            self._asked = False
            self._decided_ms = now_ms
            if self._fallback.steering:
                self._decide(now_ms)
            elif self._release_failed:
                self._want_clock(None)
        return self.orders

    def broken(self) -> None:
        """advance() itself has failed: a bug in here, to be survived."""
        _LOG.exception("a bug in BEAM")
        self._fell(self._fallback.failed(Fault.SEARCH, "a bug in BEAM", self._last_ms))

    def stop(self) -> None:
        """The engine has its own settings from now on."""
        self._publish(self._own_orders("BEAM has been stopped"))

    # Events

    def _time(self, at_ms: float) -> float:
        """Time never goes back here, whatever an engine reports."""
        self.counts.backward_times += at_ms < self._last_ms
        self._last_ms = max(self._last_ms, at_ms)
        return self._last_ms

    def _absorb(self, event: Event) -> None:
        self.counts.events += 1
        self._asked = self._asked or isinstance(event, ASK_FOR_A_DECISION)
        match event:
            case Arrival(at_ms):
                # It may have queued elsewhere before, but it cannot come from the future.
                event = event._replace(at_ms=min(at_ms, self._taken_in_ms))
                self._tracker.arrived(event, self._slo(event.slo))
            case FirstToken(at_ms, request_id):
                self._first_token(request_id, self._time(at_ms))
            case Completion(_, request_id) | Abort(_, request_id):
                self._tracker.ended(request_id)
            case Preemption(_, request_id):
                self._tracker.preempted(request_id)
            case StepIssued():
                self._issued(event.decodes, event.chunks, self._time(event.at_ms))
            case StepFinished(at_ms):
                self._finished(self._time(at_ms))
            case ClockConfirmed():
                self._clock_confirmed(event)
            case ClockRefused():
                self._clock_refused(event)
            case Resume():
                self._fallback.resume()

    def _slo(self, named: Slo | str | None) -> Slo:
        if isinstance(named, Slo):
            return named
        if named is not None and named not in self._slos:
            self.counts.unknown_classes += 1
            if self.counts.unknown_classes == 1:
                _LOG.warning(
                    "no SLO class %r (known: %s): its requests get the default",
                    named, ", ".join(self._slos),
                )  # fmt: skip
            named = None
        return self._slos[named or "default"]

    def _first_token(self, request_id: str, at_ms: float) -> None:
        actual_ms = self._tracker.first_token(request_id, at_ms)
        predicted_ms = self._predicted_ttft_ms.get(request_id)
        if actual_ms is None or predicted_ms is None:
            return
        self._calibration.observe_ttft(predicted_ms, actual_ms)
        self._write(
            "first_token", at_ms,
            request_id=request_id, predicted_ms=predicted_ms, actual_ms=actual_ms,
        )  # fmt: skip

    def _issued(
        self, decodes: Sequence[str], chunks: Sequence[tuple[str, int]], at_ms: float
    ) -> None:
        shape = self._tracker.issued(decodes, chunks, at_ms)
        self._steps.issued(shape, at_ms, self._clock.running_mhz)

    def _finished(self, at_ms: float) -> None:
        self._tracker.finished(at_ms)
        drift = self._steps.finished(at_ms, self._clock.settled_ms)
        if drift is not None:
            _LOG.warning("drift: %s; was the table measured with this engine?", drift)
            self._write("drift", at_ms, step=str(drift.kind), ratio=drift.ratio)

    # Clocks

    def _clock_confirmed(self, event: ClockConfirmed) -> None:
        self._clock.confirm(event.clock_mhz, self._last_ms)
        if event.clock_mhz is None:
            self._release_failed = False
        else:
            self._fallback.succeeded(Fault.CLOCK)

    def _clock_refused(self, event: ClockRefused) -> None:
        """The GPUs are released, so they run at their highest clock from now on."""
        at_ms = self._time(event.at_ms)
        self.counts.clock_failures += 1
        self._release_failed = event.clock_mhz is None
        self._clock.refuse(at_ms)
        self._asked = True
        self._write("clock", at_ms, clock_mhz=event.clock_mhz, error=event.error.message)
        if isinstance(event.error, ClockPermissionError | ClockUnavailableError):
            if self._search is not self._search_unlocked:
                _LOG.warning("clocks stay as they are: %s", event.error)
                self._search = self._search_unlocked
        else:
            self._fell(self._fallback.failed(Fault.CLOCK, event.error.message, at_ms))

    # Looking after things

    def _look_after(self, now_ms: float) -> None:
        self._resync(now_ms)
        self.counts.lost_requests += len(self._tracker.forget_lost(now_ms))
        if self._cost is None:
            return
        conditions = {
            Fault.STALL: self._stalled(now_ms),
            Fault.COVERAGE: self._uncovered(self._cost),
            Fault.MODEL: "" if self._calibration.trusted else "a scale has reached its clamp",
        }
        for fault, detail in conditions.items():
            self._fell(self._fallback.condition(fault, detail, now_ms))
        if self._fallback.try_again(now_ms):
            _LOG.warning("BEAM steers again")
            self._write("steering", now_ms, steering=True, reason="")
            self._asked = True

    def _resync(self, now_ms: float) -> None:
        if self._engine is None or now_ms - self._resynced_ms < self.rules.resync_ms:
            return
        self._resynced_ms = now_ms
        try:
            theirs = self._engine.snapshot()
        except Exception:
            _LOG.debug("the engine gave no snapshot", exc_info=True)
            return
        lost = self._tracker.adopt(theirs)
        self.counts.lost_requests += lost

    def _stalled(self, now_ms: float) -> str:
        silent_ms = self._steps.silent_ms(now_ms)
        if silent_ms < self.rules.stall_ms:
            return ""
        return f"a step is in flight and none came back for {silent_ms / 1e3:.0f} s"

    def _uncovered(self, cost: StepCost) -> str:
        requests, context_tokens = self._tracker.load
        for name, value in (
            ("decode_requests", requests),
            ("decode_context_tokens", context_tokens),
        ):
            largest = cost.fit.largest[name]
            if value > self.rules.coverage * largest:
                return f"{value} {name.replace('_', ' ')}, measured up to {largest:.0f}"
        return ""

    def _fell(self, fell: bool) -> None:
        if not fell:
            return
        self.counts.falls += 1
        _LOG.warning("BEAM does not steer, the engine has its own settings: %s", self.reason)
        self._write("steering", self._last_ms, steering=False, reason=self.reason)
        self._clock.ask(self._clock.top_mhz, self._last_ms)
        self._want_clock(None)
        self._publish(self._own_orders(self.reason))

    def _own_orders(self, why: str) -> Orders:
        number = self.orders.number + 1
        return Orders(self._own, Rules.vanilla(), steering=False, why=why, number=number)

    # Deciding

    def _decide(self, now_ms: float) -> None:
        state = self.snapshot(now_ms)
        try:
            decision = self._search(state)
            check_knobs(decision.knobs, self._limits)
        except Exception as error:
            self.counts.failed_searches += 1
            _LOG.debug("no decision", exc_info=True)
            detail = f"{type(error).__name__}: {error}"
            self._fell(self._fallback.failed(Fault.SEARCH, detail, now_ms))
            return
        self._fallback.succeeded(Fault.SEARCH)
        search_ms = self._now_ms() - now_ms
        if search_ms > self.rules.deadline_ms:
            self.counts.late_decisions += 1
            detail = f"{search_ms:.0f} ms for one decision"
            self._fell(self._fallback.failed(Fault.LATE, detail, now_ms))
            return
        self._fallback.succeeded(Fault.LATE)
        self.counts.decisions += 1
        self._predicted_ttft_ms = decision.forecast.ttft_ms
        if self._clock.ask(decision.knobs.clock_mhz, now_ms):
            self._want_clock(decision.knobs.clock_mhz)
        orders = Orders(
            decision.knobs, self._stance.rules, steering=True, why=decision.why,
            correction=state.correction, decision=decision, number=self.orders.number + 1,
        )  # fmt: skip
        self._publish(orders)
        if self._log is not None:
            self._log.write("decision", now_ms, **decision_fields(decision, state, search_ms))

    def _publish(self, orders: Orders) -> None:
        self.orders = orders
        if self._engine is None:
            return
        try:
            self._engine.apply(orders)
        except Exception as error:
            detail = f"the engine refused orders: {type(error).__name__}: {error}"
            if orders.steering:
                self._fell(self._fallback.failed(Fault.SEARCH, detail, self._last_ms))

    def _write(self, kind: str, at_ms: float, **fields: Any) -> None:
        if self._log is not None:
            self._log.write(kind, at_ms, **fields)
