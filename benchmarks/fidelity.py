"""How far the replay can be trusted: a measured node, row by row.

    python benchmarks/fidelity.py --table 70b.parquet --endtoend endtoend.csv [--json]

Every measured row is a minute of Poisson arrivals at one locked clock. It is replayed over 20
draws of arrivals and lengths (the authors' own draw is not known), and power, TTFT and TBT are
held against what was measured. Three constants are fitted on one row per clock, each with the
next load in turn; the errors that count are those of the rows not fitted:

    host gap       ms per stage and step that no pass covers       fits the mean TBT
    front end      ms from a request's sending to its queue        fits the mean TTFT
    waiting power  W of a GPU that waits                           fits the mean power

What this does not cover: the measured 30 s of power include a start-up of unknown length, and
at 1400 MHz the node was no faster than at 1200 MHz, which no constant here explains.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.optimize import minimize_scalar

from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import EngineLimits, Slo
from beamprof.errors import ReplayError
from beamprof.replay.plant import play
from beamprof.replay.played import Played
from beamprof.replay.policies.static import Static
from beamprof.replay.site import Site
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
TARGETS = {"gpu_power": 0.05, "ttft_mean": 0.10, "tbt_mean": 0.05, "tbt_p90": 0.08}
COLUMNS = ("clock", "tp", "pp", "tps", *MEASURES)

Row = dict[str, float]


@dataclass(frozen=True, slots=True)
class Constants:
    """What is fitted; see the module's docstring."""

    host_gap_ms: float = 5.5
    front_end_ms: float = 0.0
    waiting_power_w: float = 45.0


@dataclass(frozen=True, slots=True)
class RowError:
    """A row's predicted over measured less 1, by measure."""

    clock_mhz: int
    tps: float
    fitted: bool
    errors: dict[str, float]


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Every row, and mean absolute errors over the rows not fitted (TTFT up to TTFT_TPS)."""

    constants: Constants
    seeds: int
    rows: tuple[RowError, ...]
    mape: dict[str, float]
    mape_all_rows: dict[str, float]


class Node:
    """The measured node as the plant sees it."""

    def __init__(self, table: PerfTable, clocks_mhz: Sequence[int], seeds: int) -> None:
        self.table = table
        self.cost = StepCost.from_table(table, clocks_mhz)
        self.seeds = seeds

    def simulate(self, row: Row, c: Constants) -> Row:
        """Means over the seeds of what was measured."""
        waiting_w = self.table.tp * c.waiting_power_w
        cost = replace(self.cost, idle_power_w=np.full(len(self.cost.clocks_mhz), waiting_w))
        limits = EngineLimits(pp=self.table.pp, host_gap_ms=c.host_gap_ms)
        site = Site(cost, cost, limits, KV_BLOCKS, Slo())
        policy = Static("static", int(row["clock"]), CHUNK_TOKENS)
        found = []
        for seed in range(self.seeds):
            played = play(draw(row["tps"], seed), policy, site)
            first = played.first_token_ms <= MINUTE_S * 1e3
            ttft = (played.first_token_ms - played.arrival_ms)[first] + c.front_end_ms
            inside = played.tokens["at_ms"] <= MINUTE_S * 1e3
            gaps = played.tokens["gap_ms"][inside]
            power_w = window_power_w(played, waiting_w)
            found.append([power_w, ttft.mean(), gaps.mean(), np.percentile(gaps, 90)])
        return dict(zip(MEASURES, np.mean(found, axis=0).tolist(), strict=True))


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


def rows_to_fit(rows: Sequence[Row]) -> list[int]:
    """One row per clock, five at most: every clock with the next load in turn."""
    clocks = sorted({row["clock"] for row in rows})[:5]
    loads = sorted({row["tps"] for row in rows})
    wanted = {(clock, loads[(i + 1) % len(loads)]) for i, clock in enumerate(clocks)}
    return [i for i, row in enumerate(rows) if (row["clock"], row["tps"]) in wanted]


def fit(node: Node, rows: Sequence[Row]) -> Constants:
    """One constant after the other, each from the measure that shows it best."""

    def tbt_error(gap_ms: float) -> float:
        errors = [
            node.simulate(row, Constants(gap_ms))["tbt_mean"] / row["tbt_mean"] - 1 for row in rows
        ]
        return float(np.square(errors).sum())

    found = minimize_scalar(tbt_error, bounds=(0.0, 15.0), method="bounded", options={"xatol": 0.1})
    c = Constants(round(float(found.x), 1))
    ttft = [
        row["ttft_mean"] - node.simulate(row, c)["ttft_mean"]
        for row in rows if row["tps"] <= TTFT_TPS
    ]  # fmt: skip
    c = replace(c, front_end_ms=round(max(0.0, float(np.median(ttft))), 0) if ttft else 0.0)
    # Power is linear in what a waiting GPU draws: two points give the line, least squares the rest.
    at_0, at_1 = (
        np.array(
            [
                node.simulate(r, replace(c, waiting_power_w=w))["gpu_power"] / r["gpu_power"]
                for r in rows
            ]
        )
        for w in (0.0, 1.0)
    )
    slope = at_1 - at_0
    return replace(c, waiting_power_w=round(float(slope @ (1 - at_0) / (slope @ slope)), 1))


def fidelity(table: PerfTable, endtoend: Path, seeds: int) -> Fidelity:
    """Fit, replay every row, and compare.

    Raises:
        ReplayError: the file has no row of the table's layout, or lacks a column.
    """
    rows = read_rows(endtoend, table)
    clocks = sorted({*table.clocks_mhz, *(int(row["clock"]) for row in rows)})
    inside = [c for c in clocks if table.clocks_mhz[0] <= c <= table.clocks_mhz[-1]]
    rows = [row for row in rows if row["clock"] in inside]
    node = Node(table, inside, seeds)
    fitted = rows_to_fit(rows)
    constants = fit(node, [rows[i] for i in fitted])
    judged = tuple(
        RowError(
            int(row["clock"]), row["tps"], i in fitted, relative(node.simulate(row, constants), row)
        )
        for i, row in enumerate(rows)
    )
    unseen = [one for one in judged if not one.fitted]
    return Fidelity(constants, seeds, judged, mape(unseen), mape(judged))


def read_rows(path: Path, table: PerfTable) -> list[Row]:
    """The rows of the table's layout."""
    frame = pl.read_csv(path)
    missing = [name for name in COLUMNS if name not in frame.columns]
    if missing:
        raise ReplayError(f"{path.name} lacks {', '.join(missing)}", cause=f"found {frame.columns}")
    own = frame.filter((pl.col("tp") == table.tp) & (pl.col("pp") == table.pp))
    if own.is_empty():
        raise ReplayError(
            f"{path.name} has no rows for tp {table.tp}, pp {table.pp}, the table's layout",
            cause=f"it has {frame.select('tp', 'pp').unique().rows()}",
        )
    return own.cast(dict.fromkeys(MEASURES, pl.Float64)).to_dicts()


def relative(found: Mapping[str, float], row: Row) -> dict[str, float]:
    """Predicted over measured, less 1."""
    return {name: found[name] / row[name] - 1 for name in MEASURES}


def mape(rows: Sequence[RowError]) -> dict[str, float]:
    """Mean absolute errors; TTFT where low clocks are not saturated."""
    means = {}
    for name in MEASURES:
        kept = [r for r in rows if name != "ttft_mean" or r.tps <= TTFT_TPS]
        means[name] = float(np.mean([abs(r.errors[name]) for r in kept])) if kept else 0.0
    return means


def show(result: Fidelity, console: Console) -> None:
    c = result.constants
    console.print(
        f"{c.host_gap_ms:g} ms host gap, {c.front_end_ms:g} ms front end, {c.waiting_power_w:g} W "
        f"waiting GPU, fitted on {sum(r.fitted for r in result.rows)} of {len(result.rows)} rows; "
        f"{result.seeds} seeds a row"
    )
    page = Table("clock MHz", "tokens/s", "power %", "TTFT %", "TBT %", "TBT p90 %", "", box=None)
    for r in result.rows:
        errors = [f"{100 * r.errors[name]:+.1f}" for name in MEASURES]
        page.add_row(f"{r.clock_mhz}", f"{r.tps:g}", *errors, "fitted" if r.fitted else "")
    for title, means in (("not fitted", result.mape), ("all rows", result.mape_all_rows)):
        page.add_row("mean of", title, *(f"{100 * means[name]:.1f}" for name in MEASURES), "")
    page.add_row("", "target", *(f"{100 * TARGETS[name]:.0f}" for name in MEASURES), "")
    console.print(page)
    console.print(f"TTFT means are over loads up to {TTFT_TPS:g} tokens/s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", required=True, type=Path)
    parser.add_argument("--endtoend", required=True, type=Path)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    result = fidelity(PerfTable.load(asked.table), asked.endtoend, asked.seeds)
    if asked.json:
        print(json.dumps({**asdict(result), "targets": TARGETS}, indent=1))
    else:
        show(result, Console(width=100))
    return 0 if all(result.mape[name] <= TARGETS[name] for name in MEASURES) else 1


if __name__ == "__main__":
    raise SystemExit(main())
