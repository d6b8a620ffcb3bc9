"""Predicted against actual TTFT and TBT: a model profiled through vLLM, then served by it.

    python benchmarks/predicted_actual.py [--json] [--clock cpu] [--load 0.5] [--trace FILE]

1. Writes a small Llama's config.json, profiles it with `beam profile --backend vllm` on this CPU.
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
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from beam_runtime.calibration import CalibrationRules
from beam_runtime.steering import SteeringRules
from beamprof.backends.choose import Choice, choose_backend
from beamprof.backends.torch_timing import TimingRules
from beamprof.backends.vllm_stage import VllmBackend
from beamprof.model_shape import resolve_model
from beamprof.plan import Plan
from beamprof.profile import ProfileRequest, profile
from beamprof.spec import SweepSpec, resolve_spec

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 512,
    "intermediate_size": 1408, "num_attention_heads": 8, "num_key_value_heads": 4,
    "num_hidden_layers": 4, "vocab_size": 4096, "max_position_embeddings": 1024,
    "torch_dtype": "float32",
}  # fmt: skip
MAX_TOKENS, MAX_DECODES, MAX_CONTEXT = 64, 32, 512
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
TARGETS = {"ttft": 0.15, "tbt": 0.10}  # MAPE with calibration on
UNJUDGED = 0.2
# On a busy machine a late decision must not end the watching.
PATIENT = SteeringRules(deadline_ms=2000.0, stall_ms=60_000.0)
UNCALIBRATED = dataclasses.replace(
    PATIENT, calibration=CalibrationRules(weight=0.0, prior_steps=10**12)
)
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Request:
    """One request to come; seconds from the beginning of its run."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int


@dataclass(slots=True)
class Served:
    """What became of it.

    Attributes:
        ttft_ms: actual. first: forecasts of it, by controller.
        gaps_ms: between its tokens. forecast_ms: for each gap, by controller.
    """

    arrival_ms: float
    ttft_ms: float = float("nan")
    last_ms: float = float("nan")
    tokens: int = 0
    gaps_ms: list[float] = field(default_factory=list)
    first: dict[str, float] = field(default_factory=dict)
    forecast_ms: dict[str, list[float]] = field(default_factory=dict)


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
    from beam_runtime.cost import StepCost
    from beam_runtime.table import PerfTable
    from beam_runtime.types import StepShape

    loaded = PerfTable.load(table)
    cost, gap_ms = StepCost.from_table(loaded), float(loaded.metadata["host_gap_ms"])
    chunk_ms = float(cost.latency_ms(StepShape(MAX_TOKENS))[-1]) + gap_ms
    riding = 2
    decode = StepShape(decode_requests=riding, decode_context_tokens=riding * PROMPT_TOKENS)
    decode_ms = float(cost.latency_ms(decode)[-1]) + gap_ms
    request_ms = PROMPT_TOKENS / MAX_TOKENS * chunk_ms + OUTPUT_TOKENS / riding * decode_ms
    return load * 1e3 / request_ms


# Serving, in a process of its own


class WallClock:
    """Time as everybody knows it."""

    def now_ms(self) -> float:
        return time.monotonic() * 1e3

    def rest(self, seconds: float) -> None:
        time.sleep(min(0.001, seconds))


class CpuClock:
    """The time that this thread had of its core; while nothing is to be served it jumps ahead."""

    def __init__(self) -> None:
        self._thread = time.pthread_getcpuclockid(threading.get_ident())
        self._rested_s = 0.0

    def now_ms(self) -> float:
        return (time.clock_gettime(self._thread) + self._rested_s) * 1e3

    def rest(self, seconds: float) -> None:
        time.sleep(0.01)  # the controllers, on threads of their own, take in what happened
        self._rested_s += seconds


class Both:
    """Two controllers behind one set of hooks; orders are the first one's."""

    def __init__(self, controllers: dict[str, Any]) -> None:
        self.controllers = controllers
        self._first = next(iter(controllers.values()))

    def __getattr__(self, name: str) -> Any:
        if name in ("arrival", "abort", "preemption", "step_issued", "step_finished",
                    "first_token", "completion", "close"):  # fmt: skip
            calls = [getattr(one, name) for one in self.controllers.values()]

            def all_of_them(*args: Any, **kwargs: Any) -> None:
                for call in calls:
                    call(*args, **kwargs)

            return all_of_them
        return getattr(self._first, name)


class Server:
    """One engine of vLLM in this process, observed."""

    def __init__(self, model: Path, table: Path, clock: WallClock | CpuClock) -> None:
        from vllm import LLM

        import beam_runtime.engines.vllm as adapter
        from beam_runtime.controller import Controller
        from beam_runtime.cost import StepCost
        from beam_runtime.table import PerfTable

        self.clock = clock
        adapter._monotonic_ms = clock.now_ms
        self.engine = LLM(
            model=str(model), load_format="dummy", skip_tokenizer_init=True, dtype="float32",
            enforce_eager=True, max_model_len=1024, max_num_batched_tokens=MAX_TOKENS,
            max_num_seqs=MAX_DECODES, enable_prefix_caching=False, seed=0,
            scheduler_cls="beam_runtime.engines.vllm.make_scheduler",
        ).llm_engine  # fmt: skip
        self.scheduler = self.engine.engine_core.engine_core.scheduler
        beam = self.scheduler.beam
        if beam is None:
            raise SystemExit("BEAM stays out of this engine: see the line above")
        beam.controller.close()
        cost = StepCost.from_table(PerfTable.load(table))
        rules = {"on": PATIENT, "off": UNCALIBRATED}
        self.controllers = {
            name: Controller(
                cost, beam.view.limits, kv_blocks=beam.view.free_blocks, observing=True, rules=one,
                now_ms=clock.now_ms,
            ).__enter__()
            for name, one in rules.items()
        }  # fmt: skip
        beam.connect(Both(self.controllers))
        self.busy_ms = 0.0

    def serve(self, requests: Sequence[Request]) -> dict[str, Served]:
        """Serve them all; what became of each, by name."""
        from vllm import SamplingParams

        to_come = list(enumerate(requests))[::-1]
        served: dict[str, Served] = {}
        begin_s = self.clock.now_ms() / 1e3
        self.busy_ms = 0.0
        while to_come or self.engine.has_unfinished_requests():
            now_s = self.clock.now_ms() / 1e3 - begin_s
            while to_come and to_come[-1][1].arrival_s <= now_s:
                number, request = to_come.pop()
                served[f"r{number}"] = Served((begin_s + request.arrival_s) * 1e3)
                self.engine.add_request(
                    f"r{number}",
                    {"prompt_token_ids": [1 + number % 999] * request.prompt_tokens},
                    SamplingParams(
                        detokenize=False, ignore_eos=True, temperature=0.0,
                        max_tokens=request.output_tokens,
                    ),
                    arrival_time=time.time() - (now_s - request.arrival_s),
                )  # fmt: skip
            if not self.engine.has_unfinished_requests():
                self.clock.rest(max(0.0, to_come[-1][1].arrival_s - now_s))
                continue
            self._step(served)
        return served

    def _step(self, served: dict[str, Served]) -> None:
        forecasts = self._forecasts()
        begin_ms = self.clock.now_ms()
        outputs = self.engine.step()
        now_ms = self.clock.now_ms()
        self.busy_ms += now_ms - begin_ms
        late = self._forecasts()  # decisions made while the step ran
        for one in outputs:
            request = served[one.request_id]
            tokens = len(one.outputs[0].token_ids)
            if tokens == request.tokens:
                continue
            if request.tokens == 0:
                request.ttft_ms = now_ms - request.arrival_ms
            else:
                request.gaps_ms.append(now_ms - request.last_ms)
                for name, (_, tbt_ms) in forecasts.items():
                    forecast_ms = tbt_ms.get(one.request_id, float("nan"))
                    request.forecast_ms.setdefault(name, []).append(forecast_ms)
            request.tokens, request.last_ms = tokens, now_ms
        for name, (ttft_ms, _) in late.items():
            for request_id, forecast_ms in ttft_ms.items():
                served[request_id].first.setdefault(name, forecast_ms)

    def _forecasts(self) -> dict[str, tuple[dict[str, float], dict[str, float]]]:
        """TTFT and TBT by request, of each controller, as in force now."""
        in_force = {}
        for name, controller in self.controllers.items():
            expected = controller.orders.expected
            in_force[name] = (
                ({}, {}) if expected is None
                # vLLM appends a random part to its requests' names.
                else ({k.split("-")[0]: v for k, v in expected.ttft_ms.items()},
                      {k.split("-")[0]: v for k, v in expected.worst_tbt_ms.items()})
            )  # fmt: skip
        return in_force


def serve_main(folder: Path, clock: str) -> None:
    """Serve every load of the folder; one report on stdout's last line."""
    times = CpuClock() if clock == "cpu" else WallClock()
    server = Server(folder / "model", folder / "table.parquet", times)
    loads = json.loads((folder / "loads.json").read_text())
    server.serve([Request(0.2 * n, 40, 10) for n in range(10)])  # first steps are slow
    report = {}
    for name, rows in loads.items():
        requests = [Request(*row) for row in rows]
        begin_ms = times.now_ms()
        served = server.serve(requests)
        elapsed_s = (times.now_ms() - begin_ms) / 1e3
        report[name] = {
            "requests": [dataclasses.asdict(one) for one in served.values()],
            "seconds": elapsed_s,
            "busy": server.busy_ms / 1e3 / elapsed_s,
            "correction": dataclasses.asdict(server.controllers["on"].status.correction),
        }
    print("REPORT " + json.dumps(report))


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
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        serve_main(asked.serve, asked.clock)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.keep or Path(scratch)
        report = run(folder.resolve(), asked)
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
        [sys.executable, __file__, "--serve", str(folder), "--clock", asked.clock],
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
