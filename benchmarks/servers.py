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
FITTED (scripts/fit_servers.py), one constant of time each on those in OLDER. All else is held out;
how far answers drift apart and how long a first token is on its way (Load's defaults) was chosen
looking at gpt-oss-120b on H200 and Qwen3-32B.
"""

import argparse
import csv
import functools
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from closed_loop import Load, grid, serve

from beam_runtime.types import StepShape
from beamprof.devices.device import Device, resolve_device
from beamprof.devices.forward import pass_ms, utilisation
from beamprof.devices.gemm import Gemms, gemm_us
from beamprof.devices.power import capped_mhz, running_w, waiting_w
from beamprof.errors import BeamError
from beamprof.models.layers import MoeMlp
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
OLDER = {  # one constant of time each: fp8_experts_us, plain_ns
    ("H100", "Qwen/Qwen3-235B-A22B-Instruct-2507-FP8"),
    ("H100", "openai/gpt-oss-20b"),
}
PROMPT_TOKENS = {"lm-arena-chat": 150, "gpqa": 300}  # not recorded: some hundred tokens
STEP_TOKENS = 8192  # vLLM's default max_num_batched_tokens of a server on these GPUs
QUEUED_TTFT_MS = 20_000.0  # rows beyond measured a queue


@dataclass(frozen=True, slots=True)
class Engine:
    """What a step costs besides its layers and its LM head.

    Attributes:
        step_ms, request_ms: of the host, once and for each request. The GPU waits meanwhile.
        sort_ns: of the GPU, for each logit of a request whose model's generation_config asks for
            top-p or top-k: vLLM sorts the vocabulary. plain_ns: of others.
        fp8_experts_us: what a layer's experts in fp8 blocks take longer than with the kernels that
            the device files are fitted to.
    """

    step_ms: float
    request_ms: float
    sort_ns: float
    fp8_experts_us: float = 0.0
    plain_ns: float = 0.0


# vLLM 0.11 and 0.12 by machine, fitted on FITTED (scripts/fit_servers.py). From 0.14 on scheduling
# overlaps with the GPU; what is left was assumed.
ENGINES = {
    "H100": Engine(0.84, 0.0, 0.378, 130.0, 0.12),
    "B200": Engine(2.05, 0.014, 0.133, 130.0, 0.042),
    "": Engine(0.05, 0.010, 0.0),
}
SYNCHRONOUS = ("0.11.", "0.12.")
PLAIN_SAMPLING = ("gpt-oss",)  # models whose generation_config has neither top-p nor top-k


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
    engine: Engine
    precision: str = ""  # of all weights, where the engine quantised them itself


@dataclass(frozen=True, slots=True)
class Served:
    """What is predicted: milliseconds, watts of all GPUs, joules per output token."""

    median_itl_ms: float
    mean_itl_ms: float
    power_w: float
    token_j: float
    clock_mhz: float


@functools.cache
def shape_of(model: str) -> ModelShape:
    return resolve_model(model)


@functools.cache
def stage_of(server: Server) -> StageShape:
    stage = shape_of(server.model).shard(server.tp, 1, server.ep, server.dp)
    if server.precision:
        form = server.precision
        precision = replace(stage.precision, attention=form, mlp=form, experts=form)
        stage = replace(stage, precision=precision)
    return stage


@functools.cache
def step_of(server: Server, stage: StageShape, prompts: int) -> tuple[float, float, float]:
    """Milliseconds, joules of one GPU, and the clock in force, of a step with so many prompts."""
    device = resolve_device(server.device)
    decodes = max(1, round(server.requests / server.dp))
    budget = max(1, STEP_TOKENS - decodes)
    chunk = min(budget, round(prompts * server.prompt_tokens))
    pairs = chunk * (server.prompt_tokens + 1) / 2
    step = StepShape(chunk, 0, decodes, round(decodes * server.context_tokens), prefill_pairs=pairs)
    grid = np.linspace(device.clocks.max_mhz * 0.5, device.clocks.max_mhz, 11)
    ms = busy_ms(device, stage, server, step, grid)
    watts = running_w(device, grid, utilisation(device, stage, step, grid, ms))
    in_force = np.array([capped_mhz(grid, watts, device.power.cap_w)])
    ms = busy_ms(device, stage, server, step, in_force)
    watt = running_w(device, in_force, utilisation(device, stage, step, in_force, ms))
    host_ms = server.engine.step_ms + server.engine.request_ms * decodes
    sort_ms = sorting_ms(server, decodes)
    ms = ms + older_ms(server, stage)
    joules = ms * watt + sort_ms * sorting_w(device) + host_ms * waiting_w(device, in_force)
    return float(ms[0]) + host_ms + sort_ms, float(joules[0]) / 1e3, float(in_force[0])


def sorting_ms(server: Server, decodes: int) -> float:
    """The sampler: every request's logits, at once on all GPUs."""
    plain = any(name in server.model for name in PLAIN_SAMPLING)
    logit_ns = server.engine.plain_ns if plain else server.engine.sort_ns
    return decodes * shape_of(server.model).vocab_size * logit_ns / 1e6


def sorting_w(device: Device) -> float:
    """A GPU that sorts draws its limit: so do servers in whose steps sorting takes the half."""
    return device.power.cap_w


def busy_ms(
    device: Device, stage: StageShape, server: Server, step: StepShape, clocks: np.ndarray
) -> np.ndarray:
    """What the GPU runs in a step: the layers and the LM head."""
    heads = head_ms(device, stage, server, max(1, step.decode_requests), clocks)
    return pass_ms(device, stage, step, clocks) + heads


def older_ms(server: Server, stage: StageShape) -> float:
    """What older kernels of experts add, drawing what the rest of the pass does."""
    if stage.precision.experts != "fp8_block":
        return 0.0
    experts = sum(group.count for group in stage.groups if isinstance(group.layer.mlp, MoeMlp))
    return server.engine.fp8_experts_us * experts / 1e3


def head_ms(
    device: Device, stage: StageShape, server: Server, decodes: int, clocks: np.ndarray
) -> np.ndarray:
    """The LM head over this GPU's share of the vocabulary, in 16 bit."""
    vocabulary = shape_of(server.model).vocab_size // stage.tp
    gemms = Gemms.of(decodes, [(vocabulary, stage.hidden_size)], "bfloat16")
    return gemm_us(device, gemms, clocks)[0] / 1e3


def predict(server: Server) -> Served:
    """The steady state of a server."""
    stage = stage_of(server)
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
    gpus = server.tp * server.dp
    power_w = float(chance @ joules) / mean_ms * 1e3 * gpus
    tokens_per_s = server.requests / mean_ms * 1e3
    return Served(median_ms, mean_ms, power_w, power_w / tokens_per_s, float(chance @ clocks))


def play(server: Server) -> tuple[float, float]:
    """Mean TPOT and TTFT of a benchmark of ten requests for each client, milliseconds."""
    device, stage = resolve_device(server.device), stage_of(server)
    top = np.array([float(device.clocks.max_mhz)])
    clients = max(1, round(server.requests / server.dp))

    def step_ms(chunk: int, decodes: int) -> float:
        pairs = chunk * (min(chunk, server.prompt_tokens) + 1) / 2
        context = round(decodes * server.context_tokens)
        step = StepShape(chunk, 0, decodes, context, prefill_pairs=pairs)
        host_ms = server.engine.step_ms + server.engine.request_ms * decodes
        passes_ms = float(busy_ms(device, stage, server, step, top)[0])
        return passes_ms + older_ms(server, stage) + host_ms + sorting_ms(server, decodes)

    load = Load(clients, round(server.prompt_tokens), round(server.output_tokens), STEP_TOKENS)
    return serve(load, grid(step_ms, STEP_TOKENS, clients))


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
        old = row["backend"] == "vllm" and row["backend_version"].startswith(SYNCHRONOUS)
        engine = ENGINES["B200" if "b200" in row["system"] else "H100"] if old else ENGINES[""]
        precision = "nvfp4" if row["precision"] == "fp4" and "DeepSeek" in model else ""
        tp, dp = int(row["tp_size"]), int(row["attention_dp_size"] or 1)
        ep = max(1, int(row["moe_ep_size"] or 1))
        isl, osl = float(row["isl"]), float(row["osl"])
        server = Server(
            model, DEVICES[row["system"]], tp, ep, dp, float(row["batch_size"]), isl, osl,
            isl + osl / 2, engine, precision,
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
        fitted = (gpu, model) in FITTED | OLDER
        print(f"  {gpu} {kind:5} {model.rpartition('/')[2]:34} {len(rows):3} rows  {_line(rows)}"
              + ("  fitted" if fitted else ""))  # fmt: skip
        groups[kind, "fitted" if fitted else "held out"] += rows
    for (kind, how), rows in sorted(groups.items()):
        print(f"  {kind} {how:9} {len(rows):4} rows  {_line(rows)}")
    for message, count in skipped.items():
        print(f"  left out, {count} rows: {message}")


def report_served(data: Path, asked: argparse.Namespace) -> None:
    only, verbose, asked_rows = asked.model, asked.rows, 0
    ours: dict[tuple[str, str, str], list[dict[str, float]]] = defaultdict(list)
    theirs: dict[tuple[str, str, str], list[dict[str, float]]] = defaultdict(list)
    skipped: dict[str, int] = defaultdict(int)
    for server, measured, row, peer in served(data):
        if only and only.lower() not in server.model.lower():
            continue
        if asked.backend not in (None, row["backend"]):
            continue
        asked_rows += 1
        if asked_rows % asked.every:
            continue
        if peer.get("suspect_layout") == "1":
            skipped["mislabelled layout"] += 1
            continue
        if measured["TTFT"] > QUEUED_TTFT_MS:
            skipped["queued"] += 1
            continue
        try:
            tpot_ms, ttft_ms = play(server)
        except BeamError as error:
            skipped[error.message[:60]] += 1
            continue
        key = (row["backend"], row["system"], server.model)
        relative = {
            "TPOT": tpot_ms / measured["TPOT"] - 1,
            "TTFT": ttft_ms / measured["TTFT"] - 1,
        }
        ours[key].append(relative)
        if verbose:
            print(
                row["id"][-60:],
                f"TPOT {tpot_ms:7.2f}/{measured['TPOT']:7.2f}  TTFT {ttft_ms:7.0f}/{measured['TTFT']:7.0f}",  # noqa: E501
            )
        if peer.get("tpot_predicted_ms") and peer.get("ttft_predicted_ms"):
            theirs[key].append({
                "TPOT": float(peer["tpot_predicted_ms"]) / measured["TPOT"] - 1,
                "TTFT": float(peer["ttft_predicted_ms"]) / measured["TTFT"] - 1,
            })  # fmt: skip
    print("served-configurations: MAPE (bias), medians in brackets; nothing is fitted on them")
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
