"""The controller: what a serving engine embeds.

    with Controller.from_table("llama3-70b.parquet", EngineLimits(pp=4), gpus=range(8)) as beam:
        beam.arrival("r1", prompt_tokens=1500)
        beam.orders.knobs                            # before each step: what to do
        beam.step_issued([], [("r1", 512)])
        beam.step_finished()
        beam.completion("r1")

    engine's thread         beam-search              beam-clocks            guard process
    hooks ─── deque ──────> absorb, search ─ wish ──> set, read back <─ ─ ─ watches
    orders <─ reference ─── publish <─────── outcome ─┘

Hooks append and return; they never raise, and wake nobody (a wake-up costs the waker more than
everything else in a hook): the search looks by itself every few milliseconds. ``orders`` is one
reference, read without a lock and always usable. Whatever goes wrong in here, the engine has
its own settings back and the GPUs their own clocks.
"""

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from beam_runtime.clocks.base import ClockActuator
from beam_runtime.clocks.broken_pipes import broken_pipes_raise
from beam_runtime.clocks.setter import ClockSetter, SetOutcome
from beam_runtime.control.decision_log import SCHEMA, DecisionLog
from beam_runtime.control.events import (
    ClockConfirmed,
    ClockRefused,
    Event,
    Observe,
    Promise,
    Resume,
)
from beam_runtime.control.forked import tell_children
from beam_runtime.control.hooks import Hooks
from beam_runtime.control.opening import Opening, checked_slos
from beam_runtime.control.orders import EngineAdapter, Orders, check_knobs
from beam_runtime.control.resources import Searches, open_clocks, open_cost, open_table
from beam_runtime.control.status import Status
from beam_runtime.control.steering import Steering
from beam_runtime.control.steering_rules import SteeringRules
from beam_runtime.control.watchdog import Watchdog
from beam_runtime.emulator.moment import Moment
from beam_runtime.errors import BeamError, TableError
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import Decision, EngineLimits, Follows, Knobs, Slo, Snapshot

if TYPE_CHECKING:
    from beam_runtime.emulator.next_step import NextStep

_LOG = logging.getLogger("beam_runtime")

# A worker that is this far behind will not catch up; the oldest events go.
MAX_BACKLOG = 100_000
_JOIN_S = 5.0


class Controller(Hooks):
    """Steers one replica, from ``with`` to the end of the block.

    Args:
        cost: step costs from its table; a TableError says why there are none: the engine then
            keeps its own settings, and BEAM only counts.
        limits: of the engine.
        engine: its adapter; not needed where the engine calls hooks and reads ``orders``.
        actuator: sets its GPUs' clocks; None = they stay as they are.
        slos: classes by name; ``default`` is for requests that name none.
        own: the engine's own settings, given back whenever BEAM steps aside; by default its
            largest step, clocks unlocked.
        kv_blocks: its KV-cache blocks, where known.
        follows: what the engine follows of its orders; by default the chunk alone.
        rules: how often, how long, how far.
        log: where decisions go; closed at the end.
        search: finds the best knobs for a snapshot; by default the compiled search.
        observing: see observe().
        compose_with: takes the compiled composer once it is loaded, on the search's thread.
        threads: False = nothing runs by itself: call advance().
        now_ms: the time axis of all hooks, in milliseconds; time.monotonic() by default.

    Raises:
        ValueError: ``own`` is outside what ``limits`` allow, or ``follows`` is unknown.
        TypeError: ``slos`` maps no names to SLOs.
    """

    def __init__(
        self,
        cost: StepCost | TableError,
        limits: EngineLimits,
        *,
        engine: EngineAdapter | None = None,
        actuator: ClockActuator | None = None,
        slos: Mapping[str, Slo] | None = None,
        own: Knobs | None = None,
        kv_blocks: int | None = None,
        follows: Follows = Follows.CHUNK,
        rules: SteeringRules | None = None,
        log: DecisionLog | None = None,
        search: Callable[[Snapshot], Decision] | None = None,
        observing: bool = False,
        compose_with: "Callable[[NextStep], None] | None" = None,
        threads: bool = True,
        now_ms: Callable[[], float] | None = None,
    ) -> None:
        super().__init__(now_ms, self._drop)
        self._events: deque[Event] = deque()
        self._append: Callable[[Event], None] = self._drop
        self._closing = threading.Event()
        self._dropped = 0
        self._last_words_after = -1
        self._open = False
        tell_children(self._orphaned)
        self._log = log
        self.clocks = "clocks stay as they are" if actuator is None else type(actuator).__name__
        self._clocks = (
            None if actuator is None
            else ClockSetter(actuator, self._clock_outcome, threaded=threads)
        )  # fmt: skip
        top_mhz = 0 if isinstance(cost, TableError) else int(cost.clocks_mhz[-1])
        self._own = own or Knobs(top_mhz, limits.max_batched_tokens)
        check_knobs(self._own, limits)
        self._limits = limits
        self._compose_with = compose_with
        self._opening = Opening(
            cost, limits, slos or {}, self._own, search,
            follows=Follows(follows), clocks=actuator is not None,
            composer=compose_with is not None, threads=threads,
        )  # fmt: skip
        searches = None if self._opening.later else self._opening.look()
        self._steering = Steering(
            cost, limits, self._own, searches, self._opening.stance,
            self._now_ms, self._want_clock, hear=self._opening.hear,
            slos=slos, kv_blocks=kv_blocks, engine=engine, rules=rules, log=log,
            sets_clocks=actuator is not None, observing=observing,
        )  # fmt: skip
        if searches is not None:
            self._hand_over(searches)
        self._worker = (
            threading.Thread(target=self._run, name="beam-search", daemon=True) if threads else None
        )
        self._watchdog = Watchdog(self._steering.hung, self._keep_backlog_short)

    @classmethod
    def from_table(
        cls,
        path: str | Path,
        limits: EngineLimits,
        *,
        gpus: Sequence[str | int] = (),
        model: str | None = None,
        tp: int | None = None,
        device: str | None = None,
        quantization: str | None = None,
        dtype: str | None = None,
        idle_power_w: float | None = None,
        decision_log: str | Path | None = None,
        engine: EngineAdapter | None = None,
        slos: Mapping[str, Slo] | None = None,
        own: Knobs | None = None,
        kv_blocks: int | None = None,
        follows: Follows = Follows.CHUNK,
        rules: SteeringRules | None = None,
    ) -> Self:
        """A controller from files: never raises for what it finds there.

        Without a usable table BEAM does not steer, without a way to set clocks it turns the
        other knobs, without a place for its log it keeps none; each is said once.

        Args:
            path: the perf-energy table; it must be for ``limits.pp``.
            limits: of the engine.
            gpus: the replica's GPUs, by UUID or NVML index, or HOST:PORT/INDEX where they are on
                other nodes (clocks.places); none = clocks stay as they are. The table must be for
                as many, and for this kind.
            model: what the table must be for, where given.
            tp: likewise.
            device: likewise.
            quantization: the engine's method, "" where its weights are not quantised.
            dtype: of weights that are not.
            idle_power_w: a waiting stage's GPUs together, for a table that does not say.
            decision_log: file for the decisions.
            engine: see Controller.
            slos: see Controller.
            own: see Controller.
            kv_blocks: see Controller.
            follows: see Controller.
            rules: see Controller.
        """
        table = open_table(
            path, model=model, tp=tp, pp=limits.pp, device=device, gpus=gpus,
            quantization=quantization, dtype=dtype,
        )  # fmt: skip
        actuator, clocks = open_clocks(gpus, table)
        cost = open_cost(table, actuator, idle_power_w)
        log = None
        if decision_log is not None:
            try:
                log = DecisionLog(decision_log)
            except BeamError as error:
                _LOG.warning("%s", error)
        controller = cls(
            cost, limits, engine=engine, actuator=actuator, slos=slos, own=own,
            kv_blocks=kv_blocks, follows=follows, rules=rules, log=log,
        )  # fmt: skip
        controller.clocks = clocks
        _LOG.log(logging.WARNING if len(gpus) and actuator is None else logging.INFO, "%s", clocks)
        return controller

    # Lifetime

    def __enter__(self) -> Self:
        if self._open or self._closing.is_set():
            raise RuntimeError("a controller is entered once: make another for the next engine")
        if self._log is not None:
            self._log.write(
                "start", self._now_ms(),
                schema=SCHEMA, unix_s=time.time(), limits=asdict(self._limits),
                clocks=self.clocks,
            )  # fmt: skip
        if self._clocks is not None:
            self._clocks.open()
        self._open = True
        self._append = self._events.append
        if self._worker is not None:
            self._worker.start()
            self._watchdog.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give clocks and settings back and stop. May be called twice; hooks stay harmless."""
        if not self._open:
            return
        self._open = False
        self._append = self._drop
        self._closing.set()
        self._watchdog.close()
        if self._worker is not None:
            self._worker.join(_JOIN_S)
        try:
            self._steering.stop(self._clocks.close if self._clocks else lambda: None)
        finally:  # an adapter may call sys.exit()
            if self._steering.counts.events != self._last_words_after:
                self._write_stop("closed")
            if self._log is not None:
                self._log.close()

    # What the engine reads

    @property
    def orders(self) -> Orders:
        """What to do from the next step on. Cheap: one attribute."""
        return self._steering.orders

    @property
    def is_open(self) -> bool:
        """Whether it is between ``with`` and the end of the block."""
        return self._open

    @property
    def warming_up(self) -> bool:
        """Whether a search is still being opened; before the first, nothing is decided."""
        return self._opening.pending

    @property
    def status(self) -> Status:
        """How it goes."""
        steering = self._steering
        return Status(
            steering=steering.orders.steering,
            reason=steering.reason,
            clocks=self.clocks,
            counts=replace(steering.counts),
            odd_events=steering.odd_events,
            dropped_events=self._dropped,
            correction=steering.calibration.correction,
        )

    def decide(self, state: Snapshot) -> Decision:
        """The best knobs for a state, as a pure function: nothing is applied or remembered.

        Raises:
            TableError: there is no usable table.
        """
        return self._opening.pure(Moment.of(state))

    def resume(self) -> None:
        """Steer again although too many failures have switched it off."""
        self._append(Resume(self._now_ms()))

    def observe(self) -> None:
        """From now on decide and log, but order nothing; clocks are given back."""
        self._append(Observe(self._now_ms(), observing=True))

    def steer(self) -> None:
        """Steer again after observe(): the next decision is put in force."""
        self._append(Observe(self._now_ms(), observing=False))

    def promise(self, slo: Slo) -> None:
        """From now on requests that name no SLO are promised this one, and margins follow."""
        checked_slos({"default": slo})
        self._append(Promise(self._now_ms(), slo))

    def last_words(self, why: str) -> None:
        """Write ``stop`` now, for who may be killed before close(). Fit for a signal handler."""
        if self._open:
            self._write_stop(why)

    def advance(self) -> Orders:
        """Take in what the hooks were told, decide if it is time to. For use without threads."""
        self._keep_backlog_short()
        events = []
        with contextlib.suppress(IndexError):  # until it is empty; hooks may go on appending
            while True:
                events.append(self._events.popleft())
        with self._watchdog:
            orders = self._steering.advance(events)
        if self._opening.pending:
            # While it steers by an older stance it must not be away for long.
            with self._watchdog if orders.steering else contextlib.nullcontext():
                self._look_for_searches()
        return orders

    # Inside

    def _drop(self, event: Event) -> None:
        """What takes the place of append before and after its life."""
        self._dropped += 1

    def _keep_backlog_short(self) -> None:
        """Also while the worker is somewhere else; a deque of its own bound would not count."""
        with contextlib.suppress(IndexError):  # the worker takes them meanwhile
            while len(self._events) > MAX_BACKLOG:
                self._events.popleft()
                self._dropped += 1

    def _orphaned(self) -> None:
        """In a forked child: no thread is behind this object, and nothing here is its own."""
        self._open = False
        self._append = self._drop

    def _write_stop(self, why: str) -> None:
        counts = self._steering.counts
        self._last_words_after = counts.events
        if self._log is not None:
            self._log.write("stop", self._now_ms(), why=why, counts=asdict(counts))

    def _run(self) -> None:
        """The worker: every few milliseconds take in together whatever has happened."""
        broken_pipes_raise()  # the log may be one
        while not self._closing.wait(self._steering.gap_ms / 1e3):
            try:
                self.advance()
            except BaseException:  # a search that calls sys.exit() must not end this thread
                self._steering.broken()
        self._opening.close()

    def _look_for_searches(self) -> None:
        """See how far they are; until then events are taken in and nothing new is decided."""
        if self._opening.why:
            self._steering.wait(self._opening.why)
        try:
            searches = self._opening.look()
        except Exception as error:
            _LOG.debug("no search", exc_info=True)
            self._steering.unopened(error)
            return
        if searches is not None:
            self._steering.opened(searches, self._opening.stance)
            self._hand_over(searches)

    def _hand_over(self, searches: Searches) -> None:
        if searches.next_step is not None and self._compose_with is not None:
            self._compose_with(searches.next_step)

    def _want_clock(self, clock_mhz: int | None) -> None:
        if self._clocks is not None and self._open:
            self._clocks.want(clock_mhz)

    def _clock_outcome(self, outcome: SetOutcome) -> None:
        now_ms = self._now_ms()
        if outcome.error is None:
            self._append(ClockConfirmed(now_ms, outcome.clock_mhz))
        else:
            self._append(ClockRefused(now_ms, outcome.clock_mhz, outcome.error))
