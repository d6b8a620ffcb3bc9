"""What one engine step holds, as far as its cost is concerned."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepShape:
    """What one engine step holds, as far as its cost is concerned.

    A batch is (C, its context, B, sum of contexts), never one mean context:
    keyed on that, mixed batches are 6-17 % wrong (design/table.md).

    Attributes:
        prefill_tokens: C, new prompt tokens of all chunks in the step.
        prefill_context_tokens: tokens of those requests already in the KV cache.
        decode_requests: B, requests that decode one token each.
        decode_context_tokens: KV tokens of the B requests together, before this step.
        prefill_pairs: (query, key) pairs that the chunks attend, the sum over chunks of
            c * (k + (c + 1) / 2). Left at None for a single chunk, where it follows from
            C and its context; give it for a step with several chunks.

    Raises:
        ValueError: one of the counts is below 0.
    """

    prefill_tokens: int = 0
    prefill_context_tokens: int = 0
    decode_requests: int = 0
    decode_context_tokens: int = 0
    prefill_pairs: float | None = None

    def __post_init__(self) -> None:
        for name in (
            "prefill_tokens",
            "prefill_context_tokens",
            "decode_requests",
            "decode_context_tokens",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, found {getattr(self, name)}")
        if self.prefill_pairs is None:
            pairs = chunk_pairs(self.prefill_tokens, self.prefill_context_tokens)
            object.__setattr__(self, "prefill_pairs", pairs)

    @property
    def tokens(self) -> int:
        """New tokens of the step: what its GEMMs see."""
        return self.prefill_tokens + self.decode_requests


def chunk_pairs(chunk_tokens: float, context_tokens: float) -> float:
    """(query, key) pairs that one causal chunk attends: c * (k + (c + 1) / 2)."""
    return chunk_tokens * (context_tokens + (chunk_tokens + 1) / 2)
