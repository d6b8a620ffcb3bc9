"""GEMMs of a layer: weights in 16 or 32 bit as they are, or in FP8 as engines serve W8A8.

FP8 (e4m3) weights have a scale for each output, inputs get one for each token as they come: what
vLLM does for checkpoints with dynamic activations. Scaling a token is part of the pass, as there.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max
# A token of zeros is divided by this instead.
LEAST_SCALE = 1e-12
# Kernels take rows and columns of so many bytes.
MULTIPLE = 16


@dataclass(frozen=True, slots=True)
class Fp8Weight:
    """Weights of one projection, or of all experts.

    Attributes:
        values: (outputs, inputs) or (experts, outputs, inputs), e4m3.
        scales: float32, (outputs,) or (experts, outputs).
    """

    values: Tensor
    scales: Tensor


Weight: TypeAlias = Tensor | Fp8Weight


def in_fp8(weights: Tensor) -> Fp8Weight:
    """The same weights, rounded."""
    values, scales = _scaled(weights)
    return Fp8Weight(values, scales.squeeze(-1))


def linear(rows: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """(tokens, inputs) to (tokens, outputs)."""
    if not isinstance(weight, Fp8Weight):
        return functional.linear(rows, weight, bias)
    values, scales = _scaled(rows)
    out = _scaled_mm(values, scales, weight.values, weight.scales, rows.dtype)
    return out if bias is None else out + bias


def grouped(rows: Tensor, weight: Weight, ends: Tensor) -> Tensor:
    """Rows [ends[e - 1], ends[e]) times the weights of expert e.

    On GPUs whose torch has a grouped GEMM for the format it takes all runs at once and nothing
    waits for the host, which a CUDA graph needs; elsewhere a loop goes over the experts that have
    work.
    """
    if not isinstance(weight, Fp8Weight):
        if rows.is_cuda and rows.dtype is torch.bfloat16 and hasattr(torch, "_grouped_mm"):
            return torch._grouped_mm(rows, weight.transpose(1, 2), offs=ends.to(torch.int32))
        out = rows.new_empty(rows.shape[0], weight.shape[1])
        for expert, begin, end in _runs(ends):
            torch.mm(rows[begin:end], weight[expert].T, out=out[begin:end])
        return out
    values, scales = _scaled(rows)
    if rows.is_cuda and hasattr(torch, "_scaled_grouped_mm"):
        return torch._scaled_grouped_mm(
            values, weight.values.transpose(1, 2), scales.squeeze(-1), weight.scales,
            offs=ends.to(torch.int32), out_dtype=rows.dtype, use_fast_accum=True,
        )  # fmt: skip
    out = rows.new_empty(rows.shape[0], weight.values.shape[1])
    for expert, begin, end in _runs(ends):
        run = slice(begin, end)
        out[run] = _scaled_mm(
            values[run], scales[run], weight.values[expert], weight.scales[expert], rows.dtype
        )
    return out


def _scaled(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in e4m3, and what to multiply each by: (..., 1)."""
    scales = rows.abs().amax(dim=-1, keepdim=True).float().div(LARGEST).clamp(min=LEAST_SCALE)
    return (rows / scales).to(FP8), scales


def _scaled_mm(
    rows: Tensor, row_scales: Tensor, weight: Tensor, scales: Tensor, dtype: torch.dtype
) -> Tensor:
    out: Tensor = torch._scaled_mm(
        rows, weight.T, scale_a=row_scales, scale_b=scales[None], out_dtype=dtype,
        use_fast_accum=True,
    )  # fmt: skip
    return out


def _runs(ends: Tensor) -> list[tuple[int, int, int]]:
    """(expert, begin, end) of those that have rows."""
    bounds = pairwise([0, *ends.tolist()])
    return [(expert, begin, end) for expert, (begin, end) in enumerate(bounds) if end > begin]
