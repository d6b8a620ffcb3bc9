"""The modelled device against whole servers that were measured: closed-loop load, no replay.

    python benchmarks/servers.py [--data ../shared/data] [--only mlenergy|served] [--model NAME]

mlenergy-v3: median ITL, power and J/token of vLLM 0.11.1 servers. served-configurations: mean TPOT
and TTFT, beside what aiconfigurator predicts for the same rows.

N requests are always in flight. In mlenergy's steady state a step decodes for all of them and
prefills the N/o prompts that take the places of those that finished (o = mean output length):
their number in one step is taken as Poisson. A step is the layers, the LM head, the sampler's sort,
and the host's time. Served configurations are played client by client (closed_loop.py), ten
requests each.

Fitted: operators (scripts/fit_device.py); power, host time and the sort on the two models in
FITTED (scripts/fit_servers.py), one constant of time each on those in OLDER, and three on served
rows in LOOKED_AT. All else is held out.
"""

import argparse
import csv
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from served_rows import error_line, report_served
from server_steps import DEVICES, ENGINES, Server, predict

from beamprof.errors import BeamError

DATA = Path(__file__).parents[1] / ".." / "shared" / "data"
FITTED = {
    (gpu, f"meta-llama/Llama-3.1-{size}-Instruct")
    for gpu in ("H100", "B200")
    for size in ("8B", "70B")
}
OLDER = {  # one constant of time each: fp8_experts_us, plain_ns
    ("H100", "Qwen/Qwen3-235B-A22B-Instruct-2507-FP8"),
    ("H100", "openai/gpt-oss-20b"),
}
PROMPT_TOKENS = {"lm-arena-chat": 150, "gpqa": 300}  # not recorded: some hundred tokens


def mlenergy(data: Path) -> Iterator[tuple[Server, dict[str, float], str, str]]:
    """Servers of mlenergy-v3 with what was measured, their GPU and architecture."""
    for file in sorted((data / "mlenergy-v3").glob("*.csv")):
        about = json.loads(file.with_suffix(".json").read_text("utf-8"))
        lengths = about["output_length_distribution"]
        edges, counts = np.array(lengths["bins"]), np.array(lengths["counts"])
        middle = (edges[:-1] + edges[1:]) / 2
        mean, square = counts @ middle / counts.sum(), counts @ middle**2 / counts.sum()
        prompt = PROMPT_TOKENS.get(about["task"], 300)
        for row in csv.DictReader(file.read_text("utf-8").splitlines()):
            gpus, output = int(row["num_gpus"]), float(row["avg_output_len"])
            # Long answers are in flight for longer: the mean age of one that is.
            age = square / mean / 2 * output / mean
            server = Server(
                about["model_id"], DEVICES[row["gpu_model"]], gpus, int(row["expert_parallel"]), 1,
                float(row["avg_batch_size"]), prompt, output, prompt + age,
                ENGINES[row["gpu_model"]],
            )  # fmt: skip
            measured = {
                "median ITL": float(row["median_itl_ms"]),
                "power": float(row["avg_power_w"]),
                "J/token": float(row["energy_per_token_j"]),
                "tokens/s": float(row["output_throughput_tokens_per_s"]),
            }
            yield server, measured, row["gpu_model"], about["architecture"]


def report_mlenergy(data: Path, only: str | None, verbose: bool) -> None:
    errors: dict[tuple[str, str, str], list[dict[str, float]]] = defaultdict(list)
    skipped: dict[str, int] = defaultdict(int)
    for server, measured, gpu, kind in mlenergy(data):
        if only and only.lower() not in server.model.lower():
            continue
        try:
            found = predict(server)
        except BeamError as error:
            skipped[error.message] += 1
            continue
        relative = {
            "median ITL": found.median_itl_ms / measured["median ITL"] - 1,
            "power": found.power_w / measured["power"] - 1,
            "J/token": found.token_j / measured["J/token"] - 1,
        }
        if verbose:
            print(
                f"{gpu} x{server.tp} ep {server.ep} {server.model[-28:]:28} N {server.requests:6.0f}  ITL {found.median_itl_ms:7.2f}/{measured['median ITL']:7.2f}  W {found.power_w:6.0f}/{measured['power']:6.0f}  J {relative['J/token']:+.2f}  {found.clock_mhz:.0f} MHz"  # noqa: E501
            )
        errors[gpu, kind, server.model].append(relative)
    print("mlenergy-v3 (vLLM 0.11.1): MAPE (bias) of median ITL, power, J/token")
    groups: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    for (gpu, kind, model), rows in sorted(errors.items()):
        fitted = (gpu, model) in FITTED | OLDER
        words = f"{gpu} {kind:5} {model.rpartition('/')[2]:34} {len(rows):3} rows"
        print(f"  {words}  {error_line(rows)}" + ("  fitted" if fitted else ""))
        groups[kind, "fitted" if fitted else "held out"] += rows
    for (kind, how), rows in sorted(groups.items()):
        print(f"  {kind} {how:9} {len(rows):4} rows  {error_line(rows)}")
    for message, count in skipped.items():
        print(f"  left out, {count} rows: {message}")


def main() -> int:
    parser = argparse.ArgumentParser(description="The modelled device against measured servers.")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--only", choices=("mlenergy", "served"))
    parser.add_argument("--model", help="models whose name contains this")
    parser.add_argument("--rows", action="store_true", help="print every row")
    parser.add_argument("--backend", help="served rows of this engine only: vllm, sglang, trtllm")
    parser.add_argument("--every", type=int, default=1, help="every so-manieth served row")
    asked = parser.parse_args()
    if not (asked.data / "mlenergy-v3").is_dir():
        print(f"error: no mlenergy-v3 in {asked.data}\nhint: --data", file=sys.stderr)
        return 2
    if asked.only != "served":
        report_mlenergy(asked.data, asked.model, asked.rows)
    if asked.only != "mlenergy":
        report_served(asked.data, asked)
    return 0


if __name__ == "__main__":
    sys.exit(main())
