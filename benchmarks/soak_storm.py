"""The storm of soak.py: real threads, real time, and every few seconds something goes wrong."""

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from soak_site import LIMITS, RULES, SLO, TABLE, rss_mb

from beam_runtime.clocks.guarded import GuardedActuator
from beam_runtime.clocks.spec import ActuatorKind, ActuatorSpec
from beam_runtime.control.controller import Controller
from beam_runtime.control.decision_log import DecisionLog, read_log
from beam_runtime.control.orders import Orders
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.smoothing import smoothed
from beam_runtime.table.step_cost import StepCost
from beam_runtime.testing.nvml_file import FileBoard
from beam_runtime.types import Follows, Slo, Snapshot, StepShape

PROMPT_TOKENS, OUTPUT_TOKENS = 16, 3  # short ones, for many events
FAULT_EVERY_S = 4.0


@dataclass
class Storm:
    """What came of it. Memory in MB: after the first minute, and at the end.

    Attributes:
        still_known: requests thought to be there a minute after all had been served.
    """

    seconds: float = 0.0
    events_sent: int = 0
    events_taken_in: int = 0
    dropped: int = 0
    odd: int = 0
    lost_requests: int = 0
    lost_steps: int = 0
    still_known: int = 0
    decisions: int = 0
    falls: int = 0
    steering_share: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)
    hooks_p50_us: float = 0.0
    hooks_p99_us: float = 0.0
    began_mb: float = 0.0
    ended_mb: float = 0.0
    most_threads: int = 0
    open_files: tuple[int, int] = (0, 0)
    locked_at_end: int = 0
    guards_left: int = 0


class Engine:
    """Serves on paper, in real time: as many requests as make ``rate`` events a second."""

    def __init__(self, cost: StepCost, board: FileBoard, rate: float, moments: random.Random):
        self._cost, self._board, self._moments = cost, board, moments
        self._rate, self._next_s, self._names = rate, time.monotonic(), iter(range(1 << 60))
        self.waiting: dict[str, int] = {}
        self.running: dict[str, int] = {}
        self.stalled_until_s = 0.0
        self.sent = 0
        self._took_us = np.zeros(1 << 21, np.float32)  # all at once: what grows is BEAM's
        self.raises = 0

    def apply(self, orders: Orders) -> None:
        if self.raises:
            self.raises -= 1
            raise RuntimeError("the adapter does not want to")

    def snapshot(self) -> Snapshot:
        raise LookupError("told by events alone")

    def tell(self, hook: Callable[..., None], *words: object) -> None:
        begun_ns = time.perf_counter_ns()
        hook(*words)
        self._took_us[self.sent % len(self._took_us)] = (time.perf_counter_ns() - begun_ns) / 1e3
        self.sent += 1

    @property
    def took_us(self) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
        """Of each hook."""
        found = self._took_us[: self.sent]
        return found[found > 0.0]

    def step(self, beam: Controller, *, arrivals: bool = True) -> None:
        """One step: who is there computes, and its tokens come back."""
        while arrivals and self._next_s <= time.monotonic() and len(self.waiting) < 256:
            name = f"r{next(self._names)}"
            self.waiting[name] = PROMPT_TOKENS
            self.tell(beam.arrival, name, PROMPT_TOKENS)
            # Three events a request, two a step: the steps' share is taken to be 60 a second.
            self._next_s += self._moments.expovariate(max(1.0, self._rate - 60.0) / 3.0)
        decodes = list(self.running)
        budget = max(0, beam.orders.knobs.chunk_tokens - len(decodes))
        chunks = []
        for name, tokens in self.waiting.items():
            if tokens > budget or len(decodes) + len(chunks) >= LIMITS.max_num_seqs:
                break
            chunks.append((name, tokens))
            budget -= tokens
        if not decodes and not chunks:
            time.sleep(0.002)
            return
        self.tell(beam.step_issued, decodes, chunks)
        context = sum(PROMPT_TOKENS + got for got in self.running.values())
        shape = StepShape(sum(n for _, n in chunks), 0, len(decodes), context)
        locked = next(iter(self._board.locked().values()), int(self._cost.clocks_mhz[-1]))
        at = int(np.abs(self._cost.clocks_mhz - locked).argmin())
        time.sleep(float(self._cost.predict(shape).latency_ms[at] + LIMITS.host_gap_ms) / 1e3)
        while time.monotonic() < self.stalled_until_s:
            time.sleep(0.01)
        self.tell(beam.step_finished)
        for name, _ in chunks:
            del self.waiting[name]
            self.running[name] = 1
            self.tell(beam.first_token, name)
        for name in decodes:
            self.running[name] += 1
            if self.running[name] >= OUTPUT_TOKENS:
                del self.running[name]
                self.tell(beam.completion, name)


class Faults:
    """Something that goes wrong, every few seconds."""

    SET = "nvmlDeviceSetGpuLockedClocks"

    def __init__(self, engine: Engine, board: FileBoard, state: Path, moments: random.Random):
        self._engine, self._board, self._state, self._moments = engine, board, state, moments
        self._next_s = time.monotonic() + FAULT_EVERY_S
        self.count: dict[str, int] = {}

    def maybe(self, beam: Controller) -> None:
        if time.monotonic() < self._next_s:
            return
        self._next_s = time.monotonic() + self._moments.expovariate(1 / FAULT_EVERY_S)
        fault = self._moments.choice(
            (self.refused, self.slow, self.hung, self.guard_killed, self.record_removed,
             self.stalled, self.another_day, self.nonsense, self.adapter, self.promise, self.policy)
        )  # fmt: skip
        self.count[fault.__name__] = self.count.get(fault.__name__, 0) + 1
        fault(beam)

    def refused(self, beam: Controller) -> None:
        self._board.script(self.SET, code=999, times=self._moments.randrange(1, 5))

    def slow(self, beam: Controller) -> None:
        self._board.script(self.SET, delay_s=0.2, times=3)

    def hung(self, beam: Controller) -> None:
        self._board.script(self.SET, delay_s=3.0, times=1, pid=os.getpid())

    def guard_killed(self, beam: Controller) -> None:
        for guard in guards():
            os.kill(guard, signal.SIGKILL)

    def record_removed(self, beam: Controller) -> None:
        (self._state / "clocks.json").unlink(missing_ok=True)

    def stalled(self, beam: Controller) -> None:
        self._engine.stalled_until_s = time.monotonic() + self._moments.uniform(0.5, 3.0)

    def another_day(self, beam: Controller) -> None:
        at_ms = self._moments.choice((1e15, float("inf"), -1.0, 0.0))
        self._engine.sent += 1
        beam.preemption("nobody", at_ms=at_ms)

    def nonsense(self, beam: Controller) -> None:
        self._engine.sent += 2
        beam.completion({})  # type: ignore[arg-type]
        beam.arrival([], "many")  # type: ignore[arg-type]

    def adapter(self, beam: Controller) -> None:
        self._engine.raises = self._moments.randrange(1, 6)

    def promise(self, beam: Controller) -> None:
        self._engine.sent += 1
        beam.promise(Slo(1000.0, self._moments.choice((100.0, 200.0, 400.0))))

    def policy(self, beam: Controller) -> None:
        self._engine.sent += 2
        beam.observe()
        time.sleep(0.5)
        beam.steer()


def last_known(log: Path) -> int:
    """How many requests the last decision knew of."""
    states = [record["state"] for record in read_log(log) if record["kind"] == "decision"]
    return sum(states[-1][name] for name in ("waiting", "running")) if states else 0


def guards() -> list[int]:
    """Processes of this one's guards."""
    tasks = Path("/proc/self/task").glob("*/children")
    children = [int(child) for task in tasks for child in task.read_text().split()]
    return [child for child in children if "clocks.watch" in _command(child)]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def storm(folder: Path, seconds: float, rate: float, seed: int) -> Storm:
    """One engine, one BEAM, and whatever goes wrong."""
    board, state = FileBoard.create(folder), folder / "state"
    os.environ.update(board.env, BEAM_STATE_DIR=str(state))
    sys.path.insert(0, str(folder))  # where the fake pynvml lies
    cost = smoothed(StepCost.from_table(PerfTable.load(TABLE)))
    spec = ActuatorSpec(ActuatorKind.NVML, ("GPU-0",))
    moments, found = random.Random(seed), Storm()
    engine = Engine(cost, board, rate, moments)
    log = DecisionLog(folder / "decisions.jsonl", max_bytes=1 << 22, kept=1)
    beam = Controller(
        cost, LIMITS, actuator=GuardedActuator(spec.open(), spec), engine=engine, rules=RULES,
        slos={"default": SLO}, log=log, follows=Follows.STEPS,
    )  # fmt: skip
    with beam:
        while beam.warming_up:
            time.sleep(0.1)
        faults = Faults(engine, board, state, moments)
        begun_s, steered, looks = time.monotonic(), 0, 0
        files = len(list(Path("/proc/self/fd").iterdir()))
        while (passed_s := time.monotonic() - begun_s) < seconds:
            engine.step(beam)
            faults.maybe(beam)
            steered, looks = steered + beam.orders.steering, looks + 1
            found.most_threads = max(found.most_threads, threading.active_count())
            if not found.began_mb and passed_s > min(60.0, seconds / 4):
                found.began_mb = rss_mb()
        while engine.running or engine.waiting:
            engine.step(beam, arrivals=False)
        until_s = time.monotonic() + 60.0  # it may have to come back from the last fault first
        while last_known(log.path) and time.monotonic() < until_s:
            time.sleep(0.5)
        found.still_known = last_known(log.path)
        found.ended_mb = rss_mb()
        found.open_files = files, len(list(Path("/proc/self/fd").iterdir()))
        status = beam.status
        found.seconds, found.steering_share = passed_s, steered / max(1, looks)
    time.sleep(1.0)
    counts = status.counts
    # Taken in are the clock's own, too.
    found.events_sent, found.events_taken_in = engine.sent, counts.events
    found.dropped, found.odd = status.dropped_events, status.odd_events
    found.lost_requests, found.lost_steps = counts.lost_requests, counts.lost_steps
    found.decisions, found.falls = counts.decisions, counts.falls
    found.faults = faults.count
    found.hooks_p50_us, found.hooks_p99_us = np.percentile(engine.took_us, (50, 99)).tolist()
    found.locked_at_end, found.guards_left = len(board.locked()), len(guards())
    return found
