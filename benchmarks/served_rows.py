"""Served configurations: mean TPOT and TTFT of rows played client by client, beside a peer's.

A row that measured a queue, or whose layout its own labels contradict, says nothing of a pass: it
is set apart and counted.
"""

import argparse
import csv
import functools
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from closed_loop import Load, grid, serve
from server_steps import (
    DEVICES,
    ENGINES,
    STEP_TOKENS,
    Server,
    busy_ms,
    older_ms,
    shape_of,
    sorting_ms,
    stage_of,
)

from beam_runtime.types import StepShape
from beamprof.devices.device import resolve_device
from beamprof.errors import BeamError

Row = tuple[Server, dict[str, float], dict[str, str], dict[str, str]]
Errors = dict[tuple[str, str, str], list[dict[str, float]]]  # by backend, system, model

# Served rows that constants were chosen on: how far answers drift apart and how long a first token
# is on its way (Load's defaults), and the async engine's 0.35 ms of a step (the first's rows with 4
# requests in flight).
LOOKED_AT = {
    ("vllm", "h200_sxm", "openai/gpt-oss-120b"),
    ("vllm", "h100_sxm", "Qwen/Qwen3-32B"),
}
QUEUED_TTFT_MS = 20_000.0  # rows beyond measured a queue, as did those that wait longer than run
SYNCHRONOUS = ("0.11.", "0.12.")


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


def served(data: Path) -> Iterator[Row]:
    """Server, what was measured, the row's labels, and what the peer predicts for it."""
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
        tp, ep = int(row["tp_size"]), max(1, int(row["moe_ep_size"] or 1))
        # GPUs that share the experts: where groups attend on their own there are more than tp.
        sharing = ep * max(1, int(row["moe_tp_size"] or 1))
        dp = int(row["attention_dp_size"] or max(1, sharing // tp))
        isl, osl = float(row["isl"]), float(row["osl"])
        server = Server(
            model, DEVICES[row["system"]], tp, ep, dp, float(row["batch_size"]), isl, osl,
            isl + osl / 2, engine, quantised_by_engine(model, row),
        )  # fmt: skip
        measured = {"TPOT": float(row["silicon_tpot_ms"]), "TTFT": float(row["silicon_ttft_ms"])}
        yield server, measured, row, peers.get(row["id"], {})


def quantised_by_engine(model: str, row: dict[str, str]) -> str:
    """The experts' format where it is not the checkpoint's: "" = as that says.

    The measured gpt-oss servers on B200 prefill faster than the operators with 16-bit inputs alone
    take (3 ms a layer for 8,192 tokens): they ran the kernels with 8-bit inputs, which vLLM offers
    by a variable and TensorRT-LLM takes by itself.
    """
    if row["precision"] == "fp4" and "DeepSeek" in model:
        return "nvfp4"
    return "mxfp4_fp8" if "gpt-oss" in model and "b200" in row["system"] else ""


@functools.cache
def registered(model: str) -> bool:
    try:
        shape_of(model)
    except BeamError:
        return False
    return True


def report_served(data: Path, asked: argparse.Namespace) -> None:
    ours: Errors = defaultdict(list)
    theirs: Errors = defaultdict(list)
    skipped: dict[str, int] = defaultdict(int)
    for number, (server, measured, row, peer) in enumerate(asked_rows(data, asked), 1):
        if number % asked.every:
            continue
        why, found = _played(server, measured, row, peer)
        if why:
            skipped[why] += 1
            continue
        key = (row["backend"], row["system"], server.model)
        ours[key].append({name: found[name] / measured[name] - 1 for name in measured})
        if asked.rows:
            shown = "  ".join(f"{n} {found[n]:7.2f}/{measured[n]:7.2f}" for n in measured)
            print(row["id"][-60:], shown)
        predicted = [peer.get(f"{name.lower()}_predicted_ms") for name in measured]
        if all(predicted):
            theirs[key].append({
                name: float(value or 0) / measured[name] - 1
                for name, value in zip(measured, predicted, strict=True)
            })  # fmt: skip
    _print_errors(ours, theirs)
    for why, count in skipped.items():
        print(f"  set apart, {count} rows: {why}")


def asked_rows(data: Path, asked: argparse.Namespace) -> Iterator[Row]:
    for server, measured, row, peer in served(data):
        named = not asked.model or asked.model.lower() in server.model.lower()
        if named and asked.backend in (None, row["backend"]):
            yield server, measured, row, peer


def _played(
    server: Server, measured: dict[str, float], row: dict[str, str], peer: dict[str, str]
) -> tuple[str, dict[str, float]]:
    """Why the row is set apart, or what is predicted for it."""
    if peer.get("suspect_layout") == "1" or "0" in (row["moe_tp_size"], row["moe_ep_size"]):
        return "mislabelled layout", {}
    if measured["TTFT"] > min(QUEUED_TTFT_MS, measured["TPOT"] * server.output_tokens):
        return "queued", {}
    try:
        tpot_ms, ttft_ms = play(server)
    except BeamError as error:
        return error.message[:60], {}
    return "", {"TPOT": tpot_ms, "TTFT": ttft_ms}


def _print_errors(ours: Errors, theirs: Errors) -> None:
    print("served-configurations: MAPE (bias), medians in brackets")
    for key in sorted(ours):
        note = "  constants were chosen on them" if key in LOOKED_AT else ""
        _print_beside(" ".join(key), ours[key], theirs[key], note=note)
    for backend in sorted({key[0] for key in ours}):
        keys = [key for key in ours if key[0] == backend]
        held_out = [key for key in keys if key not in LOOKED_AT]
        parts = {backend: keys, f"{backend}, held out": held_out if held_out != keys else []}
        for words, members in parts.items():
            mine, peers = ([e for key in members for e in side[key]] for side in (ours, theirs))
            if mine:
                _print_beside(words, mine, peers, medians=True)


def _print_beside(
    words: str,
    ours: list[dict[str, float]],
    peer: list[dict[str, float]],
    *,
    medians: bool = False,
    note: str = "",
) -> None:
    mine, theirs = error_line(ours, medians), error_line(peer, medians)
    print(f"  {words:64} {len(ours):4} rows  ours {mine}   peer {theirs}{note}")


def error_line(rows: list[dict[str, float]], medians: bool = False) -> str:
    parts = []
    for name in rows[0] if rows else ():
        errors = np.array([row[name] for row in rows])
        median = f" [{np.median(np.abs(errors)):.1%}]" if medians else ""
        parts.append(f"{name} {np.abs(errors).mean():6.1%} ({errors.mean():+.1%}){median}")
    return "  ".join(parts) or "-"
