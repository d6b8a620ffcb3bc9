"""A pipeline stage in memory, and one pass of it made ready to run again and again.

Weights are random, of the shard's true shapes; so are the activations that come in and the
KV cache's earlier tokens. It is a stage from the middle of the pipeline: no embedding, no
final norm, no output head, no sampling.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from beam_runtime.types import StepShape
from beamprof.backends.torch_buildable import attention_of, buildable, mlp_of
from beamprof.backends.torch_experts import DenseWeights, ExpertWeights
from beamprof.backends.torch_layer import (
    Block,
    LayerWeights,
    Reduce,
    Rotation,
    decoder_layer,
    rotation,
)
from beamprof.backends.torch_linear import Weight, in_fp8
from beamprof.backends.torch_memory import check_fits
from beamprof.models.layers import Attention, DenseMlp, Layer, MoeMlp
from beamprof.models.shape import ModelShape, StageShape


@dataclass(frozen=True, slots=True)
class Span:
    """Equal requests of a step: each has ``new_tokens`` after ``context_tokens`` cached ones."""

    requests: int
    new_tokens: int
    context_tokens: int

    @property
    def cached_tokens(self) -> int:
        """Cache slots of all requests, the new tokens' included."""
        return self.requests * (self.context_tokens + self.new_tokens)


def spans_of(step: StepShape) -> tuple[Span, ...]:
    """The chunk, then the decodes; these share their context evenly.

    Where it does not divide, the remainder goes one token each to the first decodes; they are
    a span of their own, since attention takes requests of one length together.
    """
    spans = []
    if step.prefill_tokens:
        spans.append(Span(1, step.prefill_tokens, step.prefill_context_tokens))
    if step.decode_requests:
        share, longer = divmod(step.decode_context_tokens, step.decode_requests)
        if longer:
            spans.append(Span(longer, 1, share + 1))
        spans.append(Span(step.decode_requests - longer, 1, share))
    return tuple(spans)


class Stage:
    """The decoder layers of one shard, with a KV cache that grows to the largest pass.

    Args:
        model, stage: the model and its shard.
        device: "cuda", "cuda:1" or "cpu".
        reduce: sum over the tensor-parallel ranks.
        seed: of weights, activations and cache.

    Raises:
        BackendError: layers of a kind that is not built here; weights or cache do not fit into
            memory.
    """

    def __init__(
        self,
        model: ModelShape,
        stage: StageShape,
        device: str,
        *,
        reduce: Reduce = lambda partial: partial,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.stage = stage
        self.device = torch.device(device)
        self.dtype: torch.dtype = getattr(torch, model.dtype)
        self.reduce = reduce
        self._random = torch.Generator(self.device).manual_seed(seed)
        self.decoder = buildable(model, stage, self.device)
        self.attention = [attention_of(layer) for layer in self.decoder]
        check_fits(self.device, int(stage.weight_bytes), f"{stage.layers} layers of {model.name}")
        self.layers = [self._random_layer(layer) for layer in self.decoder]
        self._cache = [(self._empty(0), self._empty(0)) for _ in range(stage.layers)]

    def ready(self, step: StepShape) -> "StagePass":
        """Make a pass ready: inputs, positions and a cache with the step's earlier context.

        Raises:
            BackendError: it does not fit into memory.
        """
        spans = spans_of(step)
        self._grow_cache(sum(span.cached_tokens for span in spans), step)
        positions = [
            torch.arange(span.context_tokens, span.context_tokens + span.new_tokens).repeat(
                span.requests
            )
            for span in spans
        ]
        rotate = rotation(
            torch.cat(positions).to(self.device),
            self.model.head_dim,
            self.model.rope_theta,
            self.dtype,
        )
        masks = {
            window: [self._mask(span, window) for span in spans]
            for window in {attention.window_tokens for attention in self.attention}
        }
        blocks = [
            _blocks(keys, values, spans, masks[attention.window_tokens], attention)
            for (keys, values), attention in zip(self._cache, self.attention, strict=True)
        ]
        return StagePass(self, blocks, rotate, self.random(step.tokens, self.model.hidden_size))

    def random(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Normal numbers: zeros would draw less power than real activations do."""
        return self._empty(*shape).normal_(0.0, scale, generator=self._random)

    def clear_cache(self) -> None:
        """Give the cache's memory back; views of earlier passes keep theirs."""
        self._cache = [(self._empty(0), self._empty(0)) for _ in self._cache]

    def _random_layer(self, layer: Layer) -> LayerWeights:
        shard, hidden = attention_of(layer), self.model.hidden_size
        attended = shard.heads * shard.head_dim
        # Outputs of about the size of their inputs keep the residual stream finite.
        wide = 1 / math.sqrt(hidden)
        ones = torch.ones(hidden, dtype=self.dtype, device=self.device)
        head_ones = torch.ones(shard.head_dim, dtype=self.dtype, device=self.device)
        normed = self.model.qk_norm
        return LayerWeights(
            qkv=self._weight("attention", shard.qkv_size, hidden, scale=wide),
            qkv_bias=self.random(shard.qkv_size) if self.model.qkv_bias else None,
            q_norm=head_ones if normed else None,
            k_norm=head_ones if normed else None,
            out=self._weight("attention", hidden, attended, scale=1 / math.sqrt(attended)),
            mlp=self._random_mlp(mlp_of(layer)),
            attention_norm=ones,
            mlp_norm=ones,
        )

    def _random_mlp(self, mlp: DenseMlp | MoeMlp) -> DenseWeights | ExpertWeights:
        hidden, width = self.model.hidden_size, mlp.intermediate_size
        wide, narrow = 1 / math.sqrt(hidden), 1 / math.sqrt(width)
        if isinstance(mlp, DenseMlp):
            return DenseWeights(
                gate_up=self._weight("mlp", 2 * width, hidden, scale=wide),
                down=self._weight("mlp", hidden, width, scale=narrow),
            )
        return ExpertWeights(
            router=self.random(mlp.experts, hidden, scale=wide),
            gate_up=self._weight("experts", mlp.experts, 2 * width, hidden, scale=wide),
            down=self._weight("experts", mlp.experts, hidden, width, scale=narrow),
            top_k=mlp.top_k,
        )

    def _weight(self, tensor: str, *shape: int, scale: float) -> Weight:
        """Random weights of a class of tensors, in its format."""
        made = self.random(*shape, scale=scale)
        return in_fp8(made) if getattr(self.model.precision, tensor) == "fp8" else made

    def _grow_cache(self, tokens: int, step: StepShape) -> None:
        """Room for ``tokens`` in every layer, filled with random keys and values."""
        # Every layer keeps all tokens, as an engine without a hybrid cache does.
        numbers = tokens * max(attention.kv_per_token for attention in self.attention) // 2
        growing = numbers > self._cache[0][0].numel()
        needed = _activation_bytes(self.stage, step)
        if growing:
            self.clear_cache()
            needed += tokens * int(self.stage.kv_bytes_per_token)
        check_fits(self.device, needed, f"a pass of {step.tokens} tokens over {tokens} cached ones")
        if growing:
            self._cache = [(self.random(numbers), self.random(numbers)) for _ in self._cache]

    def _mask(self, span: Span, window: int) -> Any:
        """None means causal from the first token on; decodes take what they see and need none."""
        length = span.context_tokens + span.new_tokens
        windowed = 0 < window < length
        if span.new_tokens == 1 or (span.context_tokens == 0 and not windowed):
            return None
        if windowed:
            seen = torch.ones(span.new_tokens, length, dtype=torch.bool, device=self.device)
            return seen.tril(span.context_tokens).triu(span.context_tokens - window + 1)
        if self.device.type == "cuda":
            return causal_lower_right(span.new_tokens, length)  # flash needs no mask in memory
        seen = torch.ones(span.new_tokens, length, dtype=torch.bool, device=self.device)
        return seen.tril(span.context_tokens)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)


class StagePass:
    """One pass made ready. Running it again writes the same keys to the same places."""

    def __init__(
        self,
        stage: Stage,
        blocks: Sequence[tuple[Block, ...]],
        rotate: Rotation,
        hidden: Tensor,
    ) -> None:
        self.hidden = hidden
        self.blocks = blocks
        self._stage = stage
        self._rotate = rotate

    def run(self) -> Tensor:
        """Through all layers: (tokens, hidden) in, (tokens, hidden) out."""
        stage = self._stage
        hidden = self.hidden
        for weights, blocks, attention in zip(
            stage.layers, self.blocks, stage.attention, strict=True
        ):
            hidden = decoder_layer(
                hidden, weights, blocks, self._rotate, stage.model, attention, stage.reduce
            )
        return hidden


def _blocks(
    keys: Tensor,
    values: Tensor,
    spans: Sequence[Span],
    masks: Sequence[object | None],
    attention: Attention,
) -> tuple[Block, ...]:
    """Lay the spans out one after the other in one layer's cache."""
    blocks, begin = [], 0
    width = attention.kv_heads * attention.head_dim
    for span, mask in zip(spans, masks, strict=True):
        end = begin + span.cached_tokens * width
        shape = (
            span.requests,
            span.context_tokens + span.new_tokens,
            attention.kv_heads,
            attention.head_dim,
        )
        blocks.append(
            Block(
                span.requests,
                span.new_tokens,
                span.context_tokens,
                mask,
                keys[begin:end].view(shape),
                values[begin:end].view(shape),
            )
        )
        begin = end
    return tuple(blocks)


def _activation_bytes(stage: StageShape, step: StepShape) -> int:
    """What one layer holds at its widest: residual, norm, QKV twice (RoPE copies), MLP."""
    widest = 0
    for group in stage.groups:
        mixer, mlp = attention_of(group.layer), mlp_of(group.layer)
        # Rows of an expert are there once for each of a token's choices.
        copies = mlp.top_k if isinstance(mlp, MoeMlp) else 1
        width = 4 * mlp.intermediate_size * copies + 4 * stage.hidden_size * copies
        widest = max(widest, width + 2 * mixer.qkv_size)
    return step.tokens * widest * stage.activation_bytes
