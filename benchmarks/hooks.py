"""What the controller costs the engine's thread.

    python benchmarks/hooks.py --table 70b.parquet [--seconds 10] [--json]

An engine's thread serves 32 running requests, with steps that take what the table says. A prompt
arrives every 2.5 ms and has its first token when the next step is back, where the oldest request
ends, so that the search on its own thread is never idle (200 decisions a second, its ceiling).
Every call is timed by itself, in two ways: ``paced`` sleeps between bursts as an engine waits for
its GPUs, ``busy`` computes between them and so holds the interpreter's lock whenever the search
does not. ``alone`` is the same without a controller behind the hooks: what timing and cold caches
cost.
"""

import argparse
import json
import time
from collections import deque
from dataclasses import asdict, dataclass
from itertools import count, cycle
from pathlib import Path

import numpy as np

from beam_runtime.control.controller import Controller
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import EngineLimits, StepShape

RUNNING = 32
PROMPT_TOKENS = 20
BURST_EVERY_S = 0.0025


@dataclass(frozen=True, slots=True)
class Hooks:
    """One way of calling them.

    Attributes:
        calls: how many were timed.
        decisions_per_s: what the search did meanwhile.
        p50_us, p99_us, p999_us, max_us: time of one call.
    """

    calls: int
    decisions_per_s: float
    p50_us: float
    p99_us: float
    p999_us: float
    max_us: float


class Deaf:
    """A controller's hooks with nobody behind them."""

    def arrival(self, request_id: str, prompt_tokens: int) -> None: ...
    def step_issued(self, decodes: list[str], chunks: list[tuple[str, int]]) -> None: ...
    def step_finished(self) -> None: ...
    def first_token(self, request_id: str) -> None: ...
    def completion(self, request_id: str) -> None: ...


def measure(
    beam: Controller | Deaf, seconds: float, stage_s: float, pp: int, *, busy: bool
) -> Hooks:
    """Call all hooks for a while and time each call."""
    times_ns: list[int] = []
    clock = time.perf_counter_ns

    def timed(hook: object, *arguments: object) -> None:
        begin = clock()
        hook(*arguments)  # type: ignore[operator]
        times_ns.append(clock() - begin)

    # Decodes go round in as many groups as there are stages: none is in two steps at a time.
    groups: list[list[str]] = [[] for _ in range(pp)]
    waiting: list[str] = []
    number, turn = count(), cycle(groups)
    # Steps in flight: when each is back, whose prompts it holds, and the group they join.
    in_flight: deque[tuple[float, list[str], list[str]]] = deque()
    before = beam.status.counts.decisions if isinstance(beam, Controller) else 0
    begin_s = next_issue_s = time.perf_counter()
    while (now_s := time.perf_counter()) - begin_s < seconds:
        waiting.append(f"r{next(number)}")
        timed(beam.arrival, waiting[-1], PROMPT_TOKENS)
        while in_flight and in_flight[0][0] <= now_s:
            timed(beam.step_finished)
            _, prompts, group = in_flight.popleft()
            for name in prompts:
                timed(beam.first_token, name)
                group.append(name)
                if len(group) > RUNNING // pp:
                    timed(beam.completion, group.pop(0))
        if now_s >= next_issue_s:
            next_issue_s = now_s + stage_s
            group = next(turn)
            in_flight.append((now_s + pp * stage_s, waiting, group))
            timed(beam.step_issued, list(group), [(name, PROMPT_TOKENS) for name in waiting])
            waiting = []
        while (left_s := now_s + BURST_EVERY_S - time.perf_counter()) > 0.0:
            if not busy:
                time.sleep(left_s)
    elapsed_s = time.perf_counter() - begin_s
    after = beam.status.counts.decisions if isinstance(beam, Controller) else 0
    us = np.array(times_ns[100:]) / 1e3
    return Hooks(
        calls=len(us),
        decisions_per_s=(after - before) / elapsed_s,
        p50_us=float(np.percentile(us, 50)),
        p99_us=float(np.percentile(us, 99)),
        p999_us=float(np.percentile(us, 99.9)),
        max_us=float(us.max()),
    )


def controlled(
    cost: StepCost, limits: EngineLimits, seconds: float, stage_s: float, *, busy: bool
) -> Hooks:
    """The hooks of a controller of its own, for steps in flight at the end are never back."""
    with Controller(cost, limits) as beam:
        while beam.warming_up:
            time.sleep(0.01)
        found = measure(beam, seconds, stage_s, limits.pp, busy=busy)
        assert not beam.status.reason, beam.status.reason
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    table = PerfTable.load(arguments.table)
    limits = EngineLimits(pp=table.pp, host_gap_ms=5.5)
    cost = StepCost.from_table(table)
    riding = RUNNING // limits.pp
    shape = StepShape(256, 0, riding, riding * PROMPT_TOKENS)
    stage_s = (float(cost.latency_ms(shape)[-1]) + limits.host_gap_ms) / 1e3
    found = {
        "alone": measure(Deaf(), arguments.seconds / 5, stage_s, table.pp, busy=False),
        **{
            name: controlled(cost, limits, arguments.seconds, stage_s, busy=name == "busy")
            for name in ("paced", "busy")
        },
    }
    report: dict[str, object] = {name: asdict(one) for name, one in found.items()}
    if arguments.json:
        print(json.dumps(report, indent=2))
        return
    for name, one in found.items():
        print(
            f"{name:>6}: p50 {one.p50_us:.2f} us, p99 {one.p99_us:.2f} us, p99.9 "
            f"{one.p999_us:.1f} us, max {one.max_us:.0f} us; {one.calls} calls, "
            f"{one.decisions_per_s:.0f} decisions/s"
        )


if __name__ == "__main__":
    main()
