"""Energy and goodput over a grid of traces and SLOs, on the plant that `beam replay` assumes.

    python benchmarks/energy_grid.py --table 70b.parquet --data ../shared/data --cells DIR \
        [--traces headline,d0] [--slos 1s/200ms,1s/tpot=100ms] [--policies beam,beam-paper] [--json]

Each cell compares vanilla (chunk 256), vanilla with the chunk that keeps most requests' promises,
static:best (the cheapest clock and chunk that keep as many, within 0.1 points, found with
hindsight) and the policies asked for. A finished part lies in DIR and is not played again until
the sources or the question change; so any subset can be run, and run again. The exit code is 1
where a policy keeps fewer requests' promises than the better of vanilla and static:best, less 0.3
points, or costs more than static:best.
"""

import argparse
import hashlib
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import beam_runtime
import beamprof
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.types import Slo
from beamprof.plain import plain
from beamprof.replay.assumptions import Assumptions
from beamprof.replay.metrics import Metrics, measure
from beamprof.replay.options import ReplayOptions
from beamprof.replay.plant import play
from beamprof.replay.played import Played
from beamprof.replay.policies.registry import policy_named
from beamprof.replay.policies.static import Static
from beamprof.replay.rivals import find_rivals
from beamprof.replay.site import site_of
from beamprof.slo import parse_slo, slo_text
from beamprof.traces.importing import open_trace
from beamprof.traces.policies import OverLimit
from beamprof.traces.trace import Trace
from beamprof.traces.transforms import cap_total_tokens, thin_to_tokens_per_s

_SERVEGEN = "traces/servegen-generated/servegen-{}.csv"
# File under --data, and the tokens per second (in + out) that it is thinned to.
TRACES: dict[str, tuple[str, float | None]] = {
    "headline": (
        "measured-a100/requests_lang_m-small_day1_19h00m-20h00m_3600s_3rps.csv", None),
    "light": ("measured-a100/requests_lang_m-small_day1_19h00m-20h00m_3600s_3rps.csv", 500.0),
    "d0": (_SERVEGEN.format("mlarge-d0-1900-s04"), None),
    "d1": (_SERVEGEN.format("mlarge-d1-1900-s01"), None),
    "d7": (_SERVEGEN.format("mlarge-d7-1900-s02"), None),
    "r1": (_SERVEGEN.format("r1-d0-1900-s01"), None),
    "azure-conv": ("traces/azure-2023/AzureLLMInferenceTrace_conv.csv", 1800.0),
    "azure-code": ("traces/azure-2023/AzureLLMInferenceTrace_code.csv", 1800.0),
    "mooncake": ("traces/mooncake-fast25/conversation_trace.jsonl", 1800.0),
}  # fmt: skip
SLOS = (
    "1s/200ms", "1s/150ms", "1s/120ms", "1s/100ms", "500ms/100ms",
    "1s/tpot=120ms", "1s/tpot=100ms", "500ms/tpot=100ms",
)  # fmt: skip
# Answers of thousands of tokens are not lost for one gap.
LONG_ANSWERS = ("r1",)
MAX_TOTAL_TOKENS = 16384
GOODPUT_LESS = 0.003
POLICIES = ("beam",)


@dataclass(frozen=True, slots=True)
class Part:
    """What one process plays: the rivals of a trace for all SLOs, or one policy for one SLO."""

    table: Path
    data: Path
    trace: str
    slos: tuple[str, ...]
    policy: str | None
    assume: str
    noise: float | None

    def __str__(self) -> str:
        return f"{self.trace} {self.policy or 'rivals'} {' '.join(self.slos)}"

    @property
    def key(self) -> str:
        """Hash of the question and of the sources that answer it."""
        table_sha256 = hashlib.sha256(self.table.read_bytes()).hexdigest()
        said = [table_sha256, self.trace, TRACES[self.trace], self.slos, self.policy, self.assume]
        code = _code(controls=self.policy is not None)
        return hashlib.sha256(json.dumps([*said, self.noise, code]).encode()).hexdigest()[:24]


@cache
def _code(*, controls: bool) -> str:
    """Hash of what a fixed setting depends on, and with ``controls`` what decisions do too."""
    runtime, ours = Path(beam_runtime.__file__).parent, Path(beamprof.__file__).parent
    rooms = ("types", "emulator", "table", *(("search", "control") if controls else ()))
    folders = [*(runtime / room for room in rooms), ours / "replay", ours / "devices"]
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted((*folder.rglob("*.py"), *folder.rglob("*.toml"))):
            digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


def load(data: Path, name: str) -> Trace:
    """One of TRACES as it is played."""
    file, target_tps = TRACES[name]
    trace = cap_total_tokens(open_trace(data / file), MAX_TOTAL_TOKENS, OverLimit.DROP)
    return trace if target_tps is None else thin_to_tokens_per_s(trace, target_tps, seed=0)


def slo_for(trace: str, text: str) -> Slo:
    """Of traces with long answers 99 % of the gaps are promised."""
    slo = parse_slo(text, "--slos")
    if trace in LONG_ANSWERS and slo.tbt_ms is not None:
        return replace(slo, tbt_share=0.99)
    return slo


def play_part(part: Part) -> list[dict[str, Any]]:
    """Rows: trace, SLO, policy, what it was set to, and its metrics."""
    table, trace = PerfTable.load(part.table), load(part.data, part.trace)
    slos = [slo_for(part.trace, text) for text in part.slos]
    options = ReplayOptions.assuming(Assumptions(part.assume), noise=part.noise, slo=slos[0])
    site, _ = site_of(table, table, options)
    if part.policy is not None:
        played = play(trace, policy_named(part.policy, table), site)
        return [_row(part, slos[0], part.policy, "", measured(played, trace))]
    rows = []
    top = int(site.cost.clocks_mhz[-1])
    for slo, rivals in zip(slos, find_rivals(trace, site, slos), strict=True):
        for name, clock, chunk in (
            ("vanilla", top, 256),
            ("vanilla:best", top, rivals.vanilla.chunk_tokens),
            ("static:best", rivals.static.clock_mhz, rivals.static.chunk_tokens),
        ):
            played = play(trace, Static(name, clock, chunk), replace(site, slo=slo))
            rows.append(_row(part, slo, name, f"{clock} MHz, {chunk}", measured(played, trace)))
    return rows


def measured(played: Played, trace: Trace) -> Metrics:
    """Without saying which requests were possible."""
    return measure(played, np.ones(trace.requests, dtype=bool))


def _row(part: Part, slo: Slo, policy: str, setting: str, metrics: Metrics) -> dict[str, Any]:
    return {
        "trace": part.trace, "slo": slo_text(slo), "policy": policy, "setting": setting,
        "metrics": plain(metrics),
    }  # fmt: skip


def parts_of(asked: argparse.Namespace) -> list[Part]:
    """Long parts first: policies that decide, then rivals."""
    names, slos = asked.traces.split(","), tuple(asked.slos.split(","))
    same = (asked.table, asked.data)
    how = (asked.assume, asked.noise)
    rivals = [Part(*same, name, slos, None, *how) for name in names]
    return rivals + [
        Part(*same, name, (slo,), policy, *how)
        for name in names
        for slo in slos
        for policy in asked.policies.split(",")
    ]


def run(parts: Sequence[Part], cells: Path, workers: int, say: Any) -> list[dict[str, Any]]:
    """Play what does not lie in ``cells`` yet; all rows, in the order of ``parts``."""
    cells.mkdir(parents=True, exist_ok=True)
    todo = [part for part in parts if not (cells / f"{part.key}.json").exists()]
    say(f"{len(parts) - len(todo)} of {len(parts)} parts are there")
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        under_way = {pool.submit(play_part, part): part for part in todo}
        for done in as_completed(under_way):
            path = cells / f"{under_way[done].key}.json"
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(done.result()))
            temporary.replace(path)
            say(f"played {under_way[done]}")
    found = (json.loads((cells / f"{part.key}.json").read_text()) for part in parts)
    return [row for rows in found for row in rows]


def compared(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each row of a policy beside vanilla and static:best of its trace and SLO."""
    rows = list(rows)
    at = {(row["trace"], row["slo"], row["policy"]): row["metrics"] for row in rows}
    answers = []
    for row in rows:
        place, m = (row["trace"], row["slo"]), row["metrics"]
        vanilla, best, static = (
            at[*place, name] for name in ("vanilla", "vanilla:best", "static:best")
        )
        answers.append({
            "trace": row["trace"], "slo": row["slo"], "policy": row["policy"],
            "setting": row["setting"],
            "goodput": m["goodput"],
            "to_vanilla": m["energy_j"] / vanilla["energy_j"],
            "to_static": m["energy_j"] / static["energy_j"],
            "goodput_to_reach": max(best["goodput"], static["goodput"]) - GOODPUT_LESS,
            "request_mean_s": m["request"]["mean_ms"] / 1e3,
            "request_p99_s": m["request"]["p99_ms"] / 1e3,
            "tokens_per_s_user": m["tokens_per_s_user"],
            "ttft_p50_ms": m["ttft"]["p50_ms"], "ttft_p99_ms": m["ttft"]["p99_ms"],
            "wall_s": m["wall_s"], "decision_mean_us": m["decision_mean_us"],
        })  # fmt: skip
    return answers


def missed(answer: dict[str, Any]) -> str:
    """What a policy that decides misses in its cell, in words; empty where nothing."""
    if answer["policy"] in ("vanilla", "vanilla:best", "static:best"):
        return ""
    words = []
    if answer["goodput"] < answer["goodput_to_reach"]:
        words.append(f"goodput {100 * (answer['goodput'] - answer['goodput_to_reach']):+.1f}")
    if answer["to_static"] > 1.0:
        words.append("dearer than static")
    return ", ".join(words)


def show(answers: Sequence[dict[str, Any]], console: Console) -> None:
    page = Table(
        "trace", "SLO", "policy", "goodput %", "of vanilla", "of static", "request s", "p99 s",
        "tokens/s", "TTFT p99", "wall s", "", box=None,
    )  # fmt: skip
    for one in answers:
        page.add_row(
            one["trace"], one["slo"], one["policy"], f"{100 * one['goodput']:.1f}",
            f"{one['to_vanilla']:.3f}", f"{one['to_static']:.3f}", f"{one['request_mean_s']:.1f}",
            f"{one['request_p99_s']:.1f}", f"{one['tokens_per_s_user']:.1f}",
            f"{one['ttft_p99_ms']:.0f}", f"{one['wall_s']:.1f}",
            one["setting"] or missed(one),
        )  # fmt: skip
    console.print(page)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", required=True, type=Path)
    parser.add_argument("--data", required=True, type=Path, help="where the traces lie")
    parser.add_argument("--cells", required=True, type=Path, help="folder of finished parts")
    parser.add_argument("--traces", default=",".join(TRACES))
    parser.add_argument("--slos", default=",".join(SLOS))
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--assume", choices=tuple(Assumptions), default=Assumptions.VALIDATED)
    parser.add_argument("--noise", type=float)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    console = Console(stderr=True)
    answers = compared(run(parts_of(asked), asked.cells, asked.workers, console.print))
    if asked.json:
        print(json.dumps({"rows": answers}, indent=1))
    else:
        show(answers, Console(width=130))
    return 1 if any(missed(one) for one in answers) else 0


if __name__ == "__main__":
    raise SystemExit(main())
