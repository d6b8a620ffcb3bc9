"""What each policy costs on a trace, and how much of the saving each part of BEAM brings.

    python benchmarks/energy.py --table 70b.parquet --trace headline.csv [--trace more.csv ...]

Sections, all of them or those named by --only:

    ladder    vanilla (chunk 256, and vLLM's own default), one static clock, window-dvfs,
              lowest-feasible, beam-paper, beam, and the bound that no policy can stay under
    traces    beam-paper and beam on the further traces
    ablation  clock only, then one knob and one rule of the composer more at a time
    slo       SLOs half and twice as long
    wrong     the controller's table with 10 % noise; 15 % too fast, and too slow
    idle      45, 65 and 80 W per waiting GPU

Energy stands relative to vanilla's and to the best static clock's; `points` is TTFT attainment
less vanilla's, in percentage points. Each study is printed when it is done. TARGETS are for the
headline hour; the exit code is 1 where the first trace's beam misses one of them.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from beam_runtime.table.perf_table import PerfTable
from beamprof.plain import plain
from beamprof.replay.assumptions import Assumptions
from beamprof.replay.ladder import ReplayReport, Rung, replay
from beamprof.replay.options import ReplayOptions
from beamprof.replay.policies.beam import PARTS
from beamprof.tables.table_file import seal_table
from beamprof.traces.importing import open_trace
from beamprof.traces.trace import Trace
from beamprof.units import parse_duration_s

LADDER = ("vanilla:2048", "window-dvfs", "lowest-feasible", "beam-paper", "beam", "oracle")
ABLATION = tuple("beam:" + "+".join(("clock", *PARTS[:n])) for n in range(len(PARTS) + 1))
SECTIONS = ("ladder", "traces", "ablation", "slo", "wrong", "idle")
WAITING_W = (45.0, 65.0, 80.0)
BIAS, NOISE = 0.15, 0.10
# On the headline hour; TTFT in percentage points beside vanilla.
TARGETS = {"to_vanilla": 0.41, "to_knee": 0.56, "tbt": 0.999, "ttft_points": -0.1}


@dataclass(frozen=True, slots=True)
class Study:
    """One ladder and what was changed for it."""

    section: str
    title: str
    report: ReplayReport


def studies(
    table: PerfTable, traces: dict[str, Trace], options: ReplayOptions, sections: tuple[str, ...]
) -> Iterator[Study]:
    """One after the other, in the order of SECTIONS; the first trace is the one for all."""
    (name, trace), *others = traces.items()
    if "ladder" in sections:
        yield Study("ladder", name, replay(table, trace, LADDER, options))
    if "traces" in sections:
        for other, its in others:
            yield Study("traces", other, replay(table, its, ["beam-paper", "beam"], options))
    if "ablation" in sections:
        title = "one part more from line to line, the last is beam"
        yield Study("ablation", title, replay(table, trace, ABLATION, options))
    if "slo" in sections:
        for share in (0.5, 2.0):
            slo = replace(
                options.slo, ttft_ms=options.slo.ttft_ms * share, tbt_ms=options.slo.tbt_ms * share
            )
            at = replace(options, slo=slo)
            title = f"SLOs times {share:g}: {slo.ttft_ms:g} and {slo.tbt_ms:g} ms"
            yield Study("slo", title, replay(table, trace, ["beam"], at))
    if "wrong" in sections:
        for title, wrong in (
            (f"controller's table with {NOISE:.0%} noise", noisy(table, NOISE)),
            (f"controller's latencies {BIAS:.0%} too low", biased(table, 1 - BIAS)),
            (f"controller's latencies {BIAS:.0%} too high", biased(table, 1 + BIAS)),
        ):
            report = replay(wrong, trace, ["beam"], options, plant_table=table)
            yield Study("wrong", title, report)
    if "idle" in sections:
        for watts in WAITING_W:
            at = replace(options, idle_power_w=watts)
            yield Study("idle", f"{watts:g} W per waiting GPU", replay(table, trace, ["beam"], at))


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
        "TBT p99 ms", "kept %", "wall s", "decide us", box=None, title_justify="left",
        title=f"{study.section}: {study.title}",
    )  # fmt: skip
    for rung in study.report.rungs:
        m, kept = rung.metrics, rung.metrics.attainment
        page.add_row(
            shortened(m.policy), f"{rung.to_vanilla:.3f}", f"{rung.to_knee:.3f}",
            f"{m.j_per_token:.2f}", f"{m.ttft.p99_ms:.0f}", f"{100 * kept.ttft:.2f}",
            f"{rung.ttft_points:+.2f}", f"{m.tbt.p99_ms:.0f}", f"{100 * kept.tbt:.3f}",
            f"{m.wall_s:.1f}", f"{m.decision_mean_us:.0f}",
        )  # fmt: skip
    if study.report.oracle_j is not None:
        of_vanilla = study.report.oracle_j / study.report.vanilla.energy_j
        page.add_row("oracle (bound)", f"{of_vanilla:.3f}")
    console.print(page)
    console.print()


def shortened(policy: str) -> str:
    """Of a list of parts the last: what it has more than the line above."""
    *before, last = policy.split("+")
    return f"  + {last}" if before else last


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", required=True, type=Path)
    parser.add_argument("--trace", required=True, type=Path, action="append")
    parser.add_argument("--only", choices=SECTIONS, action="append", metavar="SECTION")
    parser.add_argument("--slo-ttft", default="1s")
    parser.add_argument("--slo-tbt", default="200ms")
    parser.add_argument("--assume", choices=tuple(Assumptions), default=Assumptions.VALIDATED)
    parser.add_argument("--noise", type=float)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    slo = replace(
        ReplayOptions().slo,
        ttft_ms=parse_duration_s(asked.slo_ttft, "--slo-ttft") * 1e3,
        tbt_ms=parse_duration_s(asked.slo_tbt, "--slo-tbt") * 1e3,
    )
    options = ReplayOptions.assuming(Assumptions(asked.assume), noise=asked.noise, slo=slo)
    traces = {path.name: open_trace(path) for path in asked.trace}
    found = []
    for study in studies(
        PerfTable.load(asked.table), traces, options, tuple(asked.only or SECTIONS)
    ):
        found.append(study)
        if not asked.json:
            show(study, Console(width=120))
    failed = [
        text
        for study in found
        for rung in study.report.rungs
        if study.section == "ladder" and rung.metrics.policy == "beam"
        for text in missed(rung)
    ]
    if asked.json:
        print(json.dumps({"studies": plain(found), "targets": TARGETS, "missed": failed}, indent=1))
    elif any(study.section == "ladder" for study in found):
        print(f"headline targets missed: {'; '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
