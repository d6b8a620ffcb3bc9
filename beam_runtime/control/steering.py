"""The controller without threads: events in, orders and clock wishes out.

    advance(events)  absorb -> look after -> decide, if that is asked for and due

What is known of the engine is the observer's; here it is used. Everything runs on one thread,
the controller's own or, in tests and replays, the caller's. It never raises for what an engine,
a table, a search or a clock does; it falls back.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from beam_runtime.control.calibration import Calibration
from beam_runtime.control.conditions import conditions
from beam_runtime.control.counts import Counts
from beam_runtime.control.decision_log import DecisionLog, decision_fields, forecast_fields
from beam_runtime.control.events import (
    ASK_FOR_A_DECISION,
    Arrival,
    ClockConfirmed,
    ClockRefused,
    Completion,
    Event,
    Observe,
    PassedOver,
    Promise,
    Resume,
    StepFinished,
    StepIssued,
)
from beam_runtime.control.fallback import Fallback, Fault
from beam_runtime.control.in_force import OrdersInForce
from beam_runtime.control.observer import Observer
from beam_runtime.control.orders import EngineAdapter, Orders, check_knobs
from beam_runtime.control.resources import Searches
from beam_runtime.control.steering_rules import SteeringRules
from beam_runtime.emulator.moment import Moment
from beam_runtime.errors import (
    ClockHangsError,
    ClockLostError,
    ClockPermissionError,
    ClockUnavailableError,
    TableError,
)
from beam_runtime.search.stance import Stance
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import Decision, EngineLimits, Forecast, Knobs, Slo

_LOG = logging.getLogger("beam_runtime")
_OBSERVES = "BEAM was asked to observe"
_UNOPENED = "warming up: the search is not open yet"


class Steering:
    """Decides from events.

    Args:
        cost: step costs, or why there are none.
        limits: of the engine.
        own: the engine's own settings, given back whenever BEAM does not steer.
        searches: what is asked for knobs and forecasts; None = opened() will bring them.
        stance: the rules and margins that the searches were made with.
        now_ms: the time axis of all events.
        want_clock: asks for a clock, None to release; the answer comes as an event.
        hear: is told what is promised, to most or to one; opened() may follow.
        slos: named classes; ``default`` is for requests that name none.
        kv_blocks: KV-cache blocks of the engine, where known.
        engine: its adapter, where there is one.
        rules: how often, how long, how far.
        log: where decisions go.
        sets_clocks: whether there is a way to set them.
        observing: decide and log, but order nothing and leave the clocks alone.
    """

    def __init__(
        self,
        cost: StepCost | TableError,
        limits: EngineLimits,
        own: Knobs,
        searches: Searches | None,
        stance: Stance,
        now_ms: Callable[[], float],
        want_clock: Callable[[int | None], None],
        *,
        hear: Callable[[Promise | Arrival], None] | None = None,
        slos: Mapping[str, Slo] | None = None,
        kv_blocks: int | None = None,
        engine: EngineAdapter | None = None,
        rules: SteeringRules | None = None,
        log: DecisionLog | None = None,
        sets_clocks: bool = True,
        observing: bool = False,
    ) -> None:
        self._cost = None if isinstance(cost, TableError) else cost
        self._limits = limits
        self._own = own
        self._searches = searches
        self._waiting = _UNOPENED if searches is None else ""
        self._stance = stance
        self._now_ms = now_ms
        self._want_clock = want_clock
        self._hear = hear
        self._engine = engine
        self.rules = rules or SteeringRules()
        self._log = log
        self._observing = observing
        self.counts = Counts()
        calibration = Calibration(
            limits.pp, stance.floor, self.rules.calibration, by_gap=stance.by_gap
        )
        self._seen = Observer(
            self._cost, limits, own.clock_mhz, calibration, self.counts, self._write,
            slos=slos, kv_blocks=kv_blocks,
        )  # fmt: skip
        self._fallback = Fallback(self.rules.fallback)
        self._hung = ""  # why the watchdog gave the engine its own settings
        self._asked = True
        self._sets_clocks = sets_clocks
        self._release_failed = False
        self._decided_ms = self._chosen_ms = self._resynced_ms = float("-inf")
        self._in_force = OrdersInForce(own, engine, self._waiting or "nothing decided yet")
        if isinstance(cost, TableError):
            self._fell(self._fallback.condition(Fault.TABLE, str(cost), now_ms()))

    # The loop's body

    def advance(self, events: Sequence[Event]) -> Orders:
        """Absorb what happened, look after things, decide if that is asked for and due."""
        if self._hung:  # it has come back: the clock in force is none, whatever was asked for
            self._hung, self._asked = "", True
            self._seen.clock.ask(self._own.clock_mhz, self._seen.last_ms)
        taken_in_ms = self._now_ms()
        for event in events:
            try:
                self._absorb(event, taken_in_ms)
            except Exception:  # whatever an engine put into it
                self.counts.broken_events += 1
                level = logging.DEBUG if self.counts.broken_events > 1 else logging.WARNING
                _LOG.log(level, "an event is broken and left out: %r", event, exc_info=True)
        now_ms = self._seen.time(self._now_ms())
        self._look_after(now_ms)
        if self._due(now_ms):
            self._asked, self._decided_ms = False, now_ms
            locks = self._sets_clocks and self._fallback.steering and not self._observing
            if self._release_failed and not locks:
                self._want_clock(None)
            if self._fallback.steering and self._searches is not None:
                self._decide(self._searches, now_ms)
        return self.orders

    def wait(self, why: str) -> None:
        """Searches are being opened: until the first are, the engine has its own settings."""
        if self._searches is not None:
            return
        self._waiting = why
        if self._fallback.steering and self.orders.why != why:
            self._publish(self._in_force.engines_own(why))

    def opened(self, searches: Searches, stance: Stance) -> None:
        """Here they are, for this stance: decide by it from now on."""
        self._searches, self._stance, self._waiting, self._asked = searches, stance, "", True
        self._seen.calibration.begin_from(stance.floor, by_gap=stance.by_gap)
        self._fell(self._fallback.condition(Fault.PROMISE, stance.hopeless, self._seen.last_ms))

    def unopened(self, error: Exception) -> None:
        """There will be no search: the engine has its own settings for good, or the old one."""
        if self._searches is not None:
            _LOG.warning("BEAM steers as it did before the promise was changed: %s", error)
            return
        self._waiting = ""
        detail = f"{type(error).__name__}: {error}"
        self._fell(self._fallback.condition(Fault.SEARCH, detail, self._seen.last_ms))

    def broken(self) -> None:
        """advance() itself has failed: a bug in here, to be survived."""
        _LOG.exception("a bug in BEAM")
        self._failed(Fault.SEARCH, "a bug in BEAM", self._seen.last_ms)

    def hung(self, lasted_s: float) -> None:
        """advance() does not come back: its thread is somewhere else. From the watchdog's.

        The clocks first: an adapter that hangs would hang this, too.
        """
        self._hung = f"a decision has not come back for {lasted_s:.1f} s"
        _LOG.warning("the engine has its own settings: %s", self._hung)
        self._want_clock(None)
        self._publish(self._in_force.engines_own(self._hung))

    def stop(self, free: Callable[[], None]) -> None:
        """The engine's own settings; clocks are freed before its adapter, which may do anything."""
        self._in_force.put(self._in_force.engines_own("BEAM has been stopped"))
        free()
        self._publish(self.orders)

    # What others may ask

    @property
    def orders(self) -> Orders:
        """What is in force."""
        return self._in_force.orders

    @property
    def reason(self) -> str:
        """Why BEAM does not steer; empty while it does."""
        return self._fallback.reason or self._hung or self._waiting

    @property
    def gap_ms(self) -> float:
        """How long to leave events where they are before the next advance()."""
        return self.rules.observing_gap_ms if self._observing else self.rules.least_gap_ms

    @property
    def calibration(self) -> Calibration:
        """What was learnt of the table's errors."""
        return self._seen.calibration

    @property
    def odd_events(self) -> int:
        """Events that contradicted what was known."""
        return self._seen.odd_events

    # Absorb

    def _absorb(self, event: Event, now_ms: float) -> None:
        self.counts.events += 1
        self._seen.absorb(event, now_ms)
        if isinstance(event, StepIssued | StepFinished):  # most of them are
            return
        self._asked = self._asked or isinstance(event, ASK_FOR_A_DECISION)
        match event:
            case ClockConfirmed(_, None):
                self._release_failed = False
            case ClockConfirmed():
                self._fallback.succeeded(Fault.CLOCK)
            case ClockRefused():
                self._clock_refused(event)
            case Completion(at_ms, request_id, told) if told is not None:
                self._write("request", at_ms, request_id=request_id, **told)
            case PassedOver(_, _, detail):
                self._fell(self._fallback.once(Fault.PASSED_OVER, detail, self._seen.last_ms))
            case Resume():
                self._fallback.resume()
            case Observe(_, observing):
                self._observe(observing)
            case Promise() | Arrival() if self._hear is not None:
                self._hear(event)

    def _clock_refused(self, event: ClockRefused) -> None:
        at_ms = self._seen.last_ms
        self.counts.clock_failures += 1
        self._release_failed = event.clock_mhz is None
        self._asked = True
        self._write("clock", at_ms, clock_mhz=event.clock_mhz, error=event.error.message)
        if isinstance(event.error, ClockHangsError | ClockLostError):
            self._fell(self._fallback.once(Fault.CLOCK, event.error.message, at_ms))
        elif not isinstance(event.error, ClockPermissionError | ClockUnavailableError):
            self._failed(Fault.CLOCK, event.error.message, at_ms)
        elif self._sets_clocks:
            _LOG.warning("clocks stay as they are: %s", event.error)
            self._sets_clocks = False
            self._release_failed = True  # it may have been refused, too: ask until it is done

    def _observe(self, observing: bool) -> None:
        """Look on only, or steer again: then the next decision is put in force."""
        if observing == self._observing:
            return
        self._observing = observing
        if self._fallback.steering:
            reason = _OBSERVES if observing else ""
            self._write("steering", self._seen.last_ms, steering=not observing, reason=reason)
            if observing:
                self._give_back(_OBSERVES)

    # Look after

    def _look_after(self, now_ms: float) -> None:
        self._resync(now_ms)
        self._seen.forget_lost(now_ms)
        if self._cost is None:
            return
        stand = conditions(
            self._seen, self._cost, now_ms,
            stall_ms=self.rules.stall_ms, coverage=self.rules.coverage,
        )  # fmt: skip
        for fault, detail in stand.items():
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
            self._seen.adopt(self._engine.snapshot())
        except Exception:
            _LOG.debug("the engine gave no snapshot", exc_info=True)

    # Decide

    def _due(self, now_ms: float) -> bool:
        age_ms = now_ms - self._decided_ms
        return age_ms >= (self.rules.least_gap_ms if self._asked else self.rules.refresh_ms)

    def _decide(self, searches: Searches, now_ms: float) -> None:
        moment = self._seen.moment(now_ms, self.orders.knobs)
        own = searches.predict_own if self._observing else None
        age_ms = now_ms - self._chosen_ms if self.orders.decision is not None else float("inf")
        if own is not None and age_ms < self.rules.observing_refresh_ms:
            self._predict(own, moment)
            return
        self._chosen_ms = now_ms
        search = searches.steered if self._sets_clocks else searches.unlocked
        try:
            decision = search(moment)
            check_knobs(decision.knobs, self._limits)
            expected = decision.forecast if own is None else own(moment)
        except Exception as error:
            self._unsearched(error, now_ms)
            return
        self._fallback.succeeded(Fault.SEARCH)
        search_ms = self._now_ms() - now_ms
        self.counts.search_ms += search_ms
        if search_ms > self.rules.deadline_ms:
            self.counts.late_decisions += 1
            self._failed(Fault.LATE, f"{search_ms:.0f} ms for one decision", now_ms)
            return
        self._fallback.succeeded(Fault.LATE)
        self.counts.decisions += 1
        self._seen.predicted_ttft_ms = expected.ttft_ms
        if self._observing:
            orders = self._in_force.engines_own(_OBSERVES)
        else:
            orders = self._steered(decision, moment)
        self._publish(
            replace(orders, correction=moment.correction, decision=decision, expected=expected)
        )
        if self._log is not None and not self._log.is_idle(len(moment.names), now_ms):
            fields = decision_fields(decision, moment, search_ms)
            fields["since"] = asdict(self._seen.take_gaps())
            if self._observing:
                fields["own"] = forecast_fields(expected)
            self._log.write("decision", now_ms, **fields)

    def _predict(self, own: Callable[[Moment], Forecast], moment: Moment) -> None:
        """Between an observer's decisions: what to expect of the engine, and nothing else."""
        try:
            expected = own(moment)
        except Exception as error:
            self._unsearched(error, moment.now_ms)
            return
        self._seen.predicted_ttft_ms = expected.ttft_ms
        self._publish(replace(self.orders, correction=moment.correction, expected=expected))

    def _unsearched(self, error: Exception, now_ms: float) -> None:
        self.counts.failed_searches += 1
        _LOG.debug("no decision", exc_info=error)
        self._failed(Fault.SEARCH, f"{type(error).__name__}: {error}", now_ms)

    def _steered(self, decision: Decision, moment: Moment) -> Orders:
        clock_mhz = decision.knobs.clock_mhz
        if self._sets_clocks and self._seen.clock.ask(clock_mhz, moment.now_ms):
            self._want_clock(clock_mhz)
        return Orders(decision.knobs, self._stance.rules, steering=True, why=decision.why)

    def _publish(self, orders: Orders) -> None:
        try:
            self._in_force.publish(orders)
        except Exception as error:
            if orders.steering:
                detail = f"{type(error).__name__}: {error}"
                self._failed(Fault.ENGINE, detail, self._seen.last_ms)
        else:
            self._fallback.succeeded(Fault.ENGINE)

    # Fall back

    def _failed(self, fault: Fault, detail: str, at_ms: float) -> None:
        self._fell(self._fallback.failed(fault, detail, at_ms))

    def _fell(self, fell: bool) -> None:
        if not fell:
            return
        self.counts.falls += 1
        _LOG.warning("BEAM does not steer, the engine has its own settings: %s", self.reason)
        self._write("steering", self._seen.last_ms, steering=False, reason=self.reason)
        self._give_back(self.reason)

    def _give_back(self, why: str) -> None:
        self._seen.clock.ask(self._own.clock_mhz, self._seen.last_ms)
        self._want_clock(None)
        self._publish(self._in_force.engines_own(why))

    def _write(self, kind: str, at_ms: float, **fields: Any) -> None:
        if self._log is not None:
            self._log.write(kind, at_ms, **fields)
