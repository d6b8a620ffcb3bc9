"""What BEAM's hooks add to a step of vLLM's scheduler, in the same run with and without them.

vLLM's own Scheduler class without a model, fed the same requests twice, in turns: plain, and
made by make_scheduler (steering, its controller and search thread running). A step is
schedule() and update_from_output() together; what is printed is the difference of the two at
equal batches. In a CPU engine's long passes the difference would vanish. Orders are given
(unpaced, one group) so that BEAM steers whatever this machine's passes take; its controller
absorbs events and searches meanwhile. A paced or grouped step asks the composer each time,
which costs several microseconds per request: --pace-ms 5 shows that.

    python benchmarks/vllm_hooks.py [--json] [--running 8 32 128]
"""

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "vllm"))

STEPS = 400


class Ordered:
    """The real controller, with orders of the benchmark's own."""

    def __init__(self, controller: Any, pace_ms: float) -> None:
        self._controller = controller
        from beam_runtime.types import Rules

        knobs = replace(controller.orders.knobs, microbatches=1, pace_ms=pace_ms)
        self.orders = replace(controller.orders, knobs=knobs, rules=Rules(), steering=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._controller, name)


def one_run(rig: Any, running: int, steers: bool, pace_ms: float) -> list[float]:
    """Microseconds of each decode step with ``running`` requests."""
    from beam_runtime.engines.vllm import make_scheduler

    engine = rig(
        make=make_scheduler if steers else None, max_num_seqs=running, num_blocks=running * 70
    )
    if steers and engine.scheduler.beam is None:
        raise SystemExit("BEAM stays out of this scheduler: see the line above")
    if steers:
        engine.scheduler.beam.connect(Ordered(engine.scheduler.beam.controller, pace_ms))
    for number in range(running):
        engine.add(f"r{number}", [1] * 64, STEPS + 50)
    scheduler = engine.scheduler
    while any(r.num_computed_tokens < 64 for r in scheduler.requests.values()):
        engine.update(*engine.schedule())
    costs_us = []
    gc.disable()
    for _ in range(STEPS):
        begin_s = time.perf_counter()
        output = scheduler.schedule()
        scheduled_s = time.perf_counter()
        sampled = set(output.num_scheduled_tokens)
        result = engine.result(output, sampled)
        ready_s = time.perf_counter()
        scheduler.update_from_output(output, result)
        done_s = time.perf_counter()
        if sampled:
            costs_us.append(((scheduled_s - begin_s) + (done_s - ready_s)) * 1e6)
        time.sleep(0.002)  # the pass: the search thread has the core meanwhile
    gc.enable()
    if steers:
        scheduler.beam.close()
    return costs_us


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--running", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--pace-ms", type=float, default=0.0)
    asked = parser.parse_args()
    from conftest import CONFIG, SchedulerRig, write_tiny_table

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text(json.dumps(CONFIG))
        write_tiny_table(folder / "table.parquet", pp=1)
        (folder / "beam.toml").write_text('table = "table.parquet"\n[slo]\ntbt_ms = 50\n')
        os.environ["BEAM_CONFIG"] = str(folder / "beam.toml")

        def rig(**options: Any) -> Any:
            return SchedulerRig(folder / "model", **options)

        rows = []
        for running in asked.running:
            plain: list[float] = []
            hooked: list[float] = []
            for _ in range(asked.pairs):
                plain += one_run(rig, running, False, asked.pace_ms)
                hooked += one_run(rig, running, True, asked.pace_ms)
            rows.append(
                {
                    "running": running,
                    "vllm_p50_us": statistics.median(plain),
                    "vllm_p99_us": statistics.quantiles(plain, n=100)[98],
                    "added_p50_us": statistics.median(hooked) - statistics.median(plain),
                    "added_p99_us": statistics.quantiles(hooked, n=100)[98]
                    - statistics.quantiles(plain, n=100)[98],
                }
            )
    if asked.json:
        print(json.dumps({"steps": STEPS, "pairs": asked.pairs, "rows": rows}, indent=2))
        return
    print("running   vLLM p50    p99 us   added p50    p99 us")
    for row in rows:
        print(
            f"{row['running']:7d} {row['vllm_p50_us']:10.0f} {row['vllm_p99_us']:9.0f} "
            f"{row['added_p50_us']:11.0f} {row['added_p99_us']:9.0f}"
        )


if __name__ == "__main__":
    main()
