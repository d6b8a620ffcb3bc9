"""How far StepCost is from measurements it has not seen.

1. Clocks: fitted on 9 of the 31 clocks of the published A100 tables, asked at the other 22.
2. Steps: fitted on the default plan's cells, composed from measured A100 operators, asked for
   the batches of a served trace, most of them mixed.

    python benchmarks/step_cost.py [--json]
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator

from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.schema import RowKind
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import StepShape
from beamprof.profiler.grid import GridLimits, grid
from beamprof.tables.importers import ImportOverrides, importer
from beamprof.tables.table_file import seal_table

DATA = Path(__file__).parents[1] / ".." / "shared" / "data"
TRAIN_CLOCKS_MHZ = (510, 630, 750, 870, 960, 1050, 1140, 1260, 1410)  # the default plan's
STAGE_LAYERS = 20
# The operators were measured for batches up to 128 and contexts up to 4,032 tokens.
MAX_BATCH, MAX_CONTEXT = 128, 4032
MAX_CELLS = 60


@dataclass(frozen=True, slots=True)
class Error:
    """Mean absolute and mean signed relative error, as fractions, over ``points`` predictions."""

    mape: float
    bias: float
    points: int

    @classmethod
    def of(cls, predicted: NDArray[np.float64], true: NDArray[np.float64]) -> "Error":
        relative = predicted / true - 1
        return cls(float(np.abs(relative).mean()), float(relative.mean()), len(relative))


def unseen_clocks(csv: Path, train_mhz: Sequence[int] = TRAIN_CLOCKS_MHZ) -> dict[str, Error]:
    """Errors of latency and energy at the clocks that were not fitted."""
    imported = importer("beam-artifact")(csv, ImportOverrides())
    whole = seal_table(imported.columns, imported.metadata)
    seen = np.isin(whole.columns["clock_mhz"], train_mhz)
    train = seal_table({k: v[seen] for k, v in whole.columns.items()}, whole.metadata)
    cost = StepCost.from_table(train, clocks_mhz=whole.clocks_mhz)
    rows = {k: v[~seen] for k, v in whole.columns.items()}
    at_clock = np.searchsorted(cost.clocks_mhz, rows["clock_mhz"])
    steps = [
        StepShape(*shape)
        for shape in zip(
            rows["prefill_tokens"].tolist(),
            rows["prefill_context_tokens"].tolist(),
            rows["decode_requests"].tolist(),
            rows["decode_context_tokens"].tolist(),
            strict=True,
        )
    ]
    latency = np.array([cost.latency_ms(s)[m] for s, m in zip(steps, at_clock, strict=True)])
    energy = np.array([cost.energy_j(s)[m] for s, m in zip(steps, at_clock, strict=True)])
    return {
        "latency": Error.of(latency, rows["latency_ms"]),
        "energy": Error.of(energy, rows["energy_j"]),
    }


class Operators:
    """One stage (20 layers of Llama-3 70B, TP2) put together from operators measured on an A100."""

    def __init__(self, folder: Path) -> None:
        mlp = pl.read_csv(folder / "vidur_a100_mlp_llama3-70b.csv").filter(
            pl.col("num_tensor_parallel_workers") == 2
        )
        layer = [c for c in mlp.columns if c.endswith(".median") and "emb" not in c]
        mlp = (
            mlp.with_columns(ms=pl.sum_horizontal(layer))
            .group_by("num_tokens")
            .agg(pl.col("ms").median())
            .sort("num_tokens")
        )
        self._tokens, self._linear_ms = mlp["num_tokens"].to_numpy(), mlp["ms"].to_numpy()
        attention = pl.read_csv(
            folder / "vidur_a100_attention_70b_tp2_e2d00e9.csv", infer_schema_length=None
        )
        self._decode_ms = _surface(attention.filter(~pl.col("is_prefill")), "batch_size", "decode")
        self._prefill_ms = _surface(
            attention.filter(pl.col("is_prefill")), "prefill_chunk_size", "prefill"
        )

    def stage_ms(self, step: StepShape) -> float:
        """Linear operators of all tokens, attention of the chunk, attention of the decodes."""
        layer_ms = float(np.interp(step.tokens, self._tokens, self._linear_ms))
        if step.prefill_tokens:
            # The smallest chunk measured is 64; the kernel's tile is no smaller.
            at = (max(step.prefill_tokens, 64), step.prefill_context_tokens)
            layer_ms += float(self._prefill_ms(at))
        if step.decode_requests:
            mean_context = step.decode_context_tokens / step.decode_requests
            layer_ms += float(self._decode_ms((step.decode_requests, mean_context)))
        return layer_ms * STAGE_LAYERS


def _surface(rows: pl.DataFrame, batch: str, kind: str) -> RegularGridInterpolator:
    """Median time over (batch or chunk, cached tokens); what was not measured is interpolated."""
    value = f"time_stats.attn_{kind}.median"
    cells = rows.group_by(batch, "kv_cache_size").agg(pl.col(value).cast(pl.Float64).median())
    wide = cells.sort("kv_cache_size").pivot(on="kv_cache_size", index=batch, values=value)
    wide = wide.sort(batch)
    contexts = np.array(sorted(int(name) for name in wide.columns if name != batch))
    grid_ms = wide.select([str(c) for c in contexts]).to_numpy().astype(float)
    for row in grid_ms:
        known = ~np.isnan(row)
        row[~known] = np.interp(contexts[~known], contexts[known], row[known])
    return RegularGridInterpolator(
        (wide[batch].to_numpy(), contexts), grid_ms, bounds_error=False, fill_value=None
    )


def operator_table(operators: Operators, max_cells: int = MAX_CELLS) -> PerfTable:
    """The default plan's cells, as the composed stage would have measured them at one clock."""
    limits = GridLimits(
        max_tokens=1024,
        max_decodes=MAX_BATCH,
        max_context=MAX_CONTEXT,
        kv_tokens=MAX_BATCH * MAX_CONTEXT,
        tile_tokens=128,
        max_cells=max_cells,
    )
    steps = grid(limits)
    ms = np.array([operators.stage_ms(step) for step in steps])
    return seal_table(
        {
            "kind": np.array([str(RowKind.FORWARD)] * len(steps)),
            "clock_mhz": np.full(len(steps), 1410),
            "prefill_tokens": np.array([s.prefill_tokens for s in steps]),
            "prefill_context_tokens": np.array([s.prefill_context_tokens for s in steps]),
            "decode_requests": np.array([s.decode_requests for s in steps]),
            "decode_context_tokens": np.array([s.decode_context_tokens for s in steps]),
            "latency_ms": ms,
            # The operators carry no energy; 300 W a GPU only satisfies the schema.
            "energy_j": ms * 0.6,
            "passes": np.ones(len(steps), dtype=np.int64),
            "source": np.array(["imported"] * len(steps)),
        },
        {
            "model": "llama3-70b",
            "tp": "2",
            "pp": "4",
            "stage_layers": str(STAGE_LAYERS),
            "device": "a100-sxm4-80gb",
            "energy_source": "none",
        },
    )


def served_steps(operators: Operators, requests: Path, budget_tokens: int) -> list[StepShape]:
    """The batches of the headline trace under a plain chunked-prefill loop of ``budget_tokens``."""
    trace = pl.read_csv(requests)
    prompts = np.minimum(trace["ContextTokens"].to_numpy(), 3000)
    answers = np.clip(trace["GeneratedTokens"].to_numpy(), 1, 1000)
    arrivals_s = np.cumsum(np.random.default_rng(0).exponential(1 / 2.2, len(prompts)))
    steps: list[StepShape] = []
    now_s, following = 0.0, 0
    waiting: list[list[int]] = []  # [prompt, computed, answer]
    running: list[list[int]] = []  # [context, tokens left]
    while len(steps) < 4000 and following < len(prompts):
        while following < len(prompts) and arrivals_s[following] <= now_s:
            waiting.append([int(prompts[following]), 0, int(answers[following])])
            following += 1
        if not waiting and not running:
            now_s = arrivals_s[following]
            continue
        decodes = running[:MAX_BATCH]
        chunk = context = 0
        if waiting and len(decodes) < budget_tokens:
            prompt, context, _ = waiting[0]
            chunk = min(budget_tokens - len(decodes), prompt - context)
        step = StepShape(
            chunk, context if chunk else 0, len(decodes), sum(request[0] for request in decodes)
        )
        steps.append(step)
        now_s += operators.stage_ms(step) * 4e-3
        for request in decodes:
            request[0] += 1
            request[1] -= 1
        running = [request for request in running if request[1] > 0]
        if chunk:
            waiting[0][1] += chunk
            if waiting[0][1] == waiting[0][0]:
                prompt, _, answer = waiting.pop(0)
                running.append([prompt, answer])
    return steps


def unseen_steps(max_cells: int = MAX_CELLS) -> tuple[int, dict[str, Error]]:
    """Cells fitted, and the error over the trace's batches: all of them, and the mixed ones."""
    operators = Operators(DATA / "a100-operators")
    table = operator_table(operators, max_cells)
    cost = StepCost.from_table(table)
    requests = next((DATA / "measured-a100").glob("requests_*_3600s_3rps.csv"))
    errors = {}
    for budget_tokens in (256, 512, 1024):
        steps = served_steps(operators, requests, budget_tokens)
        true = np.array([operators.stage_ms(step) for step in steps])
        predicted = np.array([cost.latency_ms(step)[0] for step in steps])
        mixed = np.array([s.prefill_tokens > 0 and s.decode_requests > 0 for s in steps])
        errors[f"chunk {budget_tokens}, all"] = Error.of(predicted, true)
        errors[f"chunk {budget_tokens}, mixed"] = Error.of(predicted[mixed], true[mixed])
    return len(table), errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    if not DATA.is_dir():
        raise SystemExit(f"this benchmark needs the measurements in {DATA.name}/, which are absent")
    clocks = {
        csv.stem.removeprefix("dvfs_profile_").removesuffix("_one"): unseen_clocks(csv)
        for csv in sorted((DATA / "measured-a100").glob("dvfs_profile_*.csv"))
    }
    cells, steps = unseen_steps()
    if as_json:
        data = {
            "unseen_clocks": {
                name: {q: asdict(e) for q, e in errors.items()} for name, errors in clocks.items()
            },
            "cells_per_clock": cells,
            "unseen_steps": {name: asdict(error) for name, error in steps.items()},
        }
        print(json.dumps(data, indent=2))
        return
    print(f"Fitted on {len(TRAIN_CLOCKS_MHZ)} of 31 clocks, asked at the other 22:")
    for name, errors in clocks.items():
        print(
            f"  {name:65s} latency MAPE {errors['latency'].mape:6.2%}"
            f"   energy MAPE {errors['energy'].mape:6.2%}"
        )
    print(f"Fitted on {cells} cells composed from measured operators, asked for a served trace:")
    for name, error in steps.items():
        print(f"  {name:65s} latency MAPE {error.mape:6.2%}   bias {error.bias:+6.2%}")
    worst = max(error.mape for error in steps.values())
    median = statistics.median(error.mape for error in steps.values())
    print(f"  {'worst and median':65s} {worst:.2%} and {median:.2%}")


if __name__ == "__main__":
    main()
