"""What BEAM's hooks add to a step of vLLM's scheduler, in the same run with and without them.

vLLM's own Scheduler class without a model, twice: plain, and made by make_scheduler (steering,
its controller and search thread running). Both are fed the same requests and take their steps in
turns, so that whatever this machine does hits both. A step is schedule() and
update_from_output() together, with BEAM the gate before them as well: in a CPU engine's long
passes the difference would vanish. Orders are given, so that BEAM steers whatever this machine's
passes take; its controller absorbs events and searches meanwhile. Rows for each number of running
requests:

    free    every ready decode at once
    paced   batches are held for 5 ms, and the gate is asked every millisecond
    async   as free, under vLLM's AsyncScheduler, which is the default on GPUs
    mixed   as free, and after every fourth step a request has ended and another comes: the
            composer looks at each of them, and the search has reasons to decide anew

``added`` is the difference of the two schedulers; ``inside`` is what passed inside BEAM's hooks
of a step, which other work of the machine blurs less. Compare with 100 us (p50), 300 us (p99).

    python benchmarks/vllm_hooks.py [--json] [--running 8 32 128]
"""

import argparse
import gc
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from beam_runtime.engines.vllm.gate import Gate

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "vllm"))

STEPS = 400
PACE_MS = {"free": 0.0, "paced": 5.0, "async": 0.0, "mixed": 0.0}
STEPS_PER_ARRIVAL = 4
HOOKS = ("gate", "constrained", "issued", "returned", "added")


class Ordered:
    """The real controller, with orders of the benchmark's own, as cheap to read and to tell."""

    def __init__(self, controller: Any, pace_ms: float) -> None:
        from beam_runtime.types import Rules

        self._controller = controller
        knobs = replace(controller.orders.knobs, microbatches=1, pace_ms=pace_ms)
        # The stand-in for the pass ends at once: nothing is waited for that never comes.
        rules = Rules(just_in_time=False)
        self._given = SimpleNamespace(
            orders=replace(controller.orders, knobs=knobs, rules=rules, steering=True)
        )
        for hook in ("arrival", "first_token", "step_issued", "step_finished", "completion"):
            setattr(self, hook, getattr(controller, hook))

    @property
    def orders(self) -> Any:
        return self._given.orders

    def __getattr__(self, name: str) -> Any:
        return getattr(self._controller, name)


@dataclass
class Engine:
    """One scheduler with its decodes running, and what its steps took."""

    rig: Any
    costs_us: list[float] = field(default_factory=list)
    inside_us: list[float] = field(default_factory=list)
    spent_us: float = 0.0

    arrived: int = 0

    def begin(self, running: int, *, change: bool) -> None:
        """Get every request through its prompt; with ``change``, they end one after the other."""
        for number in range(running):
            self.come(STEPS_PER_ARRIVAL * (number + 3) if change else STEPS + 50)
        requests = self.rig.scheduler.requests
        while any(one.num_computed_tokens < 64 for one in requests.values()):
            self.rig.update(*self.rig.schedule())

    def come(self, tokens: int) -> None:
        """One more request."""
        self.rig.add(f"request-{self.arrived}", [1] * 64, tokens)
        self.arrived += 1

    def watch(self) -> None:
        """Note what passes inside BEAM's hooks."""
        beam = self.rig.scheduler.beam
        for name in HOOKS:
            setattr(beam, name, self._timed(getattr(beam, name)))

    def _timed(self, hook: Any) -> Any:
        def timed(*args: Any) -> Any:
            begin_s = time.perf_counter()
            try:
                return hook(*args)
            finally:
                self.spent_us += (time.perf_counter() - begin_s) * 1e6

        return timed

    def step(self) -> bool:
        """schedule() and update_from_output(); False for a round of waiting."""
        scheduler, beam = self.rig.scheduler, getattr(self.rig.scheduler, "beam", None)
        self.spent_us = 0.0
        begin_s = time.perf_counter()
        if beam is not None and beam.gate(False) is not Gate.GO:
            return False
        output = scheduler.schedule()
        scheduled_s = time.perf_counter()
        sampled = set(output.num_scheduled_tokens)
        result = self.rig.result(output, sampled)
        ready_s = time.perf_counter()
        scheduler.update_from_output(output, result)
        done_s = time.perf_counter()
        if sampled:
            self.costs_us.append(((scheduled_s - begin_s) + (done_s - ready_s)) * 1e6)
            self.inside_us.append(self.spent_us)
        return bool(sampled)


def measure(rig: Any, running: int, mode: str) -> dict[str, Any]:
    """One row: ``running`` decodes in both schedulers."""
    from beam_runtime.engines.vllm.scheduler import make_scheduler

    options = {
        "max_num_seqs": running * (1 + (mode == "mixed")), "num_blocks": running * 70,
        "asynchronous": mode == "async",
    }  # fmt: skip
    plain, hooked = Engine(rig(**options)), Engine(rig(make=make_scheduler, **options))
    beam = hooked.rig.scheduler.beam
    if beam is None:
        raise SystemExit("BEAM stays out of this scheduler: see the line above")
    while beam.controller.warming_up:
        time.sleep(0.01)
    beam.connect(Ordered(beam.controller, PACE_MS[mode]))
    for engine in (plain, hooked):
        engine.begin(running, change=mode == "mixed")
    hooked.watch()
    gc.disable()
    for number in range(STEPS):
        if mode == "mixed" and number % STEPS_PER_ARRIVAL == 0:
            for engine in (plain, hooked):
                engine.come(STEPS_PER_ARRIVAL * running)
        plain.step()
        time.sleep(0.001)
        while not hooked.step():
            time.sleep(0.001)  # EngineCore's own pause
        time.sleep(0.002)  # the pass: the search thread has the core meanwhile
    gc.enable()
    beam.close()
    return {
        "running": running,
        "mode": mode,
        "vllm_p50_us": statistics.median(plain.costs_us),
        "vllm_p99_us": _p99(plain.costs_us),
        "added_p50_us": statistics.median(hooked.costs_us) - statistics.median(plain.costs_us),
        "added_p99_us": _p99(hooked.costs_us) - _p99(plain.costs_us),
        "inside_p50_us": statistics.median(hooked.inside_us),
        "inside_p99_us": _p99(hooked.inside_us),
    }


def _p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--running", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--modes", nargs="+", choices=[*PACE_MS], default=[*PACE_MS])
    asked = parser.parse_args()
    from conftest import CONFIG, SchedulerRig, write_tiny_table

    # The made-up table is for another machine, which BEAM would say each time.
    logging.getLogger("beam_runtime").setLevel(logging.ERROR)
    begin_load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text(json.dumps(CONFIG))
        write_tiny_table(folder / "table.parquet", pp=1)
        lines = ('table = "table.parquet"', 'policy = "steer"', "[slo]", "tbt_ms = 50")
        (folder / "beam.toml").write_text("\n".join(lines))
        os.environ["BEAM_CONFIG"] = str(folder / "beam.toml")

        def rig(**options: Any) -> Any:
            return SchedulerRig(folder / "model", **options)

        rows = [measure(rig, running, mode) for mode in asked.modes for running in asked.running]
    load = [begin_load, os.getloadavg()[0]]
    if asked.json:
        result = {"steps": STEPS, "cpus": os.cpu_count(), "load": load, "rows": rows}
        print(json.dumps(result, indent=2))
        return
    print(
        f"{os.cpu_count()} cores, load {load[0]:.1f} before and {load[1]:.1f} after; microseconds"
    )
    print("mode   running   vLLM p50    p99   added p50    p99   inside p50    p99")
    for row in rows:
        print(
            f"{row['mode']:6s} {row['running']:7d} "
            f"{row['vllm_p50_us']:10.0f} {row['vllm_p99_us']:6.0f} "
            f"{row['added_p50_us']:11.0f} {row['added_p99_us']:6.0f} "
            f"{row['inside_p50_us']:12.0f} {row['inside_p99_us']:6.0f}"
        )


if __name__ == "__main__":
    main()
