"""From a cell to the requests whose engine step is that cell, and back: pure arithmetic.

    admit   B decodes, each of prompt context + 1 with context tokens called cached
    step    each decodes one token; a chunk rides along: prompt K + C with K called cached
    step    ...                                           every step a new chunk request
    admit   again, once the decodes' contexts have grown as far as they may

A decode's context grows by one token a step, so decodes begin short of the cell's context and
are admitted anew when they are as far beyond it: the mean over the timed steps is the cell's.
The admitting steps are not timed.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from beam_runtime.types import StepShape
from beamprof.errors import BackendError

# In a request's kv_transfer_params: tokens of its prompt that count as cached (vllm_connector).
CONTEXT_KEY = "beam_context_tokens"
# Timed steps of one admission at most; attention's cost is affine in the context.
MOST_STEPS = 63
# With async scheduling a step or two are in flight before the first that can be timed.
SLACK_TOKENS = 4
# Seats beside the largest decode batch: a chunk's request, and with async scheduling the one
# before it, whose step is not back yet.
CHUNK_SEATS = 2


@dataclass(frozen=True, slots=True)
class Craft:
    """The requests of one cell.

    Attributes:
        contexts: of each decode when it is admitted, in tokens.
        steps: timed steps until the decodes are admitted anew; MOST_STEPS without decodes.
        chunk_tokens, chunk_context_tokens: of the chunk that rides in every timed step; 0 = none.
        decode_context_tokens: KV tokens of all decodes together that timed steps have on average.
    """

    contexts: tuple[int, ...]
    steps: int
    chunk_tokens: int
    chunk_context_tokens: int
    decode_context_tokens: int

    @property
    def budget_tokens(self) -> int:
        """Tokens of one timed step: vLLM's max_num_scheduled_tokens for this cell."""
        return len(self.contexts) + self.chunk_tokens

    def blocks(self, block_size: int) -> int:
        """KV-cache blocks that the cell takes at its longest, overlapping chunks included."""
        longest = [context + self.steps + 2 for context in self.contexts]
        chunk = self.chunk_context_tokens + self.chunk_tokens + 1
        if self.chunk_tokens:
            longest += [chunk] * CHUNK_SEATS
        return sum(-(-tokens // block_size) for tokens in longest)

    def fits(self, found: StepShape) -> bool:
        """Whether a scheduled step is one of this cell's timed steps."""
        drift = abs(found.decode_context_tokens - self.decode_context_tokens)
        most = len(self.contexts) * max(SLACK_TOKENS, (self.steps - 1) / 2)
        return (
            found.prefill_tokens == self.chunk_tokens
            and found.prefill_context_tokens == self.chunk_context_tokens
            and found.decode_requests == len(self.contexts)
            and drift <= most
        )


def craft(step: StepShape) -> Craft:
    """The requests whose steps are ``step``, on average over one admission.

    Raises:
        BackendError: a decode without context, which no engine has.
    """
    requests, total = step.decode_requests, step.decode_context_tokens
    if requests == 0:
        return Craft((), MOST_STEPS, step.prefill_tokens, step.prefill_context_tokens, 0)
    if total < requests:
        raise BackendError(
            f"{requests} decodes over {total} tokens: each needs one token of context or more",
            hint="a prompt's first token comes from its prefill",
        )
    each, longer = divmod(total, requests)
    # Odd, so that the middle step has the cell's own context.
    steps = min(MOST_STEPS, 2 * each - 1)
    before = (steps + 1) // 2
    contexts = [each - before + (n < longer) for n in range(requests)]
    return Craft(
        tuple(contexts), steps, step.prefill_tokens, step.prefill_context_tokens, total
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Envelope:
    """What an engine must be started for, so that every cell of a sweep fits.

    Attributes:
        max_batched_tokens, max_seqs: of one step.
        max_model_len: longest prompt and answer of one request.
        kv_tokens: KV tokens of the largest cell.
    """

    max_batched_tokens: int
    max_seqs: int
    max_model_len: int
    kv_tokens: int


def envelope(steps: Iterable[StepShape], block_size: int = 128) -> Envelope:
    """The envelope of a sweep's cells.

    Args:
        steps: its passes; at least one.
        block_size: the largest KV block that an engine may use, by which requests are rounded up.
    """
    crafts = [craft(step) for step in steps]
    reach = MOST_STEPS + 4  # an answer's tokens, those of steps in flight included
    longest = [max(one.contexts, default=0) + reach for one in crafts]
    longest += [one.chunk_context_tokens + one.chunk_tokens + 2 for one in crafts]
    return Envelope(
        max_batched_tokens=max(one.budget_tokens for one in crafts),
        max_seqs=max(len(one.contexts) for one in crafts) + CHUNK_SEATS,
        max_model_len=max(longest),
        kv_tokens=max(one.blocks(block_size) for one in crafts) * block_size,
    )
