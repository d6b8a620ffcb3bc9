"""One forward pass of one stage: the sum of its kernels, then power, cap and energy.

A stage is its decoder layers: embeddings, logits, sampling, host time and the transfer between
stages are not part of it. Passes run back to back, as in a measurement.
"""

import math
from dataclasses import dataclass

import numpy as np

from beam_runtime.types import StepShape
from beamprof.devices.allreduce import allreduce_us, message_us
from beamprof.devices.attention import Heads, chunk_us, decode_us
from beamprof.devices.delta import CONV_BYTES, delta_us, state_bytes
from beamprof.devices.device import Device
from beamprof.devices.gemm import Array, Gemms, bandwidth, gemm_us
from beamprof.devices.latent import latent_flops, latent_us
from beamprof.devices.mamba import mamba_state_bytes, mamba_us
from beamprof.devices.moe import Routed, experts_us
from beamprof.devices.power import Utilisation, capped_mhz, running_w
from beamprof.models.formats import FORMATS
from beamprof.models.layers import (
    Attention,
    DenseMlp,
    LatentAttention,
    Layer,
    MoeMlp,
    NoMlp,
    Single,
)
from beamprof.models.recurrent import GatedDelta, Mamba2, ShortConv
from beamprof.models.shape import StageShape

GRAPH_LIMIT_TOKENS = 512  # vLLM captures CUDA graphs up to here
SUM_BYTES = np.array([4.0])  # of a float32


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
    grid_ms = pass_ms(device, stage, step, grid)
    grid_w = running_w(device, grid, utilisation(device, stage, step, grid, grid_ms))
    ceiling_mhz = capped_mhz(grid, grid_w, device.power.cap_w)
    reached = np.minimum(clocks_mhz, ceiling_mhz)
    latency_ms = pass_ms(device, stage, step, reached)
    use = utilisation(device, stage, step, reached, latency_ms)
    power_w = running_w(device, reached, use)
    return Forward(latency_ms, latency_ms / 1e3 * power_w * stage.tp, reached)


def pass_ms(device: Device, stage: StageShape, step: StepShape, clocks_mhz: Array) -> Array:
    """Milliseconds of one pass at clocks that are really reached."""
    return sum(
        (
            group.count * layer_us(device, stage, group.layer, step, clocks_mhz) / 1e3
            for group in stage.groups
        ),
        np.zeros_like(clocks_mhz),
    )


def layer_us(
    device: Device, stage: StageShape, layer: Layer, step: StepShape, clocks_mhz: Array
) -> Array:
    """Microseconds of one layer of the stage."""
    tokens = padded_tokens(step.tokens)
    total = np.zeros_like(clocks_mhz)
    for mixer in layer.mixers:
        total = total + mixer_us(device, stage, mixer, step, clocks_mhz)
    for gemms in layer_gemms(stage, layer, tokens):
        total = total + gemm_us(device, gemms, clocks_mhz).sum(axis=0)
    if isinstance(layer.mlp, MoeMlp):
        routed = Routed.of(layer.mlp, stage.hidden_size, tokens * stage.dp)
        form = FORMATS[stage.precision.experts]
        total = total + experts_us(device, routed, form, clocks_mhz)[0]
    elementwise_rate = device.compute.activation_bytes_per_clock * clocks_mhz
    total = total + elementwise_bytes(stage, layer, tokens) / elementwise_rate
    kernels = device.launch.kernels_per_layer * layer.halves / 2
    total = total + kernels * device.launch.kernel_us
    return total + reduces_us(device, stage, step.tokens) / stage.layers


def reduces_us(device: Device, stage: StageShape, tokens: int) -> float:
    """Microseconds of a pass's all-reduces: after mixers and MLPs, and two between dp groups."""
    padded, total = padded_tokens(tokens), 0.0
    if stage.tp > 1:
        reduces = sum(group.count * group.layer.reduces for group in stage.groups)
        total += reduces * allreduce_us(device, stage, padded, stage.tp)
        total += _norm_sums(stage) * float(message_us(device, stage.tp, SUM_BYTES * padded)[0])
    if stage.dp > 1:  # tokens go to the experts of other groups and come back
        mlps = sum(g.count for g in stage.groups if not isinstance(g.layer.mlp, NoMlp))
        total += 2 * mlps * allreduce_us(device, stage, padded * stage.dp, stage.tp * stage.dp)
    return total


def _norm_sums(stage: StageShape) -> int:
    """Norms over channels that several GPUs share: one number of each token is added up."""
    return sum(
        group.count
        for group in stage.groups
        for mixer in group.layer.mixers
        if isinstance(mixer, Mamba2) and mixer.summed
    )


def mixer_us(
    device: Device, stage: StageShape, mixer: Single, step: StepShape, clocks_mhz: Array
) -> Array:
    """Microseconds of one layer's attention, or of what stands in its place."""
    kv = stage.precision.kv
    chunk, before = step.prefill_tokens, _mean_context(step)
    if isinstance(mixer, LatentAttention):
        decodes = (step.decode_requests, float(step.decode_context_tokens))
        return latent_us(device, mixer, kv, decodes, (1.0, float(chunk), before), clocks_mhz)
    if isinstance(mixer, GatedDelta):
        return delta_us(device, mixer, step.decode_requests, 1.0, chunk, clocks_mhz)
    if isinstance(mixer, Mamba2):
        return mamba_us(device, mixer, step.decode_requests, 1.0, chunk, clocks_mhz)
    if isinstance(mixer, ShortConv):  # elementwise_bytes has the rest
        return conv_state_bytes(mixer, step.decode_requests) / bandwidth(device, clocks_mhz)
    heads = Heads.of(mixer.heads, mixer.kv_heads, mixer.head_dim, mixer.window_tokens, kv)
    total = np.zeros_like(clocks_mhz)
    if step.decode_requests:
        requests, context = _column(step.decode_requests), _column(step.decode_context_tokens)
        total = total + decode_us(device, heads, requests, context, clocks_mhz)[0]
    if chunk:
        columns = (_column(1), _column(chunk), _column(before))
        total = total + chunk_us(device, heads, *columns, clocks_mhz)[0]
    return total


def conv_state_bytes(mixer: ShortConv, requests: int) -> float:
    """The latest tokens of so many requests, read and written."""
    return 2.0 * CONV_BYTES * requests * mixer.state_size


def _mean_context(step: StepShape) -> float:
    """The context before the chunk; where several chunks share the pass, their pairs decide."""
    chunk = step.prefill_tokens
    if not chunk:
        return 0.0
    return max(0.0, float(step.prefill_pairs or 0.0) / chunk - (chunk + 1) / 2)


def _column(value: float) -> Array:
    return np.array([float(value)])


def padded_tokens(tokens: int) -> int:
    """Tokens after padding to a captured CUDA graph: 1, 2, 4, 8, then multiples of 8 to 512."""
    if tokens > GRAPH_LIMIT_TOKENS:
        return tokens
    if tokens > 8:
        return 8 * math.ceil(tokens / 8)
    return next(size for size in (1, 2, 4, 8) if size >= tokens)


def layer_gemms(stage: StageShape, layer: Layer, tokens: int) -> tuple[Gemms, ...]:
    """The GEMMs of a decoder layer that all tokens pass, on this GPU, by weight format."""
    sizes: dict[str, list[tuple[int, int]]] = {}
    for tensor, part in (("attention", layer.mixer), ("mlp", layer.mlp)):
        projections = part.projections(stage.hidden_size)
        forms = stage.precision.formats(tensor, len(projections))
        for form, size in zip(forms, projections, strict=True):
            sizes.setdefault(form, []).append(size)
    return tuple(Gemms.of(tokens, gemms, form) for form, gemms in sizes.items())


def elementwise_bytes(stage: StageShape, layer: Layer, tokens: int) -> float:
    """Traffic of fused add-and-norms, the MLP's activation, RoPE and the KV write in one layer."""
    mlp, elements = layer.mlp, layer.norms * 4 * stage.hidden_size
    if not isinstance(mlp, NoMlp):
        width = mlp.intermediate_size if isinstance(mlp, DenseMlp) else mlp.shared_size
        elements += (3 if mlp.gated else 2) * width
    elements += sum(3 * mixer.projections(stage.hidden_size)[0][0] for mixer in layer.mixers)
    return float(tokens * elements * stage.activation_bytes)


def utilisation(
    device: Device, stage: StageShape, step: StepShape, clocks_mhz: Array, latency_ms: Array
) -> Utilisation:
    """What a pass of that latency asks of the GPU, on average.

    FLOPs are useful ones: rows that pad a tile cost time, and little power. Those of faster formats
    count by their own peak.
    """
    peak_flops = dram_bytes = 0.0  # FLOPs as of bf16
    waits_us = np.full_like(clocks_mhz, reduces_us(device, stage, step.tokens))
    for group in stage.groups:
        flops, moved = _layer_work(device, stage, group.layer, step)
        peak_flops += group.count * flops
        dram_bytes += group.count * moved
        waits_us += group.count * busiest_us(device, stage, group.layer, step, clocks_mhz)
    latency_us = latency_ms * 1e3
    peak = device.compute.sms * device.compute.tensor_flops_per_clock * clocks_mhz
    dram = dram_bytes / latency_us
    return Utilisation(
        tensor_share=peak_flops / latency_us / peak,
        dram_tbps=dram / 1e6,
        dram_share=np.minimum(1.0, dram / bandwidth(device, clocks_mhz)),
        linked=stage.tp > 1,
        reduce_share=np.minimum(1.0, waits_us / latency_us),
    )


def busiest_us(
    device: Device, stage: StageShape, layer: Layer, step: StepShape, clocks_mhz: Array
) -> Array:
    """How long a layer's mean GPU waits for the one whose experts have the most work."""
    if not isinstance(layer.mlp, MoeMlp) or layer.mlp.ep == 1:
        return np.zeros_like(clocks_mhz)
    tokens = padded_tokens(step.tokens) * stage.dp
    loads = (kind(layer.mlp, stage.hidden_size, tokens) for kind in (Routed.of, Routed.mean))
    form = FORMATS[stage.precision.experts]
    busiest, mean = (experts_us(device, routed, form, clocks_mhz)[0] for routed in loads)
    return np.asarray(np.maximum(busiest - mean, 0.0))


def _layer_work(
    device: Device, stage: StageShape, layer: Layer, step: StepShape
) -> tuple[float, float]:
    """FLOPs (as of bf16) and DRAM bytes of one layer."""
    flops = moved = 0.0
    for gemms in layer_gemms(stage, layer, step.tokens):
        flops += float(gemms.flops.sum()) / device.gemm_kernels(gemms.form).rate
        moved += float(gemms.dram_bytes.sum())
    if isinstance(layer.mlp, MoeMlp):
        form = FORMATS[stage.precision.experts]
        routed = Routed.mean(layer.mlp, stage.hidden_size, step.tokens * stage.dp)
        flops += float(routed.flops[0]) / device.moe_kernels(form).rate
        # Tokens that pad a CUDA graph choose experts as well, whose weights are read.
        padded = padded_tokens(step.tokens) * stage.dp
        moved += float(Routed.mean(layer.mlp, stage.hidden_size, padded).dram_bytes(form)[0])
    for mixer in layer.mixers:
        mixed, read = _mixer_work(device, stage, mixer, step)
        flops += mixed
        moved += read
    return flops, moved


def _mixer_work(
    device: Device, stage: StageShape, mixer: Single, step: StepShape
) -> tuple[float, float]:
    """FLOPs (as of bf16) and DRAM bytes of one mixer, without its GEMMs."""
    flops = moved = 0.0
    pairs = float(step.prefill_pairs or 0.0)
    contexts = float(step.decode_context_tokens + step.prefill_context_tokens + step.tokens)
    if isinstance(mixer, Attention):
        if mixer.window_tokens:
            pairs = min(pairs, float(step.prefill_tokens * mixer.window_tokens))
            windows = step.decode_requests * mixer.window_tokens
            chunk = step.prefill_tokens + min(step.prefill_context_tokens, mixer.window_tokens)
            contexts = min(contexts, float(windows + step.decode_requests + chunk))
        flops = device.power.attention_share * 4.0 * mixer.heads * mixer.head_dim * pairs
    elif isinstance(mixer, LatentAttention):
        decodes = (step.decode_requests, float(step.decode_context_tokens))
        chunk_shape = (1.0, float(step.prefill_tokens), _mean_context(step))
        decode_flops, chunk_flops = latent_flops(mixer, decodes, chunk_shape)
        flops = device.power.attention_share * (float(decode_flops) + float(chunk_flops))
    elif isinstance(mixer, Mamba2):
        moved = float(mamba_state_bytes(mixer, step.decode_requests))
    elif isinstance(mixer, ShortConv):
        moved = conv_state_bytes(mixer, step.decode_requests)
    else:
        moved = float(state_bytes(mixer, step.decode_requests))
    return flops, moved + contexts * mixer.kv_per_token * stage.precision.kv_bytes
