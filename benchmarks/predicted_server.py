"""A vLLM engine with two observing controllers in it: the serving half of predicted_actual.

    python predicted_server.py FOLDER wall|cpu

FOLDER holds model/, table.parquet, beam.toml and loads.json. A process of its own, because vLLM
allows one engine in each. One of the controllers has its calibration off; neither touches
anything, so that both see the very same steps.
"""

import dataclasses
import json
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from beam_runtime.control.calibration_rules import CalibrationRules
from beam_runtime.control.steering_rules import SteeringRules

MAX_TOKENS, MAX_DECODES, MAX_LEN = 64, 32, 1024
# On a busy machine a late decision must not end the watching.
# They only observe, but are to predict as soon as one that steers.
PATIENT = SteeringRules(observing_gap_ms=5.0, deadline_ms=2000.0, stall_ms=60_000.0)
UNCALIBRATED = dataclasses.replace(
    PATIENT,
    calibration=CalibrationRules(weight=0.0, prior_steps=10**12, prior_steps_of_size=10**12),
)


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

        import beam_runtime.engines.vllm.scheduler as adapter
        from beam_runtime.control.controller import Controller
        from beam_runtime.table.perf_table import PerfTable
        from beam_runtime.table.step_cost import StepCost

        self.clock = clock
        adapter._monotonic_ms = clock.now_ms
        self.engine = LLM(
            model=str(model), load_format="dummy", skip_tokenizer_init=True, dtype="auto",
            enforce_eager=True, max_model_len=MAX_LEN, max_num_batched_tokens=MAX_TOKENS,
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
        while any(controller.warming_up for controller in self.controllers.values()):
            time.sleep(0.01)
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


def main(folder: Path, clock: str) -> None:
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


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
