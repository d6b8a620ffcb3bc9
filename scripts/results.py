"""Write docs/results.md: every number from a benchmark's own JSON, with machine, commit and date.

    python scripts/results.py --data ../shared/data --work /tmp/results

About fifteen minutes on two cores. What --work holds already is not played again: the grid's parts
as energy_grid.py has it, the other steps until their sources change, so an interrupted run goes on.
The data are those of ../shared/data; without them there is nothing to write.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SOURCES = ("beam_runtime", "beamprof", "benchmarks")
HOUR = "measured-a100/requests_lang_m-small_day1_19h00m-20h00m_3600s_3rps.csv"
HEADLINE, ONE_SLO = "headline", "1s/200ms"
OTHERS = ("light", "d0", "d1", "d7", "r1", "azure-conv")
SLOS = ("1s/200ms", "1s/150ms", "1s/120ms", "1s/100ms", "1s/tpot=120ms", "1s/tpot=100ms")
LADDER = (
    "vanilla,static:best,vanilla:best,vanilla:2048,static:knee,max-q,window-dvfs,beam-paper,beam,"
    "oracle"
)
# Name, table's CSV under measured-a100 or measured-more-nodes, and the serving rows.
NODES = (
    ("70b", "measured-a100/dvfs_profile_*Llama-3.3-70B*.csv", "measured-a100/endtoend_*.csv"),
    ("14b-pcie", "measured-more-nodes/dvfs_profile_*A100 80GB PCIe*.csv",
     "measured-more-nodes/endtoend_*PCIe*.csv"),
    ("14b-a6000", "measured-more-nodes/dvfs_profile_*A6000*.csv",
     "measured-more-nodes/endtoend_*A6000*.csv"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Step:
    """A command that prints JSON; exit code 1 is an answer too: a target is missed."""

    name: str
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        """As a reader would type it, from the repository's root."""
        return " ".join(self.words)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--work", required=True, type=Path, help="folder for tables and JSON")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results.md")
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    tables = [imported(asked.data, asked.work / f"{name}.parquet", csv) for name, csv, _ in NODES]
    steps = steps_of(asked.data, asked.work, tables)
    with ThreadPoolExecutor(2) as pool:
        answers = dict(
            zip((one.name for one in steps), pool.map(played(asked.work), steps), strict=True)
        )
    text = page(steps, answers)
    # Where it was run says nothing: a reader has a folder of his own.
    for mine, anyones in ((asked.data, "../shared/data"), (asked.work, "WORK")):
        text = text.replace(str(mine), anyones)
    asked.output.write_text(text, encoding="utf-8")
    print(f"wrote {asked.output}")
    return 0


def steps_of(data: Path, work: Path, tables: Sequence[Path]) -> list[Step]:
    """The longest first."""
    python, table = "python", str(tables[0])
    grid = (python, "benchmarks/energy_grid.py", "--table", table, "--data", str(data),
            "--cells", str(work / "cells"), "--json")  # fmt: skip
    replay = (python, "-m", "beamprof", "replay", "--table", table, "--trace", str(data / HOUR),
              "--max-model-len", "16384", "--over-limit", "drop", "--json")  # fmt: skip
    nodes: list[str] = []
    for path, (_, _, rows) in zip(tables, NODES, strict=True):
        nodes += ["--node", str(path), str(one_file(data, rows))]
    for folder in sorted(path.parent for path in data.glob("served-rtxpro6000/*/vllm_meta.json")):
        nodes += ["--log", str(folder)]
    one = ("--workers", "1")
    return [
        Step("sensitivity", (*replay, "--policy", "beam", "--sensitivity")),
        Step("slos", (*grid, "--traces", HEADLINE, "--slos", ",".join(SLOS), *one)),
        Step("traces", (*grid, "--traces", ",".join(OTHERS), "--slos", ONE_SLO, *one)),
        Step("fidelity", (python, "benchmarks/fidelity.py", *nodes, "--json")),
        Step("ladder", (*replay, "--policy", LADDER)),
        Step("published", (*replay, "--policy", "beam-paper,beam", "--assume", "published")),
    ]


def imported(data: Path, table: Path, pattern: str) -> Path:
    """A table of ``data`` as BEAM reads it; made once."""
    if not table.exists():
        words = ("table", "import", str(one_file(data, pattern)), "--format", "beam-artifact",
                 "-o", str(table))  # fmt: skip
        subprocess.run((sys.executable, "-m", "beamprof", *words), cwd=ROOT, check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
    return table


def one_file(data: Path, pattern: str) -> Path:
    """The one file that fits.

    Raises:
        SystemExit: there is none, or several.
    """
    found = sorted(data.glob(pattern))
    if len(found) != 1:
        raise SystemExit(f"expected one file {pattern} in {data}, found {len(found)}")
    return found[0]


def played(work: Path) -> Callable[[Step], Any]:
    """Runs a step, or reads what it said before; keyed by its words and by all sources."""
    code = sources_sha256()

    def run(step: Step) -> Any:
        key = hashlib.sha256(f"{code} {step.text}".encode()).hexdigest()[:16]
        path = work / f"{step.name}-{key}.json"
        if not path.exists():
            words = (sys.executable, *step.words[1:])
            done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, check=False,
                                  env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
            if done.returncode not in (0, 1):
                raise SystemExit(f"{step.name}: exit code {done.returncode}: {step.text}")
            json.loads(done.stdout)  # whole
            path.write_bytes(done.stdout)
        answer = json.loads(path.read_text())
        return answer.get("data", answer)

    return run


def sources_sha256() -> str:
    """Hash of what decides a number."""
    digest = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".toml"):
                digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()


def page(steps: Sequence[Step], answers: dict[str, Any]) -> str:
    """The whole page."""
    ladder, by_name = answers["ladder"], {step.name: step for step in steps}
    rows = [*answers["slos"]["rows"], *answers["traces"]["rows"]]
    blocks = [
        "# Results",
        f"Written by `scripts/results.py` on {stamp()}; do not edit. Replayed, not measured: a "
        "model of the serving engine plays traces on an imported table of measured A100s. "
        "Goodput is the share of requests with every promise kept. `static:best` is the cheapest "
        "clock and chunk, found with hindsight, that loses at most 0.1 points of the best "
        "vanilla's goodput. Request: from sending to the last token; tokens/s: of one answer, as "
        "its reader sees it.",
        f"The plant: {', '.join(ladder['assumed'])}.",
        "## The hour, one SLO",
        f"{ladder['requests']:,} requests of ServeGen 19-20 h, Llama-3.3 70B tp 2 pp 4 on 8 "
        "A100s, TTFT 1 s, TBT 200 ms.",
        ladder_table(ladder),
        by(by_name["ladder"]),
        "With the assumptions of published results (raw table, no noise, 45 W per waiting GPU):",
        ladder_table(answers["published"]),
        by(by_name["published"]),
        "## SLOs and traces",
        "Traces thinned to 1,800 tokens/s where they carry more (`light`: 500), requests over "
        "16,384 tokens dropped; on `r1`, whose answers have thousands of tokens, 99 % of a "
        "request's gaps are promised. Where even vanilla's best keeps few, the SLO is not to be "
        "had on this node at this load, and energy there is no saving.",
        grid_table(rows),
        by(by_name["slos"]),
        by(by_name["traces"]),
        "## What the assumptions are worth",
        "`beam` on the hour, one assumption changed at a time.",
        sensitivity_table(answers["sensitivity"]["sensitivity"]),
        by(by_name["sensitivity"]),
        "## How far the replay can be trusted",
        fidelity_text(answers["fidelity"]),
        by(by_name["fidelity"]),
    ]
    return "\n\n".join(blocks) + "\n"


def stamp() -> str:
    """Date, commit and machine."""

    def git(*words: str) -> str:
        return subprocess.run(("git", *words), cwd=ROOT, check=True, text=True,
                              stdout=subprocess.PIPE).stdout.strip()  # fmt: skip

    changed = " with changes" if git("status", "--porcelain", "--", *SOURCES) else ""
    day = datetime.now(UTC).date().isoformat()
    return (
        f"{day}, commit {git('rev-parse', '--short=10', 'HEAD')}{changed}, "
        f"{os.cpu_count()} cores {platform.machine()}, Python {platform.python_version()}"
    )


def by(step: Step) -> str:
    return f"```\n{step.text}\n```"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def ladder_table(answer: dict[str, Any]) -> str:
    heads = ("policy", "goodput", "of vanilla", "of static:best", "request mean", "p99", "tokens/s",
             "TTFT p50", "p99")  # fmt: skip
    rows = []
    for rung in answer["rungs"]:
        m = rung["metrics"]
        name = f"`{m['policy']}`" + (f", {rung['setting']}" if rung["setting"] else "")
        rows.append((
            name, f"{100 * m['goodput']:.1f} %", f"{rung['to_vanilla']:.3f}",
            f"{rung['to_static']:.3f}", f"{m['request']['mean_ms'] / 1e3:.1f} s",
            f"{m['request']['p99_ms'] / 1e3:.1f} s", f"{m['tokens_per_s_user']:.1f}",
            f"{m['ttft']['p50_ms']:.0f} ms", f"{m['ttft']['p99_ms']:.0f} ms",
        ))  # fmt: skip
    if answer["oracle_j"] is not None:
        vanilla, static = (answer["rungs"][at]["metrics"]["energy_j"] for at in (0, 1))
        bound_j = answer["oracle_j"]
        rows.append(("a bound that no policy can stay under", "", f"{bound_j / vanilla:.3f}",
                     f"{bound_j / static:.3f}", "", "", "", "", ""))  # fmt: skip
    return table(heads, rows)


def grid_table(rows: Sequence[dict[str, Any]]) -> str:
    cells: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["trace"], row["slo"]), {})[row["policy"]] = row
    heads = ("trace", "SLO", "goodput: vanilla", "its best chunk", "static:best", "beam",
             "beam's energy, of vanilla", "of static:best", "request: vanilla", "beam",
             "tokens/s: vanilla", "beam")  # fmt: skip
    lines = []
    for (trace, slo), policies in cells.items():
        vanilla, beam = policies["vanilla"], policies["beam"]
        kept = (f"{100 * policies[name]['goodput']:.1f} %"
                for name in ("vanilla", "vanilla:best", "static:best", "beam"))  # fmt: skip
        lines.append((
            trace, slo, *kept, f"{beam['to_vanilla']:.3f}", f"{beam['to_static']:.3f}",
            f"{vanilla['request_mean_s']:.1f} s", f"{beam['request_mean_s']:.1f} s",
            f"{vanilla['tokens_per_s_user']:.1f}", f"{beam['tokens_per_s_user']:.1f}",
        ))  # fmt: skip
    return table(heads, lines)


def sensitivity_table(outcomes: Sequence[dict[str, Any]]) -> str:
    heads = ("assumption", "goodput", "vanilla's", "of vanilla", "of static:best",
             "request time, of vanilla's", "tokens/s")  # fmt: skip
    return table(heads, (
        (
            one["variation"], f"{100 * one['goodput']:.1f} %",
            f"{100 * one['vanilla_goodput']:.1f} %",
            f"{one['to_vanilla']:.3f}", f"{one['to_static']:.3f}", f"{one['slowdown']:.2f}",
            f"{one['tokens_per_s_user']:.1f}",
        )
        for one in outcomes
    ))  # fmt: skip


def fidelity_text(answer: dict[str, Any]) -> str:
    heads = ("node", "constants", "power", "TTFT mean", "TBT mean", "TBT p90")
    rows = []
    measures = ("gpu_power", "ttft_mean", "tbt_mean", "tbt_p90")
    for node in answer["nodes"]:
        for title, judged in (("shipped", node["shipped"]), ("fitted", node["fitted"])):
            if judged is None:
                rows.append((node["node"], f"fit refused: {node['refused']}", "", "", "", ""))
                continue
            c = judged["constants"]
            watts = c["waiting_power_w"]
            words = f"{title}: {c['host_gap_ms']:g} ms, {c['front_end_ms']:g} ms, " + (
                "by clock" if watts is None else f"{watts:g} W"
            )
            rows.append(
                (node["node"], words, *(f"{100 * judged['mape'][m]:.1f} %" for m in measures))
            )
        luck = node["shipped"]["luck"]
        rows.append(
            (
                node["node"],
                "luck of a minute's draw",
                *(f"± {100 * luck[m]:.1f} %" for m in measures),
            )
        )
    for log in answer["logs"]:
        c = log["constants"]
        words = f"fitted: {c['gap_ms']:g} ms, {c['exchange_us']:g} us a token"
        for title, one in (
            ("all requests, nothing fitted", log["operators"]),
            (f"{words}; first half of the log, fitted", log["first"]),
            (f"{words}; second half, held out", log["second"]),
        ):
            means = (f"{100 * one[name]:+.1f} %" for name in ("ttft", "tpot"))
            rows.append((log["log"], title, "", *means, ""))
    targets = answer["targets"]
    rows.append(("to reach", "", *(f"{100 * targets[m]:.0f} %" for m in measures)))
    return (
        "Mean absolute errors over measured rows, a minute of serving each. Shipped: the "
        "constants that a replay assumes (host gap, front end, waiting power), none fitted to the "
        "node. Fitted: the node's own, errors over the rows not fitted. Luck: what one draw of "
        "arrivals does by itself; the draw that was served is not known.\n\n" + table(heads, rows)
    )


if __name__ == "__main__":
    raise SystemExit(main())
