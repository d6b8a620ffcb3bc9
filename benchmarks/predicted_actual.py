"""Predicted against actual TTFT and TBT: a model profiled through vLLM, then served by it.

    python benchmarks/predicted_actual.py [--json] [--clock cpu] [--load 0.5] [--trace FILE]

1. Writes a small Llama's config.json, profiles it with `beam profile --backend vllm` on this CPU.
   A token of it takes 10 ms, as on a GPU; where it takes 3, Python's threads are a quarter of it.
2. Serves it with vLLM, BEAM observing: Poisson arrivals, then the arrivals and lengths of a
   trace (ServeGen), scaled to the same mean load and to this model's context. Two controllers
   watch the very same steps, one of them with its calibration off.
3. Holds what they forecast against what came.

TTFT: the first forecast after a request's arrival against its first token; arrivals are due
times, so waiting for the step under way counts. TBT: for each token after the first, the forecast
in force when its step began against the gap that it ended; a request's TBT is the mean over its
gaps, forecast and actual. The forecast is of the longest gap in the next 250 ms or until the
waiting prompts are done, so it lies above the mean where short and long steps take turns.

The first fifth of each run is not judged: calibration begins with nothing. Numbers are worth what
the machine is worth: with other work on its cores steps scatter, and so does all of this, which
is why load averages are printed. ``--clock cpu`` times everything, in the profile and while
serving, by the time that the engine's thread had of its core; caches and memory are shared all
the same. About four minutes.
"""

import argparse
import dataclasses
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from predicted_server import MAX_DECODES, MAX_LEN, MAX_TOKENS, Request

from beam_runtime.errors import BeamError
from beamprof.backends.pass_timing import TimingRules
from beamprof.backends.vllm_stage import VllmBackend
from beamprof.models.registry import resolve_model
from beamprof.profiler.choose_backend import Choice, choose_backend
from beamprof.profiler.plan import Plan
from beamprof.profiler.profile import ProfileRequest, profile
from beamprof.profiler.spec import SweepSpec, resolve_spec

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 1024,
    "intermediate_size": 2816, "num_attention_heads": 16, "num_key_value_heads": 8,
    "num_hidden_layers": 8, "vocab_size": 4096, "max_position_embeddings": MAX_LEN,
    "torch_dtype": "bfloat16",
}  # fmt: skip
MAX_CONTEXT = 512
PROMPT_TOKENS, OUTPUT_TOKENS = 60, 30  # means
MOST_PROMPT, MOST_OUTPUT = 300, 100
SWEEP = {
    "backend": "vllm", "device": "cpu", "clocks": "current", "max_tokens": MAX_TOKENS,
    "max_decodes": MAX_DECODES, "max_context": MAX_CONTEXT, "cells_per_clock": 24, "trials": 4,
    "window": "400ms", "assume_power": "65W",
}  # fmt: skip
TRACE = (
    Path(__file__).parents[2]
    / "shared/data/traces/servegen-generated/servegen-mlarge-d0-1900-s04.csv"
)
TARGETS = {"ttft": 0.10, "tbt": 0.08}  # MAPE with calibration on, median of five runs
UNJUDGED = 0.2
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1",
}  # fmt: skip


# Loads


def poisson(rate_rps: float, seconds: float) -> list[Request]:
    """Exponential gaps between arrivals, and lengths around their means."""
    draw = random.Random(5)
    requests, now_s = [], 0.0
    while (now_s := now_s + draw.expovariate(rate_rps)) < seconds:
        prompt = min(MOST_PROMPT, max(4, round(draw.expovariate(1 / PROMPT_TOKENS))))
        output = min(MOST_OUTPUT, max(2, round(draw.expovariate(1 / OUTPUT_TOKENS))))
        requests.append(Request(now_s, prompt, output))
    return requests


def excerpt(path: Path, rate_rps: float, seconds: float) -> list[Request]:
    """A trace's first requests: its burstiness and its spread of lengths, scaled to this model."""
    from beamprof.traces.importing import open_trace

    rows = open_trace(path).frame.head(max(2, round(rate_rps * seconds)))
    arrivals = rows["arrival_s"].to_numpy()
    prompts, outputs = rows["input_tokens"].to_numpy(), rows["output_tokens"].to_numpy()
    stretch = seconds / (arrivals[-1] - arrivals[0])
    return [
        Request(
            float(at - arrivals[0]) * stretch,
            int(np.clip(prompt / prompts.mean() * PROMPT_TOKENS, 4, MOST_PROMPT)),
            int(np.clip(output / outputs.mean() * OUTPUT_TOKENS, 2, MOST_OUTPUT)),
        )
        for at, prompt, output in zip(arrivals, prompts, outputs, strict=True)
    ]


def rate_for(load: float, table: Path) -> float:
    """Requests per second that keep the engine busy for a share ``load``, as the table has it."""
    from beam_runtime.table.perf_table import PerfTable
    from beam_runtime.table.step_cost import StepCost
    from beam_runtime.types import StepShape

    loaded = PerfTable.load(table)
    cost, gap_ms = StepCost.from_table(loaded), float(loaded.metadata["host_gap_ms"])
    chunk_ms = float(cost.latency_ms(StepShape(MAX_TOKENS))[-1]) + gap_ms
    riding = 2
    decode = StepShape(decode_requests=riding, decode_context_tokens=riding * PROMPT_TOKENS)
    decode_ms = float(cost.latency_ms(decode)[-1]) + gap_ms
    request_ms = PROMPT_TOKENS / MAX_TOKENS * chunk_ms + OUTPUT_TOKENS / riding * decode_ms
    return load * 1e3 / request_ms


# Judging


def judged(load: dict[str, Any]) -> dict[str, Any]:
    """Errors of one load."""
    requests = load["requests"][round(UNJUDGED * len(load["requests"])) :]
    result: dict[str, Any] = {
        "requests": len(requests),
        "busy": load["busy"],
        "seconds": load["seconds"],
        "correction": load["correction"],
        "ttft_ms": quantiles([one["ttft_ms"] for one in requests]),
        "tbt_ms": quantiles([np.mean(one["gaps_ms"]) for one in requests if one["gaps_ms"]]),
        "gap_ms": quantiles([gap for one in requests for gap in one["gaps_ms"]]),
    }
    for name in ("off", "on"):
        ttft = [(one["first"].get(name, float("nan")), one["ttft_ms"]) for one in requests]
        tbt = []
        for one in requests:
            forecasts = np.array(one["forecast_ms"].get(name, []), dtype=float)
            gaps = np.array(one["gaps_ms"], dtype=float)
            known = np.isfinite(forecasts)
            if len(gaps):
                tbt.append(
                    (forecasts[known].mean(), gaps[known].mean()) if known.any() else (np.nan, 1.0)
                )
        result[name] = {"ttft": errors(ttft), "tbt": errors(tbt)}
    return result


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """p50 and p99."""
    return {"p50": float(np.quantile(values, 0.5)), "p99": float(np.quantile(values, 0.99))}


def errors(pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Of (forecast, actual) pairs; a pair without a forecast is counted apart."""
    told = np.array([pair for pair in pairs if np.isfinite(pair[0])], dtype=float)
    if not len(told):
        sys.exit(
            "no request had a forecast: steps were so far from the table that it was given up.\n"
            "hint: run it again when nothing else uses this machine's cores"
        )
    relative = told[:, 0] / told[:, 1] - 1
    return {
        "mape": float(np.abs(relative).mean()),
        "p50": float(np.quantile(np.abs(relative), 0.5)),
        "p99": float(np.quantile(np.abs(relative), 0.99)),
        "bias": float(relative.mean()),
        "untold": len(pairs) - len(told),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--load", type=float, default=0.5, help="share of time in steps, planned")
    parser.add_argument("--seconds", type=float, default=40.0, help="of each run")
    parser.add_argument("--trace", type=Path, default=TRACE)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--keep", type=Path, help="folder for table and raw numbers")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.keep or Path(scratch)
        try:
            report = run(folder.resolve(), asked)
        except BeamError as error:
            raise SystemExit(str(error)) from None
    print(json.dumps(report, indent=2) if asked.json else text(report))


def measured_by(spec: SweepSpec, clock: str) -> Choice:
    """What `beam profile --backend vllm` would choose, timed by ``clock``."""
    model = resolve_model(str(spec.model))
    stage = model.shard(1, 1)

    def build(plan: Plan) -> VllmBackend:
        return VllmBackend(
            model, stage, named=str(spec.model), steps=plan.steps, place="cpu", device="cpu",
            rules=TimingRules.within(plan.window_s), assume_power_w=spec.assume_power_w,
            clock=clock,
        )  # fmt: skip

    return dataclasses.replace(choose_backend(spec, model, stage), build=build)


def run(folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    load_before = os.getloadavg()[0]
    (folder / "model").mkdir(parents=True, exist_ok=True)
    (folder / "model/config.json").write_text(json.dumps(CONFIG))
    table = folder / "table.parquet"
    os.environ |= ENVIRONMENT
    spec = resolve_spec({**SWEEP, "model": str(folder / "model")})
    if not table.exists():
        request = ProfileRequest(spec, output=table)
        profile(request, choice=measured_by(spec, asked.clock))
    rate_rps = rate_for(asked.load, table)
    loads = {"poisson": poisson(rate_rps, asked.seconds)}
    if asked.trace.exists():
        loads["servegen excerpt"] = excerpt(asked.trace, rate_rps, asked.seconds)
    (folder / "loads.json").write_text(
        json.dumps({name: [dataclasses.astuple(r) for r in rows] for name, rows in loads.items()})
    )
    (folder / "beam.toml").write_text('table = "table.parquet"\npolicy = "observe"\n')
    served = subprocess.run(
        [sys.executable, Path(__file__).parent / "predicted_server.py", folder, asked.clock],
        env={**os.environ, "BEAM_CONFIG": str(folder / "beam.toml")},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    last = [line for line in served.stdout.splitlines() if line.startswith("REPORT ")][-1]
    raw = json.loads(last.removeprefix("REPORT "))
    (folder / "raw.json").write_text(json.dumps(raw))
    return {
        "rate_rps": rate_rps,
        "clock": asked.clock,
        "load_average": [load_before, os.getloadavg()[0]],
        "targets": TARGETS,
        "loads": {name: judged(load) for name, load in raw.items()},
    }


def text(report: dict[str, Any]) -> str:
    before, after = report["load_average"]
    lines = [
        f"{report['rate_rps']:.2f} requests a second, timed by the {report['clock']} clock; "
        f"load average {before:.1f} before, {after:.1f} after"
    ]
    for name, load in report["loads"].items():
        ttft, tbt, gap = (f"p50 {load[key]['p50']:.1f}, p99 {load[key]['p99']:.1f} ms"
                          for key in ("ttft_ms", "tbt_ms", "gap_ms"))  # fmt: skip
        lines += [
            "",
            f"{name}: {load['requests']} requests judged, engine busy {load['busy']:.0%}",
            f"  actual           TTFT {ttft}; TBT {tbt}; single gaps {gap}",
        ]
        for calibration in ("off", "on"):
            for what, target in report["targets"].items():
                error = load[calibration][what]
                lines.append(
                    f"  calibration {calibration:3}  {what.upper():4} MAPE {error['mape']:6.1%}, "
                    f"p50 {error['p50']:.1%}, p99 {error['p99']:.1%}, bias {error['bias']:+.1%}"
                    + (f", {error['untold']} without a forecast" if error["untold"] else "")
                    + (f"   target {target:.0%}" if calibration == "on" else "")
                )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
