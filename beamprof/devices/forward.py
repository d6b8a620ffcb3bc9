"""One forward pass of one stage: the sum of its kernels, then power, cap and energy.

A stage is its decoder layers: embeddings, logits, sampling, host time and the transfer between
stages are not part of it. Passes run back to back, as in a measurement.
"""

import math
from dataclasses import dataclass

import numpy as np

from beam_runtime.types import StepShape
from beamprof.devices.attention import chunk_us, decode_us, kv_bytes_per_layer
from beamprof.devices.device import Device
from beamprof.devices.gemm import Array, Gemm, bandwidth, gemm_us
from beamprof.devices.power import Utilisation, capped_mhz, running_w
from beamprof.models.shape import StageShape

GRAPH_LIMIT_TOKENS = 512  # vLLM captures CUDA graphs up to here


@dataclass(frozen=True, slots=True)
class Forward:
    """One pass at each of the clocks asked for; energy is of the stage's tp GPUs together."""

    latency_ms: Array
    energy_j: Array
    clock_reached_mhz: Array


def forward(device: Device, stage: StageShape, step: StepShape, clocks_mhz: Array) -> Forward:
    """Latency, energy and the clock reached under the power cap, at each of ``clocks_mhz`` (M,).

    The clocks asked for must lie within the device's range.
    """
    grid = np.array(device.clocks.supported_mhz, dtype=np.float64)
    ceiling_mhz = capped_mhz(grid, _power_w(device, stage, step, grid), device.power.cap_w)
    reached = np.minimum(clocks_mhz, ceiling_mhz)
    latency_ms = pass_ms(device, stage, step, reached)
    power_w = _power_w(device, stage, step, reached)
    return Forward(latency_ms, latency_ms / 1e3 * power_w * stage.tp, reached)


def pass_ms(device: Device, stage: StageShape, step: StepShape, clocks_mhz: Array) -> Array:
    """Milliseconds of one pass at clocks that are really reached."""
    tokens = padded_tokens(step.tokens)
    layer_us = np.zeros_like(clocks_mhz)
    for gemm in layer_gemms(stage, tokens):
        layer_us = layer_us + gemm_us(device, gemm, clocks_mhz)
    layer_us = layer_us + decode_us(device, stage, step, clocks_mhz)
    layer_us = layer_us + chunk_us(device, stage, step, clocks_mhz)
    elementwise_rate = device.compute.activation_bytes_per_clock * clocks_mhz
    layer_us = layer_us + elementwise_bytes(stage, tokens) / elementwise_rate
    layer_us = layer_us + device.launch.kernels_per_layer * device.launch.kernel_us
    if stage.tp > 1:
        layer_us = layer_us + 2 * allreduce_us(device, stage, tokens)
    return layer_us * stage.layers / 1e3


def allreduce_us(device: Device, stage: StageShape, tokens: int) -> float:
    """One all-reduce of the stage's hidden states over its tp GPUs.

    A ring moves 2 (tp - 1) / tp of the bytes through each GPU (1 for two GPUs). Latency is taken
    as that of two ranks, as for one-shot kernels over a switch; tp above 2 is not measured.
    """
    moved_bytes = tokens * stage.hidden_size * stage.dtype_bytes * 2 * (stage.tp - 1) / stage.tp
    return device.allreduce.latency_us + moved_bytes / (device.allreduce.bandwidth_gbps * 1e3)


def padded_tokens(tokens: int) -> int:
    """Tokens after padding to a captured CUDA graph: 1, 2, 4, 8, then multiples of 8 to 512."""
    if tokens > GRAPH_LIMIT_TOKENS:
        return tokens
    if tokens > 8:
        return 8 * math.ceil(tokens / 8)
    return next(size for size in (1, 2, 4, 8) if size >= tokens)


def layer_gemms(stage: StageShape, tokens: int) -> tuple[Gemm, ...]:
    """The four GEMMs of a decoder layer on this GPU: QKV, output, gate and up, down."""
    hidden, inner = stage.hidden_size, stage.intermediate_size
    sizes = (
        (stage.qkv_size, hidden),
        (hidden, stage.heads * stage.head_dim),
        (2 * inner, hidden),
        (hidden, inner),
    )
    return tuple(Gemm(tokens, n, k, stage.dtype_bytes) for n, k in sizes)


def elementwise_bytes(stage: StageShape, tokens: int) -> float:
    """Traffic of two fused add-and-norms, SwiGLU, RoPE and the KV write in one layer."""
    norms = 2 * 4 * stage.hidden_size
    elements = norms + 3 * stage.intermediate_size + 3 * stage.qkv_size
    return float(tokens * elements * stage.dtype_bytes)


def utilisation(
    device: Device, stage: StageShape, step: StepShape, clocks_mhz: Array, latency_ms: Array
) -> Utilisation:
    """What a pass of that latency asks of the GPU, on average.

    FLOPs are useful ones: rows that pad a tile cost time, and little power.
    """
    gemms = layer_gemms(stage, step.tokens)
    flops = sum(gemm.flops for gemm in gemms) * stage.layers
    flops += stage.attention_flops_per_pair * float(step.prefill_pairs or 0.0)
    contexts = step.decode_context_tokens + step.prefill_context_tokens + step.tokens
    dram_bytes = sum(gemm.dram_bytes for gemm in gemms) + kv_bytes_per_layer(stage, contexts)
    latency_us = latency_ms * 1e3
    peak = device.compute.sms * device.compute.tensor_flops_per_clock * clocks_mhz
    dram = dram_bytes * stage.layers / latency_us
    return Utilisation(
        tensor_share=flops / latency_us / peak,
        dram_tbps=dram / 1e6,
        dram_share=np.minimum(1.0, dram / bandwidth(device, clocks_mhz)),
        linked=stage.tp > 1,
    )


def _power_w(device: Device, stage: StageShape, step: StepShape, clocks_mhz: Array) -> Array:
    latency_ms = pass_ms(device, stage, step, clocks_mhz)
    use = utilisation(device, stage, step, clocks_mhz, latency_ms)
    return running_w(device, clocks_mhz, use)
