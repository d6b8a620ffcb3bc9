"""A server under closed-loop load, played by the replay's plant on a table of its steps.

Benchmarks ask for outputs of one length, so those that start together end together, and their
successors' prompts arrive together: most first tokens wait for other prompts. That is why the mean
over arrivals at random says half of a benchmark's TTFT.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl

from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import EngineLimits, Slo, StepShape
from beamprof.devices.device import Device
from beamprof.models.shape import ModelShape, StageShape
from beamprof.profiler.grid import GridLimits, grid
from beamprof.replay.plant import play
from beamprof.replay.policies.static import Static
from beamprof.replay.site import NO_LIMIT_BLOCKS, Site
from beamprof.tables.importers.summed import idle_row
from beamprof.tables.table_file import seal_table
from beamprof.traces.trace import Provenance, Trace

CELLS, TILE_TOKENS = 70, 512  # of a table, at one clock
SEQS = 1024  # vLLM's default max_num_seqs of a server on these GPUs


@dataclass(frozen=True, slots=True)
class Load:
    """A closed loop; lengths in tokens.

    Attributes:
        jitter_tokens: by so much answers that start together drift apart until they end.
        front_ms: from an answer's end to the next request's arrival at the scheduler.
        back_ms: from a first token to its client; counts as TTFT.
        rounds: requests for each client.
    """

    clients: int
    prompt_tokens: int
    output_tokens: int
    budget_tokens: int
    jitter_tokens: float = 10.0
    front_ms: float = 3.0
    back_ms: float = 12.0
    rounds: int = 10

    def trace(self) -> Trace:
        """Its requests; arrivals are the loop's."""
        requests = self.clients * self.rounds
        drift = self.jitter_tokens * (np.random.default_rng(0).random(requests) - 0.5)
        outputs = np.maximum(1, np.round(self.output_tokens + drift)).astype(np.int64)
        frame = pl.DataFrame(
            {
                "request_id": np.arange(requests),
                "arrival_s": np.zeros(requests),
                "input_tokens": np.full(requests, self.prompt_tokens, dtype=np.int64),
                "output_tokens": outputs,
            }
        )
        return Trace(frame, 1.0, Provenance("closed loop", "synthetic", None, ""))


def steps_table(
    device: Device,
    model: ModelShape,
    stage: StageShape,
    load: Load,
    step_ms: Callable[[StepShape], float],
) -> PerfTable:
    """What steps cost, at the highest clock alone; energy is not asked for."""
    clock_mhz, longest = device.clocks.max_mhz, load.prompt_tokens + load.output_tokens
    limits = GridLimits(load.budget_tokens, max(2, load.clients), longest, 10**9,
                        TILE_TOKENS, CELLS)  # fmt: skip
    rows: list[dict[str, object]] = [
        {
            "kind": "forward",
            "clock_mhz": clock_mhz,
            "prefill_tokens": step.prefill_tokens,
            "prefill_context_tokens": step.prefill_context_tokens,
            "decode_requests": step.decode_requests,
            "decode_context_tokens": step.decode_context_tokens,
            "latency_ms": step_ms(step),
            "energy_j": 1.0,
            "clock_reached_mhz": float(clock_mhz),
            "passes": 1,
            "source": "modelled",
        }
        for step in grid(limits)
    ]
    rows.append(idle_row(device, stage, clock_mhz))
    metadata = {
        "model": model.name, "model_shape": model.to_json(), "precision": str(stage.precision),
        "tp": str(stage.tp), "pp": "1", "stage_layers": str(stage.layers), "dtype": model.dtype,
        "device": device.name, "engine": "vllm", "energy_source": "modelled",
        "created": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    return seal_table({name: np.array([row[name] for row in rows]) for name in rows[0]}, metadata)


def serve(load: Load, table: PerfTable) -> tuple[float, float]:
    """Mean TPOT and TTFT, milliseconds."""
    clock_mhz, trace = int(table.clocks_mhz[-1]), load.trace()
    cost = StepCost.from_table(table, [clock_mhz])
    limits = EngineLimits(pp=1, max_num_seqs=SEQS)
    site = Site(
        cost, cost, limits, NO_LIMIT_BLOCKS, Slo(), front_end_ms=load.front_ms,
        concurrency=load.clients, prefix_cache=False,
    )  # fmt: skip
    played = play(trace, Static("static", clock_mhz, load.budget_tokens), site)
    more = np.maximum(1, trace.frame["output_tokens"].to_numpy() - 1)
    tpot_ms = (played.finish_ms - played.first_token_ms) / more
    ttft_ms = played.first_token_ms - played.arrival_ms
    return float(tpot_ms.mean()), float(ttft_ms.mean()) + load.back_ms
