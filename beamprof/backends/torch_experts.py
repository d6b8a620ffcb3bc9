"""Routed experts of one layer in torch: as transformers computes them, and as a GPU can replay it.

Tokens are sorted by expert, so that each expert's are one run of rows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from beamprof.backends.torch_linear import Weight, grouped, linear


@dataclass(frozen=True, slots=True)
class DenseWeights:
    """A gated MLP: gate_up (2 width, hidden), down (hidden, width)."""

    gate_up: Weight
    down: Weight


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """A router and its experts, this GPU's share of their width.

    Attributes:
        router: (experts, hidden). gate_up: (experts, 2 width, hidden).
        down: (experts, hidden, width). top_k: experts of a token.
        normalised: the chosen experts' weights add up to one.
        shared: an MLP that every token passes as well; None = none.
    """

    router: Tensor
    gate_up: Weight
    down: Weight
    top_k: int
    normalised: bool = True
    shared: DenseWeights | None = None


def dense(hidden: Tensor, weights: DenseWeights) -> Tensor:
    """SwiGLU: (tokens, hidden) to this rank's part of (tokens, hidden)."""
    gate, up = linear(hidden, weights.gate_up).chunk(2, dim=-1)
    return linear(functional.silu(gate) * up, weights.down)


def experts(hidden: Tensor, weights: ExpertWeights) -> Tensor:
    """Route, compute, sum up: (tokens, hidden) to this rank's part of (tokens, hidden)."""
    chances = functional.linear(hidden, weights.router).float().softmax(dim=-1)
    chosen, expert = chances.topk(weights.top_k, dim=-1)
    if weights.normalised:
        chosen = chosen / chosen.sum(dim=-1, keepdim=True)
    order = expert.flatten().argsort(stable=True)
    rows = hidden[order // weights.top_k]
    numbers = torch.arange(weights.router.shape[0], device=hidden.device)
    ends = (expert.flatten()[:, None] == numbers).sum(dim=0).cumsum(dim=0)
    gate, up = grouped(rows, weights.gate_up, ends).chunk(2, dim=-1)
    out = grouped(functional.silu(gate) * up, weights.down, ends)
    out = out * chosen.flatten()[order, None].to(out.dtype)
    mixed = torch.zeros_like(hidden).index_add_(0, order // weights.top_k, out)
    return mixed if weights.shared is None else mixed + dense(hidden, weights.shared)
