"""How far the replay is from logs of a real server, by the operators measured on its GPU.

    python benchmarks/served_logs.py ../shared/data/served-rtxpro6000/Llama-3.1-8B ... [--json]

A folder holds LLMServingSim's operators of one model (`beam table import --format llmservingsim`),
and beside them vllm_requests.jsonl, what vLLM 0.19 served, and vllm_meta.json, how. The log's
arrivals and lengths are replayed at the highest clock with vLLM's own rules, and TTFT and TPOT
(last less first token, over the tokens between) are held against what the log says. Two answers:

    operators  nothing fitted: what the operators sum to
    fitted     constants fitted on the requests of the log's first half, errors of the second

        gap       ms of a step that no operator covers
        exchange  us of a token, where experts are shared by several engines: tokens go to the GPU
                  that has the expert and come back, which the operators do not hold

The halves are of one run: the second begins with the queue that the first has left, predicted or
observed. Requests of data-parallel engines are dealt in turn: the log does not say which engine
had which.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.optimize import brute, fmin

from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import EngineLimits, Slo
from beamprof.devices.device import detect_device, resolve_device
from beamprof.replay.plant import play
from beamprof.replay.policies.static import Static
from beamprof.replay.site import NO_LIMIT_BLOCKS, Site
from beamprof.tables.importers.llmservingsim import Operators, profiled_model, read_meta
from beamprof.tables.importers.summed import summed_table
from beamprof.tables.table_file import seal_table
from beamprof.traces.importing import open_trace
from beamprof.traces.trace import Trace

TARGETS = {"dense": {"ttft": 0.04, "tpot": 0.01}, "moe": {"ttft": 0.08, "tpot": 0.02}}
BOUNDS = ((0.0, 20.0), (0.0, 60.0))  # of gap, ms, and exchange, us a token

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Constants:
    """See the module's docstring."""

    gap_ms: float = 0.0
    exchange_us: float = 0.0


@dataclass(frozen=True, slots=True)
class Errors:
    """Mean TTFT and TPOT, predicted over observed less 1, over so many requests."""

    requests: int
    ttft: float
    tpot: float
    observed_ttft_ms: float
    observed_tpot_ms: float


@dataclass(frozen=True, slots=True)
class Judged:
    """One log.

    Attributes:
        log: model and layout.
        kind: dense or moe.
        operators: all requests, nothing fitted.
        constants: fitted on the first half.
        first: that half, fitted; second: the other, held out.
    """

    log: str
    kind: str
    operators: Errors
    constants: Constants
    first: Errors
    second: Errors


class Server:
    """The log's server as the replay sees it."""

    def __init__(self, folder: Path) -> None:
        meta = read_meta(folder)
        how = json.loads((folder / "vllm_meta.json").read_text("utf-8"))["engine_kwargs"]
        self.engines = int(how["data_parallel_size"])
        self.chunk_tokens, self.max_num_seqs = how["max_num_batched_tokens"], how["max_num_seqs"]
        name = detect_device(meta["gpu"])
        if name is None or how["tensor_parallel_size"] != 1:
            raise SystemExit(f"{folder}: no device file for {meta['gpu']}, or tp is not 1")
        device = resolve_device(name)
        model = profiled_model(folder, meta)
        shared = self.engines if how["enable_expert_parallel"] else 1
        stage = model.shard(1, 1, ep=shared, dp=self.engines if shared > 1 else 1)
        self.kind = "moe" if shared > 1 else "dense"
        operators = Operators(folder, device, stage)
        self._columns, self._metadata = summed_table(
            operators, device, model, stage, operators.steps()
        )
        self.name = f"{model.name} on {self.engines} x {name}"
        whole = open_trace(folder / "vllm_requests.jsonl")
        self.traces = [
            replace(whole, frame=whole.frame.gather_every(self.engines, at))
            for at in range(self.engines)
        ]

    def cost(self, exchange_us: float) -> StepCost:
        """The operators' sums at the highest clock, each token's way to its experts added."""
        tokens = self._columns["prefill_tokens"] + self._columns["decode_requests"]
        latency_ms = self._columns["latency_ms"] + tokens * exchange_us / 1e3
        table = seal_table({**self._columns, "latency_ms": latency_ms}, self._metadata)
        return StepCost.from_table(table, [table.clocks_mhz[-1]])

    def replayed(self, c: Constants) -> Array:
        """(requests, 4), by arrival: TTFT and TPOT, predicted and observed, ms."""
        cost = self.cost(c.exchange_us)
        limits = EngineLimits(pp=1, max_num_seqs=self.max_num_seqs, host_gap_ms=c.gap_ms)
        site = Site(cost, cost, limits, NO_LIMIT_BLOCKS, Slo(), prefix_cache=False)
        policy = Static("static", int(cost.clocks_mhz[-1]), self.chunk_tokens)
        rows = [(trace, play(trace, policy, site)) for trace in self.traces]
        arrival_s = np.concatenate([trace.arrival_s for trace, _ in rows])
        found = [
            np.column_stack([
                played.first_token_ms - played.arrival_ms,
                (played.finish_ms - played.first_token_ms) / _between(trace),
                1e3 * (_seconds(trace, "first_token_s") - trace.arrival_s),
                1e3 * (_seconds(trace, "last_token_s") - _seconds(trace, "first_token_s"))
                / _between(trace),
            ])
            for trace, played in rows
        ]  # fmt: skip
        return np.concatenate(found)[np.argsort(arrival_s, kind="stable")]


def _seconds(trace: Trace, name: str) -> Array:
    return trace.frame[name].to_numpy()


def _between(trace: Trace) -> Array:
    return np.maximum(1.0, trace.frame["output_tokens"].to_numpy() - 1.0)


def errors(rows: Array) -> Errors:
    """Of the means over these requests."""
    ttft_ms, tpot_ms, seen_ttft_ms, seen_tpot_ms = rows.mean(axis=0).tolist()
    return Errors(
        len(rows), ttft_ms / seen_ttft_ms - 1, tpot_ms / seen_tpot_ms - 1, seen_ttft_ms,
        seen_tpot_ms,
    )  # fmt: skip


def fit(server: Server) -> Constants:
    """The constants that bring the first half's means nearest."""

    def off(values: Sequence[float]) -> float:
        rows = server.replayed(_constants(values))
        found = errors(rows[: len(rows) // 2])
        return found.ttft**2 + found.tpot**2

    count = 2 if server.engines > 1 else 1
    # A queue that builds up or does not makes many valleys: a grid first.
    return _constants(np.atleast_1d(brute(off, BOUNDS[:count], Ns=25, finish=fmin)))


def _constants(values: Sequence[float]) -> Constants:
    gap_ms, exchange_us = [*map(float, values), 0.0][:2]
    return Constants(round(gap_ms, 2), round(exchange_us, 2))


def judge(folder: Path) -> Judged:
    """A log, with the operators alone and with constants fitted on its first half."""
    server = Server(folder)
    alone = server.replayed(Constants())
    constants = fit(server)
    rows = server.replayed(constants)
    half = len(rows) // 2
    return Judged(
        server.name, server.kind, errors(alone), constants, errors(rows[:half]), errors(rows[half:])
    )


def show(judged: Sequence[Judged]) -> None:
    """One table: what is fitted and what is held out apart."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for head in ("log", "requests", "constants", "TTFT", "TPOT", "of aims"):
        table.add_column(head, justify="left" if head in ("log", "constants") else "right")
    for one in judged:
        aims = TARGETS[one.kind]
        fitted = f"gap {one.constants.gap_ms:g} ms"
        if one.kind == "moe":
            fitted += f", exchange {one.constants.exchange_us:g} us/token"
        for words, found in (
            ("none", one.operators),
            (f"{fitted}: first half, fitted", one.first),
            (f"{fitted}: second half, held out", one.second),
        ):
            kept = sum(abs(getattr(found, name)) <= aim for name, aim in aims.items())
            table.add_row(one.log, str(found.requests), words, f"{100 * found.ttft:+.1f} %",
                          f"{100 * found.tpot:+.1f} %", f"{kept} of 2")  # fmt: skip
    Console(width=140).print(table)


def main(words: Sequence[str] | None = None) -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(words)
    judged = [judge(folder) for folder in asked.folders]
    if asked.json:
        print(json.dumps([asdict(one) for one in judged], indent=1))
        return
    show(judged)


if __name__ == "__main__":
    main()
