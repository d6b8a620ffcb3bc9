"""The modelled device against whole servers that were measured: closed-loop load, no replay.

    python benchmarks/servers.py [--data ../shared/data] [--only mlenergy|served] [--model NAME]

mlenergy-v3: median ITL, power and J/token of vLLM 0.11.1 servers. served-configurations: mean TPOT
and TTFT, beside what aiconfigurator predicts for the same rows.

N requests are always in flight. In steady state a step decodes for all of them and prefills the N/o
prompts that take the places of those that finished (o = mean output length): their number in one
step is taken as Poisson. A step is the layers, the LM head, and the sampler's and the host's time.
That is an estimate of the steady state: it knows no queue and no batch that starts together but for
the first wave of a benchmark, which is weighed by a share of the requests.

Fitted: operators (scripts/fit_device.py); power and host time on the two models in FITTED
(scripts/fit_servers.py); FIRST_WAVE on one model's rows. All else is held out.
"""

import argparse
import csv
import functools
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from beam_runtime.types import StepShape
from beamprof.devices.device import Device, resolve_device
from beamprof.devices.forward import pass_ms, utilisation
from beamprof.devices.gemm import Gemms, gemm_us
from beamprof.devices.power import capped_mhz, running_w
from beamprof.errors import BeamError
from beamprof.models.registry import resolve_model
from beamprof.models.shape import ModelShape, StageShape

DATA = Path(__file__).parents[1] / ".." / "shared" / "data"
DEVICES = {"H100": "h100-sxm", "B200": "b200", "h100_sxm": "h100-sxm", "h200_sxm": "h200-sxm",
           "b200_sxm": "b200"}  # fmt: skip
FITTED = {
    (gpu, f"meta-llama/Llama-3.1-{size}-Instruct")
    for gpu in ("H100", "B200")
    for size in ("8B", "70B")
}
PROMPT_TOKENS = {"lm-arena-chat": 150, "gpqa": 300}  # not recorded: some hundred tokens
STEP_TOKENS = 8192  # vLLM's default max_num_batched_tokens of a server on these GPUs
QUEUED_TTFT_MS = 20_000.0  # rows beyond measured a queue
# Of a benchmark's requests so many start together: the first wave of ten, and what of the next still  # noqa: E501
# ends together. Set on vLLM's rows of Qwen3-32B on H100; all other rows are held out.
FIRST_WAVE = 0.15


@dataclass(frozen=True, slots=True)
class Host:
    """What an engine's step costs besides its passes: once, and for each request; milliseconds.

    Sampler and host together: the GPU's power over the whole step is taken as that of a running
    one, for that is how the power constants were fitted.
    """

    step_ms: float
    request_ms: float


# By engine version and machine: fitted (scripts/fit_servers.py), or as assumed for newer engines.
HOSTS = {"H100": Host(0.34, 0.041), "B200": Host(0.07, 0.080), "": Host(0.5, 0.010)}


@dataclass(frozen=True, slots=True)
class Server:
    """One configuration under closed-loop load."""

    model: str
    device: str
    tp: int
    ep: int
    dp: int
    requests: float
    prompt_tokens: float
    output_tokens: float
    context_tokens: float  # mean, of a request in flight
    host: Host
    fp8_kv: bool = False
    fp8_weights: bool = False


@dataclass(frozen=True, slots=True)
class Served:
    """What is predicted: milliseconds, watts of all GPUs, joules per output token."""

    median_itl_ms: float
    tpot_ms: float
    ttft_ms: float
    power_w: float
    token_j: float
    clock_mhz: float


@functools.cache
def shape_of(model: str) -> ModelShape:
    return resolve_model(model)


@functools.cache
def step_of(server: Server, stage: StageShape, prompts: int) -> tuple[float, float, float]:
    """Milliseconds, joules of one GPU, and the clock in force, of a step with so many prompts."""
    device = resolve_device(server.device)
    decodes = max(1, round(server.requests / server.dp))
    budget = max(1, STEP_TOKENS - decodes)
    chunk = min(budget, round(prompts * server.prompt_tokens))
    pairs = chunk * (server.prompt_tokens + 1) / 2
    step = StepShape(chunk, 0, decodes, round(decodes * server.context_tokens), prefill_pairs=pairs)
    host_ms = server.host.step_ms + server.host.request_ms * decodes
    grid = np.linspace(device.clocks.max_mhz * 0.5, device.clocks.max_mhz, 11)
    ms = (
        pass_ms(device, stage, step, grid) + head_ms(device, stage, server, decodes, grid) + host_ms
    )
    watts = running_w(device, grid, utilisation(device, stage, step, grid, ms))
    in_force = np.array([capped_mhz(grid, watts, device.power.cap_w)])
    ms = pass_ms(device, stage, step, in_force) + head_ms(device, stage, server, decodes, in_force)
    ms = ms + host_ms
    watt = running_w(device, in_force, utilisation(device, stage, step, in_force, ms))
    return float(ms[0]), float(ms[0] * watt[0]) / 1e3, float(in_force[0])


def head_ms(
    device: Device, stage: StageShape, server: Server, decodes: int, clocks: np.ndarray
) -> np.ndarray:
    """The LM head over this GPU's share of the vocabulary, in 16 bit."""
    vocabulary = shape_of(server.model).vocab_size // stage.tp
    gemms = Gemms.of(decodes, [(vocabulary, stage.hidden_size)], "bfloat16")
    return gemm_us(device, gemms, clocks)[0] / 1e3


def predict(server: Server) -> Served:
    """The steady state of a server."""
    model = shape_of(server.model)
    stage = model.shard(server.tp, 1, server.ep, server.dp)
    rate = server.requests / server.dp / server.output_tokens  # prompts that start in a step
    most = max(1, int(rate + 4 * np.sqrt(rate) + 2))
    counts = np.arange(most + 1)
    # Where dozens start in every step, their number hardly varies.
    if most > 12:
        counts = np.unique(
            np.round(np.linspace(max(0, rate - 2 * np.sqrt(rate)), most, 9)).astype(int)
        )
    log_chance = counts * np.log(max(rate, 1e-12)) - [
        sum(np.log(np.arange(1, k + 1))) for k in counts
    ]
    chance = np.exp(log_chance - log_chance.max())
    chance /= chance.sum()
    steps = [step_of(server, stage, int(count)) for count in counts]
    ms, joules, clocks = (np.array(column) for column in zip(*steps, strict=True))
    mean_ms = float(chance @ ms)
    weighted = np.cumsum(chance)
    median_ms = float(ms[np.searchsorted(weighted, 0.5)])
    starting = chance * counts
    own_ms = float(starting @ ms / starting.sum()) if starting.sum() else float(ms[-1])
    first = min(server.requests / server.dp * server.prompt_tokens, STEP_TOKENS)
    waves = np.ceil(server.requests / server.dp * server.prompt_tokens / STEP_TOKENS)
    burst = step_of(server, stage, max(1, round(first / server.prompt_tokens)))[0]
    ttft_ms = (1 - FIRST_WAVE) * (own_ms + mean_ms / 2) + FIRST_WAVE * burst * (waves + 1) / 2
    gpus = server.tp * server.dp
    power_w = float(chance @ joules) / mean_ms * 1e3 * gpus
    tokens_per_s = server.requests / mean_ms * 1e3
    return Served(
        median_ms, mean_ms, ttft_ms, power_w, power_w / tokens_per_s, float(chance @ clocks)
    )


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
                float(row["avg_batch_size"]), prompt, output, prompt + age, HOSTS[row["gpu_model"]],
            )  # fmt: skip
            measured = {
                "median ITL": float(row["median_itl_ms"]),
                "power": float(row["avg_power_w"]),
                "J/token": float(row["energy_per_token_j"]),
                "tokens/s": float(row["output_throughput_tokens_per_s"]),
            }
            yield server, measured, row["gpu_model"], about["architecture"]


def served(data: Path) -> Iterator[tuple[Server, dict[str, float], dict[str, str], dict[str, str]]]:
    """Rows of served-configurations, and what the peer predicts for them."""
    folder = data / "served-configurations"
    peers = {
        row["id"]: row
        for row in csv.DictReader(
            (folder / "aiconfigurator_0.12.0.csv").read_text("utf-8").splitlines()
        )
    }
    for row in csv.DictReader((folder / "silicon.csv").read_text("utf-8").splitlines()):
        model = row["model_path"]
        if row["precision"] == "fp8" and registered(f"{model}-FP8"):
            model = f"{model}-FP8"
        tp, dp = int(row["tp_size"]), int(row["attention_dp_size"] or 1)
        ep = max(1, int(row["moe_ep_size"] or 1))
        isl, osl = float(row["isl"]), float(row["osl"])
        server = Server(
            model, DEVICES[row["system"]], tp, ep, dp, float(row["batch_size"]), isl, osl,
            isl + osl / 2, HOSTS[""],
        )  # fmt: skip
        measured = {"TPOT": float(row["silicon_tpot_ms"]), "TTFT": float(row["silicon_ttft_ms"])}
        yield server, measured, row, peers.get(row["id"], {})


def registered(model: str) -> bool:
    try:
        shape_of(model)
    except BeamError:
        return False
    return True


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
        fitted = (gpu, model) in FITTED
        print(f"  {gpu} {kind:5} {model.rpartition('/')[2]:34} {len(rows):3} rows  {_line(rows)}"
              + ("  fitted" if fitted else ""))  # fmt: skip
        groups[kind, "fitted" if fitted else "held out"] += rows
    for (kind, how), rows in sorted(groups.items()):
        print(f"  {kind} {how:9} {len(rows):4} rows  {_line(rows)}")
    for message, count in skipped.items():
        print(f"  left out, {count} rows: {message}")


def report_served(data: Path, only: str | None, verbose: bool) -> None:
    ours: dict[tuple[str, str, str], list[dict[str, float]]] = defaultdict(list)
    theirs: dict[tuple[str, str, str], list[dict[str, float]]] = defaultdict(list)
    skipped: dict[str, int] = defaultdict(int)
    for server, measured, row, peer in served(data):
        if only and only.lower() not in server.model.lower():
            continue
        if peer.get("suspect_layout") == "1":
            skipped["mislabelled layout"] += 1
            continue
        if measured["TTFT"] > QUEUED_TTFT_MS:
            skipped["queued"] += 1
            continue
        try:
            found = predict(server)
        except BeamError as error:
            skipped[error.message[:60]] += 1
            continue
        key = (row["backend"], row["system"], server.model)
        relative = {
            "TPOT": found.tpot_ms / measured["TPOT"] - 1,
            "TTFT": found.ttft_ms / measured["TTFT"] - 1,
        }
        ours[key].append(relative)
        if verbose:
            print(
                row["id"][-60:],
                f"TPOT {found.tpot_ms:7.2f}/{measured['TPOT']:7.2f}  TTFT {found.ttft_ms:7.0f}/{measured['TTFT']:7.0f}",  # noqa: E501
            )
        if peer.get("tpot_predicted_ms") and peer.get("ttft_predicted_ms"):
            theirs[key].append({
                "TPOT": float(peer["tpot_predicted_ms"]) / measured["TPOT"] - 1,
                "TTFT": float(peer["ttft_predicted_ms"]) / measured["TTFT"] - 1,
            })  # fmt: skip
    print(
        "served-configurations: MAPE (bias), medians in brackets; but for one constant of TTFT nothing is fitted on them"  # noqa: E501
    )
    for key in sorted(ours):
        print(
            f"  {' '.join(key):64} {len(ours[key]):4} rows  ours {_line(ours[key])}   peer {_line(theirs[key])}"  # noqa: E501
        )
    for backend in sorted({key[0] for key in ours}):
        mine, peer_rows = (
            [e for key, rows in side.items() if key[0] == backend for e in rows]
            for side in (ours, theirs)
        )
        print(
            f"  {backend:64} {len(mine):4} rows  ours {_line(mine, True)}   peer {_line(peer_rows, True)}"  # noqa: E501
        )
    for message, count in skipped.items():
        print(f"  set apart, {count} rows: {message}")


def _line(rows: list[dict[str, float]], medians: bool = False) -> str:
    parts = []
    for name in rows[0] if rows else ():
        errors = np.array([row[name] for row in rows])
        median = f" [{np.median(np.abs(errors)):.1%}]" if medians else ""
        parts.append(f"{name} {np.abs(errors).mean():6.1%} ({errors.mean():+.1%}){median}")
    return "  ".join(parts) or "-"


def main() -> int:
    parser = argparse.ArgumentParser(description="The modelled device against measured servers.")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--only", choices=("mlenergy", "served"))
    parser.add_argument("--model", help="models whose name contains this")
    parser.add_argument("--rows", action="store_true", help="print every row")
    asked = parser.parse_args()
    if not (asked.data / "mlenergy-v3").is_dir():
        print(f"error: no mlenergy-v3 in {asked.data}\nhint: --data", file=sys.stderr)
        return 2
    if asked.only != "served":
        report_mlenergy(asked.data, asked.model, asked.rows)
    if asked.only != "mlenergy":
        report_served(asked.data, asked.model, asked.rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
