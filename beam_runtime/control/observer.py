"""What is known of an engine and its clocks: events in, moments out.

    requests, KV blocks         tracker
    steps in the pipeline       step_watch
    what the GPUs run at        clock_state
    how far the table is off    calibration

It decides nothing. Time never goes back here, whatever an engine reports.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

from beam_runtime.control.calibration import Calibration
from beam_runtime.control.clock_state import ClockState
from beam_runtime.control.counts import Counts
from beam_runtime.control.events import (
    Abort,
    Arrival,
    ClockConfirmed,
    ClockRefused,
    Completion,
    Event,
    FirstToken,
    Preemption,
    Promise,
    StepFinished,
    StepIssued,
)
from beam_runtime.control.step_watch import StepWatch
from beam_runtime.control.tracker import Gaps, Tracker
from beam_runtime.emulator.moment import Moment
from beam_runtime.search.keepable import Keepable
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import EngineLimits, Knobs, Slo, Snapshot

_LOG = logging.getLogger("beam_runtime")

# Times further from now than this are on another axis, or nonsense.
AHEAD_MS, BEHIND_MS = 60_000.0, 3_600_000.0


class Observer:
    """Takes in what engine and clocks tell.

    Args:
        cost: step costs; None = no table, nothing is learnt.
        limits: of the engine.
        top_mhz: the clock of released GPUs.
        calibration: learns from steps and first tokens.
        counts: where oddities are counted.
        note: takes a record for the decision log.
        slos: named classes; ``default`` is for requests that name none.
        kv_blocks: KV-cache blocks of the engine, where known.

    Attributes:
        last_ms: the latest time that was told.
        predicted_ttft_ms: what first tokens are held against, by request.
    """

    def __init__(
        self,
        cost: StepCost | None,
        limits: EngineLimits,
        top_mhz: int,
        calibration: Calibration,
        counts: Counts,
        note: Callable[..., None],
        *,
        slos: Mapping[str, Slo] | None = None,
        kv_blocks: int | None = None,
    ) -> None:
        self._limits = limits
        self._keepable = None if cost is None else Keepable(cost, limits)
        self._slos = {"default": Slo(), **(slos or {})}
        self._counts = counts
        self._note = note
        self.calibration = calibration
        self.clock = ClockState(top_mhz)
        self._tracker = Tracker(limits, kv_blocks)
        self._steps = StepWatch(cost, limits, self.clock, calibration)
        self.last_ms = float("-inf")
        self.predicted_ttft_ms: Mapping[str, float] = {}

    @property
    def odd_events(self) -> int:
        """Events that contradicted what was known."""
        return self._tracker.odd_events

    @property
    def load(self) -> tuple[int, int]:
        """(running requests, their KV tokens together)."""
        return self._tracker.load

    def silent_ms(self, now_ms: float) -> float:
        """How long steps have been in flight without one coming back; 0 where none are."""
        return self._steps.silent_ms(now_ms)

    def moment(self, now_ms: float, knobs: Knobs) -> Moment:
        """The engine now, as far as events tell, with the knobs in force."""
        told = self._tracker.moment(
            now_ms,
            replace(knobs, clock_mhz=self.clock.asked_mhz),
            self._steps.finishes_ms(now_ms),
            self._steps.stage_free_ms(),
        )
        return self.calibration.corrected(
            replace(
                told,
                clock_since_ms=self.clock.since_ms,
                previous_clock_mhz=self.clock.previous_mhz,
            )
        )

    def time(self, at_ms: float) -> float:
        """The later of ``at_ms`` and what was told before."""
        self._counts.backward_times += at_ms < self.last_ms
        self.last_ms = max(self.last_ms, at_ms)
        return self.last_ms

    def absorb(self, event: Event, now_ms: float) -> None:
        """Take in one event, at ``now_ms`` or a little after."""
        if not now_ms - BEHIND_MS <= event.at_ms <= now_ms + AHEAD_MS:
            self._counts.wrong_times += 1
            event = event._replace(at_ms=now_ms)
        match event:  # the most frequent ones first
            case StepIssued(at_ms, decodes, chunks):
                at_ms = self.time(at_ms)
                for _ in range(self._tracker.steps_unheard(decodes)):
                    self._counts.lost_steps += 1
                    self._tracker.finished(at_ms)
                    self._steps.lost()
                self._steps.issued(self._tracker.issued(decodes, chunks, at_ms), at_ms)
            case StepFinished(at_ms):
                self._step_finished(self.time(at_ms))
            case Arrival(at_ms):
                # It may have queued elsewhere before, but it cannot come from the future.
                event = event._replace(at_ms=min(at_ms, now_ms))
                waited_slos = self._tracker.longest_wait_slos(event.at_ms)
                to_compute = max(1, event.prompt_tokens - event.cached_tokens)
                self.calibration.observe_arrival(event.at_ms, waited_slos, to_compute)
                self._tracker.arrived(event, self._served(event.slo))
            case FirstToken(at_ms, request_id):
                self._first_token(request_id, self.time(at_ms))
            case Completion(_, request_id) | Abort(_, request_id):
                self._ended(request_id, whole=isinstance(event, Completion))
            case Preemption(_, request_id):
                self._tracker.preempted(request_id)
            case ClockConfirmed(at_ms, clock_mhz):
                self.clock.confirm(clock_mhz, self.time(at_ms))
            case ClockRefused(at_ms):
                self.clock.refuse(self.time(at_ms))
            case Promise(_, slo):
                self._slos["default"] = slo

    def take_gaps(self) -> Gaps:
        """Gaps between tokens since this was last asked."""
        return self._tracker.take_gaps()

    def adopt(self, theirs: Snapshot) -> None:
        """Take the engine's own word for its requests."""
        self._counts.lost_requests += self._tracker.adopt(theirs)

    def forget_lost(self, now_ms: float) -> None:
        """Forget requests whose end was not reported."""
        self._counts.lost_requests += len(self._tracker.forget_lost(now_ms))

    def _ended(self, request_id: str, *, whole: bool) -> None:
        tokens = self._tracker.ended(request_id)
        if not tokens:  # none of one unknown
            return
        running, _ = self._tracker.load
        self.calibration.observe_answer(tokens, running)
        if whole and self._keepable is not None:
            self._keepable.answered(tokens)

    def _served(self, named: Slo | str | None) -> Slo:
        """What a request is promised, as it is served."""
        slo, default = self._slo(named), self._slos["default"]
        return slo if self._keepable is None else self._keepable.served(slo, default)

    def _slo(self, named: Slo | str | None) -> Slo:
        if isinstance(named, Slo):
            return named
        known = isinstance(named, str) and named in self._slos  # whatever an engine puts there
        if named is not None and not known:
            self._counts.unknown_classes += 1
            if self._counts.unknown_classes == 1:
                _LOG.warning(
                    "no SLO class %.60r (known: %s): its requests get the default",
                    named, ", ".join(self._slos),
                )  # fmt: skip
            named = None
        return self._slos[named or "default"]

    def _first_token(self, request_id: str, at_ms: float) -> None:
        found = self._tracker.first_token(request_id, at_ms)
        if found is None:
            return
        actual_ms, slo = found
        predicted_ms = self.predicted_ttft_ms.get(request_id)
        if predicted_ms is not None:
            self.calibration.observe_ttft(predicted_ms, actual_ms)
        self._note(
            "first_token", at_ms,
            request_id=request_id, predicted_ms=predicted_ms, actual_ms=actual_ms,
            slo_ms=slo.ttft_ms,
        )  # fmt: skip

    def _step_finished(self, at_ms: float) -> None:
        self._tracker.finished(at_ms)
        drift = self._steps.finished(at_ms)
        if drift is not None:
            _LOG.warning("drift: %s; was the table measured with this engine?", drift)
            self._note("drift", at_ms, step=str(drift.kind), ratio=drift.ratio)
