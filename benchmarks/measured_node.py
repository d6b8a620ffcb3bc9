"""A measured node as the plant sees it: its minutes drawn, replayed, and held against the rows.

fidelity.py says what was measured, and which constants there are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.step_cost import StepCost, clock_index
from beam_runtime.types import EngineLimits, Slo
from beamprof.replay.options import FRONT_END_MS, HOST_GAP_MS
from beamprof.replay.plant import play
from beamprof.replay.played import Played
from beamprof.replay.policies.static import Static
from beamprof.replay.site import Site
from beamprof.tables.waiting_power import with_waiting_power
from beamprof.traces.trace import Provenance, Trace

MINUTE_S = 60.0
POWER_WINDOW_S = 30.0
# What the authors' load generator was asked for (../shared/data/measured-a100/SOURCE.md).
INPUT_TOKENS, OUTPUT_TOKENS, SPREAD = 1050, 150, 0.3
CHUNK_TOKENS = 256
KV_BLOCKS = 1 << 20  # 150 requests of 1,200 tokens are far from filling 8 x 80 GB
# Above this load low clocks are saturated, and a minute's luck decides TTFT.
TTFT_TPS = 2400.0
MEASURES = ("gpu_power", "ttft_mean", "tbt_mean", "tbt_p90")

Row = dict[str, float]


@dataclass(frozen=True, slots=True)
class Constants:
    """See fidelity.py; None of the waiting power: by clock, as `beam replay` has it."""

    host_gap_ms: float = HOST_GAP_MS
    front_end_ms: float = FRONT_END_MS
    waiting_power_w: float | None = None


@dataclass(frozen=True, slots=True)
class RowError:
    """A row's predicted over measured less 1, by measure, and the draws' relative deviation."""

    clock_mhz: int
    tps: float
    fitted: bool
    errors: dict[str, float]
    luck: dict[str, float]


@dataclass(frozen=True, slots=True)
class Judged:
    """One set of constants: its rows, and mean absolute errors over those not fitted."""

    constants: Constants
    rows: tuple[RowError, ...]
    mape: dict[str, float]
    luck: dict[str, float]


class Node:
    """The measured node as the plant sees it."""

    def __init__(self, table: PerfTable, clocks_mhz: Sequence[int], seeds: int) -> None:
        self.table = table
        self.cost = StepCost.from_table(table, clocks_mhz)
        self.seeds = seeds

    def simulate(self, row: Row, c: Constants) -> Row:
        """Means over the seeds of what was measured."""
        mean: Row = dict(zip(MEASURES, self.draws(row, c).mean(axis=0).tolist(), strict=True))
        return mean

    def draws(self, row: Row, c: Constants) -> NDArray[np.float64]:
        """(seeds, measures)."""
        cost = with_waiting_power(self.cost, self.table, c.waiting_power_w, lambda words: None)
        limits = EngineLimits(pp=self.table.pp, host_gap_ms=c.host_gap_ms)
        site = Site(cost, cost, limits, KV_BLOCKS, Slo(), front_end_ms=c.front_end_ms)
        waiting_w = float(cost.idle_power_w[clock_index(cost, row["clock"])])
        policy = Static("static", int(row["clock"]), CHUNK_TOKENS)
        found = []
        for seed in range(self.seeds):
            played = play(draw(row["tps"], seed), policy, site)
            first = played.first_token_ms <= MINUTE_S * 1e3
            ttft = (played.first_token_ms - played.arrival_ms)[first]
            inside = played.tokens["at_ms"] <= MINUTE_S * 1e3
            gaps = played.tokens["gap_ms"][inside]
            power_w = window_power_w(played, waiting_w)
            found.append([power_w, ttft.mean(), gaps.mean(), np.percentile(gaps, 90)])
        return np.array(found)

    def judge(self, rows: Sequence[Row], c: Constants, fitted: Sequence[int] = ()) -> Judged:
        """Every row held against what was measured."""
        judged = []
        for number, row in enumerate(rows):
            draws = self.draws(row, c)
            mean, deviation = draws.mean(axis=0), draws.std(axis=0, ddof=1)
            found = dict(zip(MEASURES, mean.tolist(), strict=True))
            luck = dict(zip(MEASURES, (deviation / mean).tolist(), strict=True))
            clock = int(row["clock"])
            judged.append(RowError(clock, row["tps"], number in fitted, relative(found, row), luck))
        unseen = [one for one in judged if not one.fitted]
        return Judged(
            c, tuple(judged), mape(unseen, lambda one: one.errors), mape(unseen, lambda r: r.luck)
        )


def draw(tps: float, seed: int) -> Trace:
    """One minute of requests as the authors' load generator makes them."""
    random = np.random.default_rng(seed)
    rate_rps = tps / INPUT_TOKENS
    most = int(rate_rps * MINUTE_S * 2) + 50
    arrival_s = np.cumsum(random.exponential(1.0 / rate_rps, most))
    arrival_s = arrival_s[arrival_s < MINUTE_S]

    def lengths(mean: int) -> NDArray[np.int64]:
        low, high = round(mean * (1 - SPREAD)), round(mean * (1 + SPREAD))
        return random.integers(low, high, len(arrival_s), endpoint=True)

    frame = pl.DataFrame(
        {
            "request_id": np.arange(len(arrival_s)),
            "arrival_s": arrival_s,
            "input_tokens": lengths(INPUT_TOKENS),
            "output_tokens": lengths(OUTPUT_TOKENS),
        }
    )
    return Trace(frame, MINUTE_S, Provenance("poisson", "benchmark", None, "own"))


def window_power_w(played: Played, waiting_stage_w: float) -> float:
    """Mean power of all GPUs over the power window; a step's energy is spread over its stay."""
    steps = played.steps
    issued_ms = steps["issued_ms"]
    stay_ms = steps["finished_ms"] - issued_ms
    inside = np.clip((POWER_WINDOW_S * 1e3 - issued_ms) / stay_ms, 0.0, 1.0)
    active_j = float((inside * steps["energy_j"]).sum())
    busy_s = float((inside * steps["busy_ms"]).sum()) / 1e3
    idle_j = waiting_stage_w * (played.pp * POWER_WINDOW_S - busy_s)
    return (active_j + idle_j) / POWER_WINDOW_S


def relative(found: Mapping[str, float], row: Row) -> dict[str, float]:
    """Predicted over measured, less 1."""
    return {name: found[name] / row[name] - 1 for name in MEASURES}


def mape(
    rows: Sequence[RowError], of: Callable[[RowError], Mapping[str, float]]
) -> dict[str, float]:
    """Mean absolute values; TTFT where low clocks are not saturated."""
    means = {}
    for name in MEASURES:
        kept = [r for r in rows if name != "ttft_mean" or r.tps <= TTFT_TPS]
        means[name] = float(np.mean([abs(of(r)[name]) for r in kept])) if kept else 0.0
    return means
