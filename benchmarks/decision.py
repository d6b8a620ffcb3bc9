"""What a decision takes, how far from the best it is, and what it is held against.

    python benchmarks/decision.py [--states 1000] [--slo 1s/200ms] [--json]

* decisions over 31 clocks x 12 chunks x 4 microbatches x 4 paces on the published table of
  Llama-3 70B (A100, TP2, PP4), at three loads whose prompts and answers are drawn from the
  published trace. "median" is the trace's own, by Little's law: 2.2 requests/s of 121 tokens
  at 150 ms leave 40 running, and a decision is asked for when one more arrives;
* in the same run, a plain-Python scan of 186 points of the published model, as
  design/control.md describes it;
* forecasts of one candidate per second;
* energy regret against playing every candidate, on random states of the trace;
* time to build a controller from a table file in a new process, and until its first searched
  decision, without and with numba's cache.

Times are thread CPU time on one core (and wall time beside them), in-process, after a warm-up.
"""

import argparse
import csv
import gc
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from beam_runtime.emulator.moment import Moment
from beam_runtime.search.policy import Policy
from beam_runtime.search.search import Search
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import (
    EngineLimits,
    Knobs,
    RequestState,
    Slo,
    Snapshot,
    StepInFlight,
    StepShape,
)
from beamprof.slo import parse_slo
from beamprof.tables.importers import ImportOverrides, importer
from beamprof.tables.table_file import seal_table, write_table

DATA = Path(__file__).parents[1] / ".." / "shared" / "data" / "measured-a100"
CHUNKS = (64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 480, 512)
LIMITS = EngineLimits(pp=4, max_num_seqs=512, max_batched_tokens=512, host_gap_ms=5.5)
LOADS = {"light": (4, 32), "median": (1, 40), "heavy": (64, 256)}  # waiting, running
# What a waiting pair of GPUs draws, fitted to the measured node (design/replay.md).
IDLE_POWER_W = 90.0
# By tpot streams are a little ahead: their gaps so far, of what is promised.
MEAN_GAP = 0.95
SLO = Slo()
LONGEST_PROMPT = 10_000  # the model length the trace was served with

BUILD = """
import json, sys, time
begin = time.perf_counter()
from beam_runtime.control.controller import Controller
from beam_runtime.types import EngineLimits
imported = time.perf_counter()
controller = Controller.from_table(sys.argv[1], EngineLimits(pp=4), idle_power_w=90.0)
built = time.perf_counter()
worst_hook_ms = 0.0
with controller as beam:
    while not beam.orders.steering:
        assert beam.warming_up or not beam.status.reason, beam.status.reason
        before = time.perf_counter()
        beam.step_finished()
        worst_hook_ms = max(worst_hook_ms, (time.perf_counter() - before) * 1e3)
        time.sleep(0.002)
    steers = time.perf_counter()
print(json.dumps({
    "import_ms": (imported - begin) * 1e3,
    "construct_ms": (built - imported) * 1e3,
    "first_decision_s": steers - begin,
    "worst_hook_ms": worst_hook_ms,
}))
"""


@dataclass(frozen=True, slots=True)
class Times:
    """Of one call, in microseconds."""

    p50_us: float
    p99_us: float
    wall_p50_us: float
    wall_p99_us: float


@dataclass(frozen=True, slots=True)
class Optimality:
    """Search against every candidate, each played.

    Attributes:
        states: random states of the trace.
        kept: of these, how many have a candidate that keeps every SLO.
        missed: of those, how many the search found none for.
        mean_regret, worst_regret: energy over the best candidate's, less one.
        worst_violation: requests at risk beyond the least, where nothing keeps the SLOs.
    """

    states: int
    kept: int
    missed: int
    mean_regret: float
    worst_regret: float
    worst_violation: float


def published_table() -> PerfTable:
    """The 70B table that came with the paper."""
    path = next(DATA.glob("dvfs_profile_*70B*.csv"))
    imported = importer("beam-artifact")(path, ImportOverrides())
    return seal_table(imported.columns, imported.metadata)


def lengths() -> list[tuple[int, int]]:
    """(prompt, answer) of the published trace."""
    path = next(DATA.glob("requests_*20h00m*.csv"))
    with path.open() as file:
        rows = [(int(r["ContextTokens"]), int(r["GeneratedTokens"])) for r in csv.DictReader(file)]
    return [(prompt, max(1, answer)) for prompt, answer in rows if prompt < LONGEST_PROMPT]


def state_of(
    rng: random.Random, waiting: int, running: int, rows: list[tuple[int, int]], slo: Slo = SLO
) -> Snapshot:
    """An engine in mid-flight: decodes in up to pp groups, some of them in the pipeline."""
    groups = rng.randint(1, LIMITS.pp)
    last_ms = [-rng.uniform(0, 100) for _ in range(groups)]
    flying: list[list[str]] = [[] for _ in range(groups)]
    requests = []
    for i in range(running):
        prompt, answer = rng.choice(rows)
        group, in_flight, done = rng.randrange(groups), rng.random() < 0.6, rng.randint(1, answer)
        if in_flight:
            flying[group].append(f"r{i}")
        requests.append(
            RequestState(
                f"r{i}", prompt, -60_000.0, computed_tokens=prompt + done - (not in_flight),
                generated_tokens=done, last_token_ms=last_ms[group], slo=slo,
                first_token_ms=last_ms[group] - (done - 1) * MEAN_GAP * slo.token_ms,
            )
        )  # fmt: skip
    ends_ms = sorted(rng.uniform(0, 70) for _ in range(groups))
    in_flight_steps = tuple(
        StepInFlight(ms, tuple(names)) for ms, names in zip(ends_ms, flying, strict=True) if names
    )
    free_ms = tuple(ends_ms[-1] - 15 * (LIMITS.pp - 1 - s) for s in range(LIMITS.pp))
    queue = [
        RequestState(f"w{i}", rng.choice(rows)[0], -rng.uniform(0, 300), slo=slo)
        for i in range(waiting)
    ]
    return Snapshot(
        now_ms=0.0,
        limits=LIMITS,
        knobs=Knobs(rng.choice((510, 1050, 1110, 1410)), 256),
        running=tuple(requests),
        waiting=tuple(sorted(queue, key=lambda r: r.arrival_ms)),
        in_flight=in_flight_steps,
        stage_free_ms=free_ms if in_flight_steps else (),
        clock_since_ms=-1e6,
    )


def timed(call: Callable[[Snapshot], object], states: list[Snapshot]) -> Times:
    """One call for each state, after one that does not count."""
    call(states[0])
    cpu_us, wall_us = [], []
    gc.disable()
    for state in states:
        cpu, wall = time.thread_time_ns(), time.perf_counter_ns()
        call(state)
        cpu_us.append((time.thread_time_ns() - cpu) / 1e3)
        wall_us.append((time.perf_counter_ns() - wall) / 1e3)
    gc.enable()
    quantiles = [float(np.quantile(t, q)) for t in (cpu_us, wall_us) for q in (0.5, 0.99)]
    return Times(*quantiles)


class PublishedScan:
    """The published controller's model over 31 clocks x 6 chunks, in plain Python.

    n = all waiting prefill tokens, D = running requests, t and e looked up at the next profiled
    size, o = 12 ms:
    TBT = (t + o) pp, TTFT = (floor(n / (chunk - D div pp)) + pp - 1)(t + o) + t(rest) + wait.
    """

    overhead_ms = 12.0
    chunks = (128, 256, 320, 384, 448, 512)

    def __init__(self, table: PerfTable, cost: StepCost) -> None:
        tokens = table.columns["prefill_tokens"] + table.columns["decode_requests"]
        self.sizes = sorted({int(t) for t in tokens})
        self.clocks_mhz = cost.clocks_mhz.tolist()
        self.cost: dict[tuple[int, int], tuple[float, float]] = {}
        for size in self.sizes:
            decodes = min(60, size)
            shape = StepShape(size - decodes, 0, decodes, 2048)
            latency, energy = cost.latency_ms(shape).tolist(), cost.energy_j(shape).tolist()
            for clock, ms, joules in zip(self.clocks_mhz, latency, energy, strict=True):
                self.cost[clock, size] = ms, joules

    def size(self, tokens: int) -> int:
        """The next profiled size."""
        return next((s for s in self.sizes if s >= tokens), self.sizes[-1])

    def __call__(self, state: Snapshot) -> tuple[float, int, int]:
        """(joules per chunk, clock, chunk) of the least energy that keeps both SLOs."""
        pp, running = state.limits.pp, len(state.running)
        tokens = sum(r.prompt_tokens for r in state.waiting)
        wait_ms = max((state.now_ms - r.arrival_ms for r in state.waiting), default=0.0)
        best = (float("inf"), self.clocks_mhz[-1], 256)
        for chunk in self.chunks:
            room = chunk - running // pp
            if room <= 0:
                continue
            for clock in self.clocks_mhz:
                step_ms, step_j = self.cost[clock, self.size(chunk)]
                rest_ms, _ = self.cost[clock, self.size(tokens % room)]
                full = step_ms + self.overhead_ms
                tbt_ms = full * pp
                ttft_ms = (tokens // room + pp - 1) * full + rest_ms + wait_ms
                joules = step_j * pp * (tokens / room)
                if tbt_ms <= 200.0 and ttft_ms <= 1000.0 and joules < best[0]:
                    best = (joules, clock, chunk)
        return best


def optimality(search: Search, states: Iterator[Snapshot]) -> Optimality:
    """Search each state and play every candidate of it."""
    searcher = search._searcher
    regrets, violations, missed, count = [], [0.0], 0, 0
    for state in states:
        count += 1
        moment = Moment.of(state)
        found, best = searcher.search(moment), searcher.best_of_all(moment)
        if best.violation > 0.0:
            violations.append(found.violation - best.violation)
        elif found.violation > 0.0:
            missed += 1
        else:
            regrets.append(found.energy_j / best.energy_j - 1.0)
    return Optimality(
        states=count,
        kept=len(regrets) + missed,
        missed=missed,
        mean_regret=float(np.mean(regrets)),
        worst_regret=float(max(regrets)),
        worst_violation=float(max(violations)),
    )


def trace_states(count: int, rows: list[tuple[int, int]], slo: Slo = SLO) -> Iterator[Snapshot]:
    """Random moments: nobody to a hundred running, nobody to eight waiting."""
    for seed in range(count):
        rng = random.Random(seed)
        waiting = rng.choice((0, 0, 1, 1, 1, 2, 3, 4, 8))
        running = rng.choice((2, 8, 16, 32, 40, 48, 64, 96))
        yield state_of(rng, waiting, running, rows, slo)


def moments(states: list[Snapshot]) -> list[Moment]:
    """In columns, the form in which a controller has them."""
    return [Moment.of(state) for state in states]


def forecasts_per_s(search: Search, state: Snapshot) -> float:
    """Candidates played per CPU second."""
    knobs, moment, repeats = Knobs(1410, 256), Moment.of(state), 20
    search.forecast(moment, knobs)
    begin = time.thread_time()
    for _ in range(repeats):
        search.forecast(moment, knobs)
    return repeats / (time.thread_time() - begin)


def build(table: PerfTable) -> dict[str, dict[str, float]]:
    """A controller from a table file in a new process: without and with numba's cache.

    Of each, the milliseconds to import it and until its constructor returns, the seconds from
    the process's first line to the first searched decision, and the longest call of a hook until
    then.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.parquet"
        write_table(table.columns, table.metadata, path)
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
        command = [sys.executable, "-c", BUILD, str(path)]
        return {
            name: json.loads(
                subprocess.run(
                    command, env=environment, check=True, stdout=subprocess.PIPE, text=True
                ).stdout
            )
            for name in ("cold", "warm")
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--states", type=int, default=1000, help="for the optimality (0: none)")
    parser.add_argument("--calls", type=int, default=400, help="decisions timed per load")
    parser.add_argument("--slo", help="of the optimality's requests, such as 1s/tpot=100ms")
    parser.add_argument("--no-build", action="store_true", help="leave build times out")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"{DATA} is absent: this benchmark needs the published table and trace")
    slo = parse_slo(arguments.slo, "--slo") if arguments.slo else SLO
    table, rows = published_table(), lengths()
    cost = StepCost.from_table(table)
    search = Search(cost, LIMITS, policy=Policy(chunk_tokens=CHUNKS), idle_power_w=IDLE_POWER_W)
    scan = PublishedScan(table, search.cost)
    report: dict[str, object] = {"candidates": len(cost.clocks_mhz) * len(CHUNKS) * 4 * 4}
    for name, (waiting, running) in LOADS.items():
        states = [
            state_of(random.Random(seed), waiting, running, rows) for seed in range(arguments.calls)
        ]
        report[name] = asdict(timed(search, moments(states)))
        report[f"{name}, published 186 points"] = asdict(timed(scan, states))
        report[f"{name}, forecasts per second"] = forecasts_per_s(search, states[0])
    if arguments.states:
        report["optimality"] = asdict(optimality(search, trace_states(arguments.states, rows, slo)))
    if not arguments.no_build:
        report.update({f"build, {name}": found for name, found in build(table).items()})
    if arguments.json:
        print(json.dumps(report, indent=2))
        return
    for name, found in report.items():
        print(f"{name}: {_said(found)}")


def _said(found: object) -> str:
    if isinstance(found, dict):
        return ", ".join(f"{name} {_said(value)}" for name, value in found.items())
    return f"{found:.4g}" if isinstance(found, float) else str(found)


if __name__ == "__main__":
    main()
