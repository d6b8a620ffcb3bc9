"""What each policy costs on a trace, and how much of the saving each part of BEAM brings.

    python benchmarks/energy.py --table 70b.parquet --trace headline.csv [--json] [--quick]

The ladder: vanilla (chunk 256, and vLLM's own default), one static clock, window-dvfs,
lowest-feasible, beam-paper, beam, oracle. Then, unless --quick: beam without one rule of the
composer at a time, with 65 and 80 W per waiting GPU, and with a table that is 15 % and 10 %
wrong. Targets are for the headline hour; the exit code is 1 where one of them is missed.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from beam_runtime.table import PerfTable
from beamprof.replay.ladder import ReplayOptions, ReplayReport, Rung, replay
from beamprof.report.plain import plain
from beamprof.table_file import seal_table
from beamprof.traces.importing import open_trace
from beamprof.traces.trace import Trace
from beamprof.units import parse_duration_s

LADDER = ("vanilla:2048", "window-dvfs", "lowest-feasible", "beam-paper", "beam", "oracle")
RULES = ("beam:no-jit", "beam:no-ride", "beam:no-decode-first", "beam:no-pace")
WAITING_W = (65.0, 80.0)
BIAS, NOISE = 0.15, 0.10
# On the headline hour; TTFT in percentage points beside vanilla.
TARGETS = {"to_vanilla": 0.41, "to_knee": 0.56, "tbt": 0.999, "ttft_points": -0.1}


@dataclass(frozen=True, slots=True)
class Study:
    """One ladder and what was changed for it."""

    title: str
    report: ReplayReport


def studies(
    table: PerfTable, trace: Trace, options: ReplayOptions, *, quick: bool
) -> Iterator[Study]:
    """The ladder, then the variations."""
    yield Study("ladder", replay(table, trace, LADDER, options))
    if quick:
        return
    for watts in WAITING_W:
        at = replace(options, idle_power_w=watts)
        yield Study(f"{watts:g} W per waiting GPU", replay(table, trace, ["beam"], at))
    for share in (0.5, 2.0):
        slo = replace(
            options.slo, ttft_ms=options.slo.ttft_ms * share, tbt_ms=options.slo.tbt_ms * share
        )
        one = replay(table, trace, ["beam"], replace(options, slo=slo))
        yield Study(f"SLOs times {share:g}", one)
    for title, wrong in (
        (f"controller's latencies {BIAS:.0%} too low", biased(table, 1 - BIAS)),
        (f"controller's table with {NOISE:.0%} noise", noisy(table, NOISE)),
    ):
        one = replay(wrong, trace, ["beam"], options, plant_table=table)
        yield Study(title, one)
    yield Study("ablation: one rule off", replay(table, trace, RULES, options))


def biased(table: PerfTable, factor: float) -> PerfTable:
    """The table with every latency times ``factor``."""
    forward = table.columns["kind"] == "forward"
    latency_ms = np.where(forward, factor, 1.0) * table.columns["latency_ms"]
    return seal_table({**table.columns, "latency_ms": latency_ms}, table.metadata)


def noisy(table: PerfTable, share: float) -> PerfTable:
    """The table with every forward row's latency and energy off by a random share."""
    random = np.random.default_rng(0)
    forward = table.columns["kind"] == "forward"
    columns = dict(table.columns)
    for name in ("latency_ms", "energy_j"):
        factor = np.exp(random.normal(0.0, share, len(forward)))
        columns[name] = np.where(forward, factor, 1.0) * columns[name]
    return seal_table(columns, table.metadata)


def missed(beam: Rung) -> list[str]:
    """Which targets of the headline hour a rung misses."""
    kept = beam.metrics.attainment
    return [
        text
        for bad, text in (
            (beam.to_vanilla > TARGETS["to_vanilla"], f"energy {beam.to_vanilla:.3f} of vanilla"),
            (beam.to_knee > TARGETS["to_knee"], f"energy {beam.to_knee:.3f} of static:knee"),
            (kept.tbt < TARGETS["tbt"], f"TBT kept for {100 * kept.tbt:.2f} % of tokens"),
            (beam.ttft_points < TARGETS["ttft_points"], f"TTFT {beam.ttft_points:+.2f} points"),
        )
        if bad
    ]


def show(study: Study, console: Console) -> None:
    page = Table(
        "policy", "of vanilla", "of knee", "J/token", "TTFT p99 ms", "kept %", "points",
        "TBT p99 ms", "kept %", "steps/s", "decide us", title=study.title, box=None,
        title_justify="left",
    )  # fmt: skip
    for rung in study.report.rungs:
        m, kept = rung.metrics, rung.metrics.attainment
        page.add_row(
            m.policy, f"{rung.to_vanilla:.3f}", f"{rung.to_knee:.3f}", f"{m.j_per_token:.2f}",
            f"{m.ttft.p99_ms:.0f}", f"{100 * kept.ttft:.2f}", f"{rung.ttft_points:+.2f}",
            f"{m.tbt.p99_ms:.0f}", f"{100 * kept.tbt:.3f}", f"{m.steps / m.wall_s:,.0f}",
            f"{m.decision_mean_us:.0f}",
        )  # fmt: skip
    if study.report.oracle_j is not None:
        of_vanilla = study.report.oracle_j / study.report.vanilla.energy_j
        page.add_row("oracle (bound)", f"{of_vanilla:.3f}")
    console.print(page)
    console.print()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", required=True, type=Path)
    parser.add_argument("--trace", required=True, type=Path)
    parser.add_argument("--slo-ttft", default="1s")
    parser.add_argument("--slo-tbt", default="200ms")
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--quick", action="store_true", help="the ladder only")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    options = ReplayOptions(noise=asked.noise)
    slo = replace(
        options.slo,
        ttft_ms=parse_duration_s(asked.slo_ttft, "--slo-ttft") * 1e3,
        tbt_ms=parse_duration_s(asked.slo_tbt, "--slo-tbt") * 1e3,
    )
    options = replace(options, slo=slo)
    found = []
    for study in studies(
        PerfTable.load(asked.table), open_trace(asked.trace), options, quick=asked.quick
    ):
        found.append(study)
        if not asked.json:
            show(study, Console(width=120))
    beam = next(rung for rung in found[0].report.rungs if rung.metrics.policy == "beam")
    failed = missed(beam)
    if asked.json:
        print(json.dumps({"studies": plain(found), "targets": TARGETS, "missed": failed}, indent=1))
    else:
        print(f"headline targets missed: {'; '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
