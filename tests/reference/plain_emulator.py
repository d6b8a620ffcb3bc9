"""The emulator: the engine's scheduler, played forward on paper.

It answers: from this state, with these knobs, when does each waiting request get its first
token, how late do running requests get their next ones, and how many joules go by?

This is the specification, in plain Python that a reader can follow. beam_runtime.emulator is
its compiled equal, held so by a property test. ``play`` is a loop over two moves on a Snapshot,

    issue(state, step)   the composer's step enters the pipeline
    finish(state)        the oldest step comes back, and its requests get their tokens

and ``forecast`` turns what was played into a Forecast. The horizon ends when the waiting
prefills are done, and not before a fixed look-ahead. Up to the last step that carries prefill
energy is counted step by step; what follows is decode-only and counted in aggregate
(steady.py). Candidates are settled over equal work there too.

Output lengths are unknown online: running requests are assumed to go on through the horizon.
A request that cannot be admitted before another ends is blocked: no knob helps it, its TTFT is
forecast as infinite and does not count against a candidate.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from plain_composer import Step, compose, prefill_pending
from plain_moves import finish, issue
from plain_pipeline import ClockPlan, Pass, Pipeline, clock_index
from plain_promises import (
    due_ms,
    first_margin_ms,
    first_risk,
    last_token_ms,
    late_after_ms,
    queue_risk,
    stream_risk,
    tightest_ms,
    timed,
    token_ms,
)
from plain_schedule import new_tokens, servable
from plain_steady import Decoding, EqualWork, equal_work, steady

from beam_runtime.emulator.play import STARVED_STEPS
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import (
    Forecast,
    Knobs,
    Phase,
    RequestState,
    Rules,
    Snapshot,
    StepShape,
    StreamKind,
)

LOOKAHEAD_MS = 250.0
# An engine short of KV blocks may preempt for ever; a forecast may not. Moves are steps and waits:
# no state is known in which waiting leads nowhere, and a search must end in those unknown, too.
MAX_STEPS = 4096
MAX_MOVES = 4 * MAX_STEPS


def forecast(
    state: Snapshot,
    knobs: Knobs,
    cost: StepCost,
    *,
    rules: Rules | None = None,
    lookahead_ms: float = LOOKAHEAD_MS,
    prices: EqualWork | None = None,
) -> Forecast:
    """Play ``knobs`` forward from ``state``.

    Args:
        state: the engine now.
        knobs: the candidate; its clock is asked for now and takes effect after the delay.
        cost: what a stage's pass costs; its idle power must be known (not NaN).
        rules: which of the composer's rules hold.
        lookahead_ms: the horizon is at least this long.
        prices: equal_work of this state, where the caller has it already.
    """
    rules = rules or Rules()
    pipeline = Pipeline(
        cost, state.limits, state.correction, ClockPlan.asking_for(knobs.clock_mhz, state)
    )
    played = play(state, knobs, pipeline, rules, lookahead_ms)
    prices = prices or equal_work(state, cost, rules, lookahead_ms)
    clock = clock_index(cost, knobs.clock_mhz)

    prefill, pp = played.prefill, state.limits.pp
    prefill_ms = prefill.span_ms / pp
    rest_ms = max(0.0, lookahead_ms - prefill_ms)
    decoding = decode_phase(prefill.state)
    after = steady(
        decoding, knobs.microbatches, knobs.pace_ms, cost, state.limits, state.correction, rules
    )
    idle_j = float(cost.idle_power_w[clock]) * (prefill.window_ms - prefill.busy_ms) / 1e3
    horizon_ms = max(prefill_ms, lookahead_ms)
    tokens = prefill.decodes + float(after.tokens_per_ms[clock]) * rest_ms
    active_j = prefill.active_j + float(after.active_power_w[clock]) * rest_ms / 1e3
    idle_j += float(after.idle_power_w[clock]) * rest_ms / 1e3

    cycle_ms = float(after.cycle_ms[clock]) if rest_ms > 0.0 else 0.0
    worst_tbt_ms = {name: max(gap, cycle_ms) for name, gap in played.worst_tbt_ms.items()}
    correction = state.correction
    ttft, tbt = {}, {}
    served = [r for r in _everyone(state) if servable(r, state)]
    broken = queue_risk(prefill_ms, served, prices.next_ms, correction)
    for request in _everyone(state):
        name = request.request_id
        if timed(request, state).broken:
            continue
        at_risk = 0.0
        ttft_ms = played.ttft_ms.get(name, math.inf)
        if math.isfinite(ttft_ms) and name not in played.settled:
            margin_ms = first_margin_ms(request.slo.ttft_ms, correction)
            ttft[name] = ttft_ms + margin_ms - request.slo.ttft_ms
            at_risk = first_risk(ttft[name], margin_ms)
        if name in played.late_ms:
            of_token_ms = played.token_ms[name]
            late_ms = late_after_ms(
                request.slo.kind, played.late_ms[name], of_token_ms, cycle_ms, rest_ms
            )
            tbt[name] = late_ms + correction.tbt_margin_ms
            stream = stream_risk(
                request.slo, of_token_ms, tbt[name], correction.tbt_margin_ms, prices.fastest_ms
            )
            at_risk = max(at_risk, stream)
        broken += at_risk
    ttft_worst = max(ttft, key=ttft.__getitem__, default=None)
    tbt_worst = max(tbt, key=tbt.__getitem__, default=None)
    return Forecast(
        ttft_ms=played.ttft_ms,
        worst_tbt_ms=worst_tbt_ms,
        ttft_excess_ms=ttft[ttft_worst] if ttft_worst else -math.inf,
        tbt_excess_ms=tbt[tbt_worst] if tbt_worst else -math.inf,
        ttft_worst=ttft_worst,
        tbt_worst=tbt_worst,
        broken=broken,
        horizon_ms=horizon_ms,
        active_energy_j=active_j,
        idle_energy_j=idle_j,
        settlement_j=prices.settlement_j(horizon_ms, tokens),
    )


@dataclass(frozen=True, slots=True)
class PrefillPhase:
    """The part of a play up to its last step that carries prefill.

    Attributes:
        state: the engine when that step was issued; the snapshot itself where there is none.
        span_ms: from the snapshot to that step's end, summed over the stages.
        window_ms: the same from when each stage is free of what is in flight already.
        busy_ms: passes of the steps issued, summed over the stages.
        active_j: their energy.
        decodes: tokens that requests get from decoding in them.
    """

    state: Snapshot
    span_ms: float = 0.0
    window_ms: float = 0.0
    busy_ms: float = 0.0
    active_j: float = 0.0
    decodes: int = 0


@dataclass(frozen=True, slots=True)
class Played:
    """What happened on paper.

    Attributes:
        ttft_ms: of every request without a token; infinite where it stays blocked.
        worst_tbt_ms: the longest gap before a token of every request that got a second one
            or waits for it.
        late_ms: how late their streams are: by gap at worst, else at the latest token; of steps
            that were not in flight at the start.
        settled: requests whose first token was in flight at the start.
        token_ms: what each has for a token then.
        prefill: time and energy of the prefill phase.
        steps: steps issued.
    """

    ttft_ms: dict[str, float]
    worst_tbt_ms: dict[str, float]
    late_ms: dict[str, float]
    settled: set[str]
    token_ms: dict[str, float]
    prefill: PrefillPhase
    steps: int


def play(
    start: Snapshot, knobs: Knobs, pipeline: Pipeline, rules: Rules, lookahead_ms: float
) -> Played:
    """Issue steps until the prefills are done and the look-ahead is over, then drain."""
    paper = _Paper(start, pipeline)
    end_ms = start.now_ms + lookahead_ms
    while not paper.capped and not paper.starved:
        paper.moves += 1
        paper.receive_finished()
        if paper.now_ms >= end_ms and not prefill_pending(paper.state):
            break
        move = compose(paper.state, knobs, paper.now_ms, paper.finish_ms, rules)
        if isinstance(move, Step):
            paper.issue(move)
        elif not paper.wait(move.until_ms):
            break
    return paper.close()


class _Paper:
    """A play under way: the engine's state, the time, and what has been noted."""

    def __init__(self, start: Snapshot, pipeline: Pipeline) -> None:
        self.start = start
        waiting = [r for r in start.waiting if servable(r, start)]
        self.state = replace(
            start,
            running=tuple(timed(r, start) for r in start.running),
            waiting=tuple(timed(r, start) for r in waiting),
        )
        self.now_ms = start.now_ms
        self.pipeline = pipeline
        self.prefill = PrefillPhase(self.state)
        self.moves = 0
        self.steps = 0
        self.alone = 0
        self.busy_ms = 0.0
        self.active_j = 0.0
        self.decodes = 0
        self.ttft_ms = {r.request_id: math.inf for r in _everyone(start) if not r.generated_tokens}
        self.worst_tbt_ms: dict[str, float] = {}
        self.late_ms: dict[str, float] = {}
        self.settled: set[str] = set()
        self.settled_ms = max((one.finish_ms for one in start.in_flight), default=-math.inf)

    def finish_ms(self, shape: StepShape, issue_ms: float) -> float:
        """When a step would be back if it were issued then."""
        return self._route(shape, issue_ms)[-1].end_ms

    @property
    def capped(self) -> bool:
        """Whether it has gone on for too long."""
        return self.steps == MAX_STEPS or self.moves == MAX_MOVES

    @property
    def starved(self) -> bool:
        """Whether no prompt that could go has got a token for many steps."""
        return self.alone == STARVED_STEPS

    def _route(self, shape: StepShape, issue_ms: float) -> tuple[Pass, ...]:
        return self.pipeline.travel(shape, issue_ms, self.state.stage_free_ms)

    def issue(self, step: Step) -> None:
        """Send a step into the pipeline."""
        route = self._route(step.shape, self.now_ms) if step.shape.tokens else ()
        self.state = issue(self.state, step, route)
        self.steps += 1
        self.busy_ms += sum(one.busy_ms for one in route)
        self.active_j += sum(one.energy_j for one in route)
        self.decodes += len(step.decodes)
        self.alone = 0 if step.chunks or not prefill_pending(self.state) else self.alone + 1
        if step.chunks:
            now_ms = self.start.now_ms
            free_ms = [max(now_ms, free_ms) for free_ms in self.start.stage_free_ms]
            span_ms = sum(one.end_ms - now_ms for one in route)
            self.prefill = PrefillPhase(
                state=self.state,
                span_ms=span_ms,
                window_ms=span_ms - sum(free - now_ms for free in free_ms),
                busy_ms=self.busy_ms,
                active_j=self.active_j,
                decodes=self.decodes,
            )

    def wait(self, until_ms: float) -> bool:
        """Let time pass until then, or until a step comes back; False where neither happens."""
        if self.state.in_flight:
            until_ms = min(until_ms, self.state.in_flight[0].finish_ms)
        if math.isinf(until_ms):
            return False
        self.now_ms = max(self.now_ms, until_ms)
        return True

    def receive_finished(self) -> None:
        """Take back every step that has finished by now."""
        while self.state.in_flight and self.state.in_flight[0].finish_ms <= self.now_ms:
            returned = set(self.state.in_flight[0].request_ids)
            for request in _everyone(self.state):
                if request.request_id in returned:
                    self._note(request, self.now_ms)
            self.state = finish(self.state, self.now_ms)
        if self.now_ms <= max(self.start.now_ms, self.settled_ms):
            self.late_ms.clear()
            self.settled = {name for name, ms in self.ttft_ms.items() if ms < math.inf}

    def _note(self, request: RequestState, at_ms: float) -> None:
        name = request.request_id
        if request.generated_tokens == 0:
            self.ttft_ms[name] = max(0.0, at_ms - request.arrival_ms)
        else:
            last_ms = last_token_ms(request, self.start)
            gap_ms = at_ms - last_ms
            self.worst_tbt_ms[name] = max(self.worst_tbt_ms.get(name, 0.0), gap_ms)
            late_ms = at_ms - due_ms(request, self.start)
            if request.slo.kind is StreamKind.GAP:
                late_ms = max(late_ms, self.late_ms.get(name, -math.inf))
            self.late_ms[name] = late_ms

    def close(self) -> Played:
        """Drain the pipeline; then note how long the starved have been waiting."""
        stop_ms, capped = self.now_ms, self.capped
        while self.state.in_flight:
            self.wait(math.inf)
            self.receive_finished()
        starved = self.starved
        for request in _everyone(self.state):
            if request.generated_tokens or capped:
                self._note(request, stop_ms)
            elif starved:
                waited_ms = stop_ms - request.arrival_ms
                overdue_ms = self.state.correction.patience_slos * request.slo.ttft_ms
                self.ttft_ms[request.request_id] = max(waited_ms, overdue_ms)
        left_ms = {r.request_id: token_ms(r) for r in _everyone(self.state)}
        return Played(
            self.ttft_ms, self.worst_tbt_ms, self.late_ms, self.settled, left_ms, self.prefill,
            self.steps,
        )  # fmt: skip


def decode_phase(state: Snapshot) -> Decoding:
    """What will be decoding once the steps in flight are back."""
    groups = sum(1 for step in state.in_flight if step.request_ids)
    groups += any(r.phase is Phase.DECODE and new_tokens(r, state) > 0 for r in state.running)
    return Decoding(
        requests=len(state.running),
        context_tokens=sum(r.computed_tokens for r in state.running),
        tbt_ms=tightest_ms(timed(r, state) for r in state.running),
        groups=max(1, groups),
        by_gap=any(r.slo.kind is StreamKind.GAP for r in state.running),
    )


def _everyone(state: Snapshot) -> Iterable[RequestState]:
    return (*state.running, *state.waiting)
