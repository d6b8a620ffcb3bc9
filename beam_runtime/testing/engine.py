"""An engine on paper: it serves requests with the real composer, in virtual time.

Steps take what a table says times whatever a test wants; clocks take effect late; KV blocks run
out; hooks get lost. The tokens of a request depend on nothing but the request, so that any two
runs can be compared: whatever BEAM does or suffers, they must be the same.

What it gets wrong: a controller without threads is told at once that a clock is set, while steps
here follow it late, so that changing clocks teach its calibration a little amiss.
"""

import math
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from beam_runtime.control.controller import Controller
from beam_runtime.control.orders import Orders
from beam_runtime.emulator.composer import Step, compose
from beam_runtime.emulator.forecast import finish, issue
from beam_runtime.emulator.pipeline import ClockPlan, Pass, Pipeline, clock_index
from beam_runtime.emulator.schedule import blocks
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import (
    Correction,
    EngineLimits,
    Knobs,
    RequestState,
    Rules,
    Slo,
    Snapshot,
    StepShape,
)

# How long virtual time may jump while a controller waits for its turn.
_LONGEST_JUMP_MS = 100.0


@dataclass(frozen=True, slots=True)
class FakeRequest:
    """A request and what becomes of it: ``output_tokens`` are unknown to the controller."""

    request_id: str
    arrival_ms: float
    prompt_tokens: int
    output_tokens: int
    slo: Slo = field(default_factory=Slo)
    cached_tokens: int = 0


def token(request_id: str, number: int) -> int:
    """A request's n-th token, whoever serves it."""
    return zlib.crc32(f"{request_id}/{number}".encode())


@dataclass(slots=True)
class Ledger:
    """What was served, how late, and for how many joules.

    Attributes:
        outputs: every request's tokens.
        ttft_ms: of every request that got a token.
        tbt_ms: gaps between tokens, all requests together.
        late_tbt: how many of those were over their request's SLO.
        late_ttft: how many requests waited longer than their SLO.
        energy_j: all GPUs of the replica, idle power included.
        end_ms: when the last token came.
    """

    outputs: dict[str, list[int]] = field(default_factory=dict)
    ttft_ms: dict[str, float] = field(default_factory=dict)
    tbt_ms: list[float] = field(default_factory=list)
    late_tbt: int = 0
    late_ttft: int = 0
    energy_j: float = 0.0
    end_ms: float = 0.0


class FakeEngine:
    """Serves a list of requests; an EngineAdapter.

    Args:
        cost: what a step costs.
        limits: of the engine.
        requests: in order of arrival.
        kv_blocks: KV-cache blocks.
        gpu_clock_mhz: the lock of its GPUs; None = unlocked, the highest clock.
        slowdown: factor on the table's latencies at a time.
        stall_ms: from when to when no step comes back.
        mute: whether a hook (its name, the request) is lost on its way to the controller.
        skew_ms: the time that hooks report instead of the true one.
    """

    def __init__(
        self,
        cost: StepCost,
        limits: EngineLimits,
        requests: Sequence[FakeRequest],
        *,
        kv_blocks: int = 1 << 20,
        gpu_clock_mhz: Callable[[], int | None] = lambda: None,
        slowdown: Callable[[float], float] = lambda now_ms: 1.0,
        stall_ms: tuple[float, float] = (math.inf, math.inf),
        mute: Callable[[str, str], bool] = lambda hook, request_id: False,
        skew_ms: Callable[[float], float] = lambda now_ms: now_ms,
    ) -> None:
        self._cost = cost
        self._limits = limits
        self._to_come = deque(sorted(requests, key=lambda request: request.arrival_ms))
        self._requests = {request.request_id: request for request in requests}
        self._gpu_clock_mhz = gpu_clock_mhz
        self._slowdown = slowdown
        self._stall_ms = stall_ms
        self._mute = mute
        self._skew_ms = skew_ms
        self._top_mhz = int(cost.clocks_mhz[-1])
        self._clock = ClockPlan(self._top_mhz, self._top_mhz, -math.inf)
        own = Knobs(self._top_mhz, limits.max_batched_tokens)
        self._orders = Orders(own, Rules.vanilla(), steering=False, why="nobody steers")
        self._state = Snapshot(
            now_ms=0.0,
            limits=limits,
            knobs=own,
            stage_free_ms=(0.0,) * limits.pp,
            free_blocks=kv_blocks,
        )
        self._controller: Controller | None = None
        self.now_ms = 0.0
        self.ledger = Ledger({request.request_id: [] for request in requests})

    # The adapter's side

    def snapshot(self) -> Snapshot:
        """The engine as it is."""
        return replace(self._state, now_ms=self.now_ms)

    def apply(self, orders: Orders) -> None:
        """Serve the next steps like this."""
        if orders is not self._orders:
            self._orders = orders
            self._state = replace(self._state, correction=orders.correction)

    # The engine's loop

    def run(self, controller: Controller | None = None) -> Ledger:
        """Serve all requests, with a controller that was built with ``threads=False``."""
        self._controller = controller
        while self._to_come or self._state.running or self._state.waiting or self._state.in_flight:
            self._arrive()
            self._receive()
            if controller is not None:
                self.apply(controller.advance())
            self._follow_clock()
            move = compose(
                self._state, self._orders.knobs, self.now_ms, self._expected_ms, self._orders.rules
            )
            if isinstance(move, Step):
                self._issue(move)
            else:
                self._pass_time(move.until_ms)
        self.ledger.end_ms = self.now_ms
        return self.ledger

    def _arrive(self) -> None:
        while self._to_come and self._to_come[0].arrival_ms <= self.now_ms:
            new = self._to_come.popleft()
            self._tell(
                "arrival", new.request_id, new.prompt_tokens,
                slo=new.slo, cached_tokens=new.cached_tokens,
            )  # fmt: skip
            if new.prompt_tokens + new.output_tokens > self._limits.max_model_len:
                self._tell("abort", new.request_id)
                continue
            request = RequestState(
                new.request_id, new.prompt_tokens, new.arrival_ms, new.slo,
                cached_tokens=new.cached_tokens,
            )  # fmt: skip
            self._state = replace(self._state, waiting=(*self._state.waiting, request))

    def _issue(self, step: Step) -> None:
        for request_id in step.preempted:
            self._tell("preemption", request_id)
        if step.shape.tokens:
            self._tell_step("step_issued", step.decodes, step.chunks)
        route = self._route(step.shape) if step.shape.tokens else ()
        for one in route:
            # The idle power of this time is in the ledger already.
            at = clock_index(self._cost, self._clock.at(one.end_ms - one.busy_ms))
            idle_j = float(self._cost.idle_power_w[at]) * one.busy_ms / 1e3
            self.ledger.energy_j += one.energy_j - idle_j
        self._state = issue(self._state, step, route)

    def _receive(self) -> None:
        while self._state.in_flight and self._state.in_flight[0].finish_ms <= self.now_ms:
            names = self._state.in_flight[0].request_ids
            before = {r.request_id: r for r in (*self._state.running, *self._state.waiting)}
            self._state = finish(self._state, self.now_ms)
            self._tell_step("step_finished")
            for request_id in names:
                self._got_token(before[request_id])

    def _got_token(self, before: RequestState) -> None:
        name, ledger = before.request_id, self.ledger
        outputs = ledger.outputs[name]
        outputs.append(token(name, len(outputs)))
        if before.last_token_ms is None:
            ledger.ttft_ms[name] = self.now_ms - before.arrival_ms
            ledger.late_ttft += ledger.ttft_ms[name] > before.slo.ttft_ms
            self._tell("first_token", name)
        else:
            ledger.tbt_ms.append(self.now_ms - before.last_token_ms)
            ledger.late_tbt += ledger.tbt_ms[-1] > before.slo.tbt_ms
        if len(outputs) == self._requests[name].output_tokens:
            self._end(name)
            self._tell("completion", name)

    def _end(self, name: str) -> None:
        state = self._state
        ended = next(r for r in (*state.running, *state.waiting) if r.request_id == name)
        freed = blocks(ended.computed_tokens, ended, self._limits.block_size)
        self._state = replace(
            state,
            running=tuple(r for r in state.running if r is not ended),
            waiting=tuple(r for r in state.waiting if r is not ended),
            free_blocks=state.free_blocks + freed,
        )

    def _pass_time(self, until_ms: float) -> None:
        if self._state.in_flight:
            until_ms = min(until_ms, self._state.in_flight[0].finish_ms)
        if self._to_come:
            until_ms = min(until_ms, self._to_come[0].arrival_ms)
        if self._controller is not None or not math.isfinite(until_ms):
            until_ms = min(until_ms, self.now_ms + _LONGEST_JUMP_MS)
        at = clock_index(self._cost, self._clock.at(self.now_ms))
        idle_w = float(self._cost.idle_power_w[at]) * self._limits.pp
        self.ledger.energy_j += idle_w * max(0.0, until_ms - self.now_ms) / 1e3
        self.now_ms = max(self.now_ms, until_ms)

    # Time and clocks

    def _follow_clock(self) -> None:
        target_mhz = self._gpu_clock_mhz() or self._top_mhz
        if target_mhz != self._clock.after_mhz:
            self._clock = ClockPlan(
                self._clock.at(self.now_ms), target_mhz, self.now_ms + self._limits.clock_delay_ms
            )

    def _route(self, shape: StepShape) -> tuple[Pass, ...]:
        """What really happens to a step issued now."""
        slowdown = self._slowdown(self.now_ms)
        plant = Pipeline(self._cost, self._limits, Correction(slowdown, slowdown), self._clock)
        route = plant.travel(shape, self.now_ms, self._state.stage_free_ms)
        begin_ms, end_ms = self._stall_ms
        late_ms = end_ms - route[-1].end_ms if begin_ms <= route[-1].end_ms < end_ms else 0.0
        return tuple(replace(one, end_ms=one.end_ms + late_ms) for one in route)

    def _expected_ms(self, shape: StepShape, issue_ms: float) -> float:
        """What the composer is told: the table, corrected as the controller orders."""
        pipeline = Pipeline(self._cost, self._limits, self._orders.correction, self._clock)
        return pipeline.travel(shape, issue_ms, self._state.stage_free_ms)[-1].end_ms

    # Hooks

    def _tell(self, hook: str, request_id: str, *arguments: object, **named: object) -> None:
        if self._controller is not None and not self._mute(hook, request_id):
            at_ms = self._skew_ms(self.now_ms)
            getattr(self._controller, hook)(request_id, *arguments, at_ms=at_ms, **named)

    def _tell_step(self, hook: str, *arguments: object) -> None:
        if self._controller is not None and not self._mute(hook, ""):
            getattr(self._controller, hook)(*arguments, at_ms=self._skew_ms(self.now_ms))
