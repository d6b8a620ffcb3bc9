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

import numpy as np

from beam_runtime.control.controller import Controller
from beam_runtime.control.orders import Orders
from beam_runtime.emulator.moment import Moment, gathered, snapshot_of
from beam_runtime.emulator.moves import composed, finished, issued
from beam_runtime.emulator.promises import promise
from beam_runtime.emulator.setup import HOLD, Batch, Setting, make_setup, make_tables
from beam_runtime.emulator.state import READY, Ints, empty_state
from beam_runtime.table.step_cost import StepCost, clock_index
from beam_runtime.types import Correction, EngineLimits, Follows, Knobs, Rules, Slo, Snapshot

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
        follows: what of its orders; what it does not, it does as vLLM would.
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
        follows: Follows = Follows.STEPS,
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
        self._follows = Follows(follows)
        self._tables = make_tables(cost, limits.max_batched_tokens + limits.max_num_seqs)
        self._top = len(cost.clocks_mhz) - 1
        self._clock, self._clock_before, self._switch_ms = self._top, self._top, -math.inf
        own = Knobs(int(cost.clocks_mhz[-1]), limits.max_batched_tokens)
        self._orders = Orders(own, Rules.vanilla(), steering=False, why="nobody steers")
        # A row for each request that will ever come, in order of arrival.
        self._names = [request.request_id for request in self._to_come]
        self._rows = {name: row for row, name in enumerate(self._names)}
        rows = max(1, len(self._names))
        self._state = empty_state(rows, limits.max_steps_in_flight, limits.pp, kv_blocks)
        self._state.stage_free_ms[:] = 0.0
        self._controller: Controller | None = None
        self.now_ms = 0.0
        self.ledger = Ledger({request.request_id: [] for request in requests})

    # The adapter's side

    def snapshot(self) -> Snapshot:
        """The engine as it is."""
        running, waiting = self._running(), self._waiting()
        names = [self._names[row] for row in (*running.tolist(), *waiting.tolist())]
        state = gathered(self._state, running, waiting, self.now_ms)
        orders = self._orders
        moment = Moment(self.now_ms, self._limits, orders.knobs, orders.correction, state, names)
        return snapshot_of(moment)

    def apply(self, orders: Orders) -> None:
        """Serve the next steps like this, as far as it is followed."""
        if self._follows is not Follows.STEPS:
            chunk_tokens = orders.knobs.chunk_tokens
            if self._follows is Follows.CLOCK:
                chunk_tokens = self._limits.max_batched_tokens
            knobs = Knobs(orders.knobs.clock_mhz, chunk_tokens)
            orders = replace(orders, knobs=knobs, rules=Rules.vanilla())
        self._orders = orders

    # The engine's loop

    def run(self, controller: Controller | None = None) -> Ledger:
        """Serve all requests, with a controller that was built with ``threads=False``."""
        self._controller = controller
        engine = self._state.engine[0]
        while self._to_come or engine["running"] or engine["waiting"] or engine["flying"]:
            self._arrive()
            self._receive()
            if controller is not None:
                self.apply(controller.advance())
            self._follow_clock()
            orders, setting = self._orders, self._setting()
            setup = make_setup(self._limits, orders.rules, orders.correction)
            answer, until_ms, batch, _, _ = composed(
                self._state, setting, self.now_ms, setup, self._tables
            )
            if answer == HOLD:
                self._pass_time(until_ms)
            else:
                self._issue(batch, setting)
        self.ledger.end_ms = self.now_ms
        return self.ledger

    def _running(self) -> Ints:
        rows: Ints = self._state.places["running"][: self._state.engine["running"][0]]
        return rows

    def _waiting(self) -> Ints:
        engine, places = self._state.engine[0], self._state.places
        numbers = (engine["waiting_head"] + np.arange(engine["waiting"])) % len(places)
        rows: Ints = places["waiting"][numbers]
        return rows

    def _arrive(self) -> None:
        state, engine = self._state, self._state.engine[0]
        while self._to_come and self._to_come[0].arrival_ms <= self.now_ms:
            new = self._to_come.popleft()
            self._tell(
                "arrival", new.request_id, new.prompt_tokens,
                slo=new.slo, cached_tokens=new.cached_tokens,
            )  # fmt: skip
            if new.prompt_tokens + new.output_tokens > self._limits.max_model_len:
                self._tell("abort", new.request_id)
                continue
            row, size = self._rows[new.request_id], self._limits.block_size
            hit_blocks = max(0, min(new.cached_tokens, new.prompt_tokens - 1)) // size
            record = state.requests[row]
            record["total_tokens"], record["arrival_ms"] = new.prompt_tokens, new.arrival_ms
            record["cached_tokens"], record["shared_blocks"] = hit_blocks * size, hit_blocks
            promise(record, new.slo)
            record["first_token_ms"] = math.nan
            place = (engine["waiting_head"] + engine["waiting"]) % len(state.places)
            state.places["waiting"][place] = row
            engine["waiting"] += 1

    def _issue(self, batch: Batch, setting: Setting) -> None:
        state, engine = self._state, self._state.engine[0]
        lost = self._running()[len(self._running()) - batch.preempted :]
        for row in lost[::-1].tolist():
            self._tell("preemption", self._names[row])
        if batch.items:
            decodes, chunks = [], []
            items = state.places["scheduled"][: batch.items].tolist()
            for at, row in enumerate(items):
                admitted = at >= batch.items - batch.admitted
                if state.requests["kind"][row] == READY and not admitted:
                    decodes.append(self._names[row])
                else:
                    tokens = int(state.places["scheduled_tokens"][at])
                    chunks.append((self._names[row], tokens))
            self._tell_step("step_issued", decodes, chunks)
        slowdown = self._slowdown(self.now_ms)
        truth = make_setup(self._limits, self._orders.rules, Correction(slowdown, slowdown))
        passes = issued(state, batch, self.now_ms, setting, truth, self._tables)
        if not batch.items:
            return
        begin_ms, end_ms = self._stall_ms
        if begin_ms <= state.stage_free_ms[-1] < end_ms:
            state.stage_free_ms[:] += end_ms - state.stage_free_ms[-1]
            slot = (engine["flying_head"] + engine["flying"] - 1) % len(state.flights)
            state.flights["finish_ms"][slot] = end_ms
        # The idle power of this time is in the ledger already.
        idle_w = float(self._cost.idle_power_w[self._clock_now()])
        self.ledger.energy_j += passes.energy_j - idle_w * passes.busy_ms / 1e3

    def _receive(self) -> None:
        state, engine = self._state, self._state.engine[0]
        setup = make_setup(self._limits, self._orders.rules, Correction())
        while engine["flying"]:
            slot = engine["flying_head"]
            if state.flights["finish_ms"][slot] > self.now_ms:
                return
            rows = state.members[slot, : state.flights["tokens"][slot]].copy()
            before_ms = state.requests["last_token_ms"][rows].tolist()
            finished(state, self.now_ms, setup)
            self._tell_step("step_finished")
            for row, last_ms in zip(rows.tolist(), before_ms, strict=True):
                self._got_token(row, last_ms)

    def _got_token(self, row: int, last_ms: float) -> None:
        name, ledger = self._names[row], self.ledger
        request, outputs = self._requests[name], ledger.outputs[name]
        if not outputs:
            ledger.ttft_ms[name] = self.now_ms - request.arrival_ms
            ledger.late_ttft += ledger.ttft_ms[name] > request.slo.ttft_ms
            self._tell("first_token", name)
        else:
            ledger.tbt_ms.append(self.now_ms - last_ms)
            ledger.late_tbt += ledger.tbt_ms[-1] > request.slo.token_ms
        outputs.append(token(name, len(outputs)))
        if len(outputs) == request.output_tokens:
            self._end(row)
            self._tell("completion", name)

    def _end(self, row: int) -> None:
        state, engine = self._state, self._state.engine[0]
        running, waiting, record = self._running(), self._waiting(), state.requests[row]
        if row in running:
            blocks = -(-record["computed_tokens"] // self._limits.block_size)
            engine["free_blocks"] += max(0, blocks - record["shared_blocks"])
            engine["running"] -= 1
            state.places["running"][: engine["running"]] = running[running != row]
        else:  # it was preempted after its last token had been sent for
            engine["waiting"], engine["waiting_head"] = len(waiting) - 1, 0
            state.places["waiting"][: len(waiting) - 1] = waiting[waiting != row]
        record["kind"] = record["computed_tokens"] = 0

    def _pass_time(self, until_ms: float) -> None:
        engine = self._state.engine[0]
        if engine["flying"]:
            until_ms = min(until_ms, self._state.flights["finish_ms"][engine["flying_head"]])
        if self._to_come:
            until_ms = min(until_ms, self._to_come[0].arrival_ms)
        if self._controller is not None or not math.isfinite(until_ms):
            until_ms = min(until_ms, self.now_ms + _LONGEST_JUMP_MS)
        idle_w = float(self._cost.idle_power_w[self._clock_now()]) * self._limits.pp
        self.ledger.energy_j += idle_w * max(0.0, until_ms - self.now_ms) / 1e3
        self.now_ms = float(max(self.now_ms, until_ms))

    # Time and clocks

    def _clock_now(self) -> int:
        return self._clock_before if self.now_ms < self._switch_ms else self._clock

    def _follow_clock(self) -> None:
        locked_mhz = self._gpu_clock_mhz()
        target = clock_index(self._cost, locked_mhz) if locked_mhz else self._top
        if target != self._clock:
            self._clock_before, self._clock = self._clock_now(), target
            self._switch_ms = self.now_ms + self._limits.clock_delay_ms

    def _setting(self) -> Setting:
        knobs = self._orders.knobs
        return Setting(
            self._clock, self._clock_before, self._switch_ms, int(knobs.chunk_tokens),
            int(knobs.microbatches), float(knobs.pace_ms),
        )  # fmt: skip

    # Hooks

    def _tell(self, hook: str, request_id: str, *arguments: object, **named: object) -> None:
        if self._controller is not None and not self._mute(hook, request_id):
            at_ms = self._skew_ms(self.now_ms)
            getattr(self._controller, hook)(request_id, *arguments, at_ms=at_ms, **named)

    def _tell_step(self, hook: str, *arguments: object) -> None:
        if self._controller is not None and not self._mute(hook, ""):
            getattr(self._controller, hook)(*arguments, at_ms=self._skew_ms(self.now_ms))
