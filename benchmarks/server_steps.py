"""What a step of a server costs: its layers, the LM head, the sampler's sort, the host's time."""

import functools
from dataclasses import dataclass, replace

import numpy as np

from beam_runtime.types import StepShape
from beamprof.devices.device import Device, resolve_device
from beamprof.devices.forward import pass_ms, utilisation
from beamprof.devices.gemm import Gemms, bandwidth, gemm_us
from beamprof.devices.power import Utilisation, capped_mhz, running_w, waiting_w
from beamprof.models.layers import MoeMlp
from beamprof.models.registry import resolve_model
from beamprof.models.shape import ModelShape, StageShape

DEVICES = {"H100": "h100-sxm", "B200": "b200", "h100_sxm": "h100-sxm", "h200_sxm": "h200-sxm",
           "b200_sxm": "b200"}  # fmt: skip
STEP_TOKENS = 8192  # vLLM's default max_num_batched_tokens of a server on these GPUs


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
# overlaps with the GPU; what is left of a step was fitted on LOOKED_AT, of a request assumed.
ENGINES = {
    "H100": Engine(0.691, 0.0, 0.398, 130.0, 0.12),
    "B200": Engine(2.005, 0.0155, 0.132, 130.0, 0.042),
    "": Engine(0.35, 0.010, 0.0),
}
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
    precision: str = ""  # of experts (nvfp4: of all weights) where the engine chose it itself


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
        precision = replace(stage.precision, experts=form)
        if form == "nvfp4":
            precision = replace(precision, attention=form, mlp=form)
        stage = replace(stage, precision=precision)
    return stage


def step_shape(server: Server, prompts: float) -> StepShape:
    """A step of all decodes in which so many prompts start."""
    decodes = max(1, round(server.requests / server.dp))
    budget = max(1, STEP_TOKENS - decodes)
    chunk = min(budget, round(prompts * server.prompt_tokens))
    pairs = chunk * (server.prompt_tokens + 1) / 2
    context = round(decodes * server.context_tokens)
    return StepShape(chunk, 0, decodes, context, prefill_pairs=pairs)


def clock_in_force(
    device: Device, stage: StageShape, server: Server, step: StepShape
) -> np.ndarray:
    """MHz (1,) that the power limit leaves to the layers and the LM head."""
    grid = np.linspace(device.clocks.max_mhz * 0.5, device.clocks.max_mhz, 11)
    ms = busy_ms(device, stage, server, step, grid)
    watts = running_w(device, grid, use_of(device, stage, server, step, grid, ms))
    return np.array([capped_mhz(grid, watts, device.power.cap_w)])


@functools.cache
def step_of(server: Server, stage: StageShape, prompts: int) -> tuple[float, float, float]:
    """Milliseconds, joules of one GPU, and the clock in force, of a step with so many prompts."""
    device = resolve_device(server.device)
    step = step_shape(server, prompts)
    decodes = step.decode_requests
    in_force = clock_in_force(device, stage, server, step)
    ms = busy_ms(device, stage, server, step, in_force)
    watt = running_w(device, in_force, use_of(device, stage, server, step, in_force, ms))
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
    """The LM head's time."""
    return gemm_us(device, _head(stage, server, decodes), clocks)[0] / 1e3


def _head(stage: StageShape, server: Server, decodes: int) -> Gemms:
    """The LM head over this GPU's share of the vocabulary, in 16 bit."""
    vocabulary = shape_of(server.model).vocab_size // stage.tp
    return Gemms.of(decodes, [(vocabulary, stage.hidden_size)], "bfloat16")


def use_of(
    device: Device,
    stage: StageShape,
    server: Server,
    step: StepShape,
    clocks: np.ndarray,
    ms: np.ndarray,
) -> Utilisation:
    """What layers and LM head ask of the GPU over ``ms``."""
    layers, head = (
        utilisation(device, stage, step, clocks, ms),
        _head(stage, server, max(1, step.decode_requests)),
    )
    peak = device.compute.sms * device.compute.tensor_flops_per_clock * clocks
    dram = float(head.dram_bytes[0]) / ms / 1e3  # bytes per microsecond
    return replace(
        layers,
        tensor_share=layers.tensor_share + float(head.flops[0]) / ms / 1e3 / peak,
        dram_tbps=layers.dram_tbps + dram / 1e6,
        dram_share=np.minimum(1.0, layers.dram_share + dram / bandwidth(device, clocks)),
    )


def prompt_chances(server: Server) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of prompts that start in a step, and how often each does: Poisson."""
    rate = server.requests / server.dp / server.output_tokens
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
    return counts, chance / chance.sum()


def predict(server: Server) -> Served:
    """The steady state of a server."""
    stage = stage_of(server)
    counts, chance = prompt_chances(server)
    steps = [step_of(server, stage, int(count)) for count in counts]
    ms, joules, clocks = (np.array(column) for column in zip(*steps, strict=True))
    mean_ms = float(chance @ ms)
    weighted = np.cumsum(chance)
    median_ms = float(ms[np.searchsorted(weighted, 0.5)])
    gpus = server.tp * server.dp
    power_w = float(chance @ joules) / mean_ms * 1e3 * gpus
    tokens_per_s = server.requests / mean_ms * 1e3
    return Served(median_ms, mean_ms, power_w, power_w / tokens_per_s, float(chance @ clocks))
