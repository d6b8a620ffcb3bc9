"""One decoder layer on one GPU, for a chunk of a prompt and a batch of decodes in one pass.

    tokens   | chunk: C tokens of one request | decodes: one token of each of B requests |
    GEMMs      all together
    attention  causal over context + chunk      each over its own context + itself

Llama, Mistral, Mixtral, Qwen2, Qwen3 and Qwen3-MoE: RMSNorm, fused QKV (with bias for Qwen2, with
norms of queries and keys for Qwen3), RoPE, grouped-query attention over a KV cache or its last
tokens (a sliding window), SwiGLU or routed experts (torch_experts). Weights are this GPU's
shard; ``reduce`` sums over the tensor-parallel ranks. Unlike a serving engine it
keeps each request's cache in one piece, not in pages, and does not fuse elementwise work.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from beamprof.backends.torch_experts import DenseWeights, ExpertWeights, dense, experts
from beamprof.backends.torch_linear import Weight, linear
from beamprof.models.layers import Attention
from beamprof.models.shape import ModelShape

Reduce = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer's shard, as torch_linear takes it: (outputs, inputs).

    Attributes:
        qkv: ((heads + 2 kv_heads) head_dim, hidden): queries, keys, values; qkv_bias or None.
        q_norm, k_norm: (head_dim,) or None.
        out: (hidden, heads head_dim).
        mlp: of a dense MLP, or of experts.
        attention_norm, mlp_norm: (hidden,).
    """

    qkv: Weight
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Weight
    mlp: DenseWeights | ExpertWeights
    attention_norm: Tensor
    mlp_norm: Tensor


@dataclass(frozen=True, slots=True)
class Block:
    """Equal requests of a pass: R of them, each with S new tokens after K cached ones.

    The chunk is a block of R = 1, S = C; decodes of one context length are a block of S = 1.

    Attributes:
        keys, values: (R, K + S, kv_heads, head_dim), one layer's cache with room for the new.
    """

    requests: int
    new_tokens: int
    context_tokens: int
    mask: object | None
    keys: Tensor
    values: Tensor


@dataclass(frozen=True, slots=True)
class Rotation:
    """RoPE's cosine and sine of each token's position: (tokens, 1, head_dim)."""

    cosine: Tensor
    sine: Tensor


def rotation(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> Rotation:
    """Angles position / theta^(2 i / head_dim) (arXiv 2104.09864), in halves as Llama has them."""
    exponents = torch.arange(0, head_dim, 2, device=positions.device) / head_dim
    angles = torch.outer(positions.float(), 1.0 / theta**exponents)
    angles = torch.cat((angles, angles), dim=-1)[:, None, :]
    return Rotation(angles.cos().to(dtype), angles.sin().to(dtype))


def decoder_layer(
    hidden: Tensor,
    weights: LayerWeights,
    blocks: tuple[Block, ...],
    rotate: Rotation,
    model: ModelShape,
    attention: Attention,
    reduce: Reduce,
) -> Tensor:
    """One layer over the tokens of all blocks, in their order.

    Args:
        hidden: (tokens, hidden).
        weights: this rank's shard of the layer.
        blocks: their caches receive the new keys and values.
        rotate: RoPE of the tokens' positions.
        model: whole-model constants (norms' epsilon).
        attention: this rank's heads, and the layer's window.
        reduce: sum over the tensor-parallel ranks; may write in place.

    Returns:
        (tokens, hidden).
    """
    normed = functional.rms_norm(
        hidden, hidden.shape[-1:], weights.attention_norm, model.rms_norm_eps
    )
    mixed = _attention(normed, weights, blocks, rotate, model, attention)
    hidden = hidden + reduce(linear(mixed, weights.out))
    normed = functional.rms_norm(hidden, hidden.shape[-1:], weights.mlp_norm, model.rms_norm_eps)
    if isinstance(weights.mlp, DenseWeights):
        return hidden + reduce(dense(normed, weights.mlp))
    return hidden + reduce(experts(normed, weights.mlp))


def _attention(
    normed: Tensor,
    weights: LayerWeights,
    blocks: tuple[Block, ...],
    rotate: Rotation,
    model: ModelShape,
    attention: Attention,
) -> Tensor:
    """(tokens, hidden) -> (tokens, heads x head_dim), before the output projection."""
    qkv = linear(normed, weights.qkv, weights.qkv_bias).unflatten(-1, (-1, attention.head_dim))
    heads = (attention.heads, attention.kv_heads, attention.kv_heads)
    queries, keys, values = qkv.split(heads, dim=1)
    if weights.q_norm is not None and weights.k_norm is not None:
        size = (attention.head_dim,)
        queries = functional.rms_norm(queries, size, weights.q_norm, model.rms_norm_eps)
        keys = functional.rms_norm(keys, size, weights.k_norm, model.rms_norm_eps)
    queries, keys = _rotated(queries, rotate), _rotated(keys, rotate)
    attended, begin = [], 0
    for block in blocks:
        rows = slice(begin, begin + block.requests * block.new_tokens)
        per_request = (block.requests, block.new_tokens)
        block.keys[:, block.context_tokens :] = keys[rows].unflatten(0, per_request)
        block.values[:, block.context_tokens :] = values[rows].unflatten(0, per_request)
        attended.append(_attend(queries[rows], block, attention))
        begin = rows.stop
    return attended[0] if len(attended) == 1 else torch.cat(attended)


def _attend(queries: Tensor, block: Block, attention: Attention) -> Tensor:
    """(R x S, heads, head_dim) -> (R x S, heads x head_dim), over the block's cache."""
    keys, values = block.keys.transpose(1, 2), block.values.transpose(1, 2)
    if block.new_tokens == 1:
        if attention.window_tokens:
            recent = slice(-attention.window_tokens, None)
            keys, values = keys[:, :, recent], values[:, :, recent]
        # All queries of a KV head's group see the same keys: as rows of one product, the
        # cache is read once for the group, whatever kernel is behind it.
        grouped = queries.unflatten(1, (attention.kv_heads, attention.heads // attention.kv_heads))
        return functional.scaled_dot_product_attention(grouped, keys, values).flatten(1)
    asking = queries.unflatten(0, (block.requests, block.new_tokens)).transpose(1, 2)
    attended = functional.scaled_dot_product_attention(
        asking,
        keys,
        values,
        attn_mask=block.mask,
        is_causal=block.mask is None,
        enable_gqa=True,
    )
    return attended.transpose(1, 2).flatten(0, 1).flatten(1)


def _rotated(heads: Tensor, rotate: Rotation) -> Tensor:
    """(tokens, heads, head_dim) turned by each token's position."""
    first, second = heads.chunk(2, dim=-1)
    return heads * rotate.cosine + torch.cat((-second, first), dim=-1) * rotate.sine
