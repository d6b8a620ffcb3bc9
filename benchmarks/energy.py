"""What each policy costs on a trace, and how much of the saving each part of BEAM brings.

    python benchmarks/energy.py --table 70b.parquet --trace headline.csv [--trace more.csv ...]

Sections, all of them or those named by --only:

    ladder    vanilla (chunk 256, and vLLM's own default), the best static setting, window-dvfs,
              lowest-feasible, beam-paper, beam, and the bound that no policy can stay under
    traces    beam-paper and beam on the further traces
    ablation  clock only, then one knob and one rule of the composer more at a time
    slo       SLOs half and twice as long
    wrong     the controller's table with 10 % noise; 15 % too fast, and too slow
    idle      45, 65 and 80 W per waiting GPU

Energy stands relative to vanilla's and to the best static setting's; goodput is the share of
requests with every promise kept. Each study is printed when it is done. TARGETS are for the
headline hour; the exit code is 1 where the first trace's beam misses one of them. Further traces
and SLOs: energy_grid.py.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from beam_runtime.table.perf_table import PerfTable
from beamprof.plain import plain
from beamprof.replay.assumptions import Assumptions
from beamprof.replay.ladder import ReplayReport, Rung, replay
from beamprof.replay.options import ReplayOptions
from beamprof.replay.policies.beam import PARTS
from beamprof.replay.sensitivity import biased, noisy
from beamprof.slo import parse_slo, slo_of, slo_text
from beamprof.traces.importing import open_trace
from beamprof.traces.trace import Trace

LADDER = ("vanilla:2048", "window-dvfs", "lowest-feasible", "beam-paper", "beam", "oracle")
ABLATION = tuple("beam:" + "+".join(("clock", *PARTS[:n])) for n in range(len(PARTS) + 1))
SECTIONS = ("ladder", "traces", "ablation", "slo", "wrong", "idle")
WAITING_W = (45.0, 65.0, 80.0)
BIAS, NOISE = 0.15, 0.10
# On the headline hour, 1 s / 200 ms.
TARGETS = {"to_vanilla": 0.50, "goodput": 0.975}


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
            given = options.slo
            slo = slo_of(given.kind, given.ttft_ms * share, given.stream_ms * share)
            at = replace(options, slo=slo)
            title = f"SLOs times {share:g}: {slo_text(slo)}"
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


def missed(beam: Rung) -> list[str]:
    """Which targets of the headline hour a rung misses."""
    goodput = beam.metrics.goodput
    return [
        text
        for bad, text in (
            (beam.to_vanilla > TARGETS["to_vanilla"], f"energy {beam.to_vanilla:.3f} of vanilla"),
            (goodput < TARGETS["goodput"], f"goodput {100 * goodput:.1f} %"),
        )
        if bad
    ]


def show(study: Study, console: Console) -> None:
    page = Table(
        "policy", "goodput %", "of vanilla", "of static", "J/token", "request s", "p99 s",
        "tokens/s", "TTFT p99 ms", "TBT p99 ms", "wall s", "decide us", box=None,
        title_justify="left", title=f"{study.section}: {study.title}",
    )  # fmt: skip
    for rung in study.report.rungs:
        m = rung.metrics
        page.add_row(
            shortened(m.policy), f"{100 * m.goodput:.1f}", f"{rung.to_vanilla:.3f}",
            f"{rung.to_static:.3f}", f"{m.j_per_token:.2f}", f"{m.request.mean_ms / 1e3:.1f}",
            f"{m.request.p99_ms / 1e3:.1f}", f"{m.tokens_per_s_user:.1f}",
            f"{m.ttft.p99_ms:.0f}", f"{m.tbt.p99_ms:.0f}",
            f"{m.wall_s:.1f}", f"{m.decision_mean_us:.0f}",
        )  # fmt: skip
    if study.report.oracle_j is not None:
        of_vanilla = study.report.oracle_j / study.report.vanilla.energy_j
        page.add_row("oracle (bound)", "", f"{of_vanilla:.3f}")
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
    parser.add_argument("--slo", default="1s/200ms")
    parser.add_argument("--assume", choices=tuple(Assumptions), default=Assumptions.VALIDATED)
    parser.add_argument("--noise", type=float)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    slo = parse_slo(asked.slo, "--slo")
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
