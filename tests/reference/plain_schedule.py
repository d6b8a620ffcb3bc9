"""vLLM's own scheduling of one step (design/emulator.md).

First come first served inside a token budget, running requests before waiting ones, admission
by KV blocks, preemption of the last. The composer decides what this scheduler gets to see and
how many tokens it may spend; an adapter lets the engine's real one do it.

What it does not know: which prompts begin alike, and which KV blocks are taken first. So it is
told of each request how long its prefix-cache hit is and how much of that others hold, and
believes it until it is told anew; who was preempted is taken to hit nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from beam_runtime.types import (
    EngineLimits,
    Phase,
    RequestState,
    Snapshot,
    StepShape,
    chunk_pairs,
)


@dataclass(frozen=True, slots=True)
class Step:
    """What goes into the engine's next step.

    Attributes:
        decodes: requests that compute one token each.
        chunks: (request, tokens) of prompts, in the order of service.
        admitted: waiting requests that start running with this step.
        preempted: running requests that lose their KV blocks, the last one first.
        blocks: KV blocks taken, less those that preemption gave back.
        budget_tokens: vLLM's max_num_scheduled_tokens for this step.
        each_tokens: vLLM's long_prefill_token_threshold for this step, 0 for none.
        shape: what its cost depends on.
    """

    decodes: tuple[str, ...]
    chunks: tuple[tuple[str, int], ...]
    admitted: tuple[str, ...]
    preempted: tuple[str, ...]
    blocks: int
    budget_tokens: int
    each_tokens: int
    shape: StepShape


def fill(
    state: Snapshot,
    budget_tokens: int,
    decodes: Sequence[RequestState],
    *,
    prefill: bool,
    short: bool = False,
) -> Step:
    """Plain vLLM scheduling of one step.

    Args:
        state: the engine.
        budget_tokens: most tokens of the step.
        decodes: the decodes that the scheduler gets to see.
        prefill: whether it gets to see prompts.
        short: they are left their last token: the first one that would be done says how many
            each may get, the next one ends the step.
    """
    visible = {r.request_id for r in decodes}
    running = list(state.running)
    batch = _Batch(budget_tokens, state)
    at = 0
    while at < len(running) and batch.budget > 0:
        request = running[at]
        shown = request.request_id in visible if request.phase is Phase.DECODE else prefill
        tokens = new_tokens(request, state) if shown else 0
        if request.phase is not Phase.DECODE:
            tokens = batch.most(request, request.computed_tokens, tokens, short)
        if tokens:
            while not batch.fits(request, request.computed_tokens, tokens):
                batch.preempt(running.pop())
                if len(running) == at:
                    break
            if len(running) == at:
                break
            batch.add(request, request.computed_tokens, tokens)
        at += 1

    if prefill and not batch.preempted:
        for request in state.waiting:
            if not available(request, state):
                continue
            seqs = len(running) + len(batch.admitted)
            if batch.budget == 0 or not admissible(request, seqs, batch.free_blocks, state.limits):
                break
            cached = cached_tokens(request, state.limits.block_size)
            tokens = min(total_tokens(request), state.limits.max_model_len) - cached
            tokens = batch.most(request, cached, tokens, short)
            if not tokens:
                break
            batch.admitted.append(request.request_id)
            batch.add(request, cached, tokens)
    return batch.step(budget_tokens, state.free_blocks)


def prompt_cap(state: Snapshot) -> int:
    """Most tokens of any prompt in a step, 0 = no cap: only where others are there, too."""
    limits, requests = state.limits, len(state.running) + len(state.waiting)
    if not limits.long_prefill_token_threshold or requests < 2:
        return 0
    share = limits.max_batched_tokens // requests
    floor = share if limits.long_prefill_token_threshold_adaptive else 0
    return max(limits.long_prefill_token_threshold, floor)


class _Batch:
    """A step while it is being filled."""

    def __init__(self, budget: int, state: Snapshot) -> None:
        self.budget = budget
        self.each = prompt_cap(state)
        self.free_blocks = state.free_blocks
        self.block_size = state.limits.block_size
        self.decodes: list[str] = []
        self.chunks: list[tuple[str, int]] = []
        self.admitted: list[str] = []
        self.preempted: list[str] = []
        self.decode_context = 0
        self.prefill_tokens = 0
        self.prefill_context = 0
        self.pairs = 0.0

    def most(self, request: RequestState, computed: int, tokens: int, short: bool) -> int:
        """How many of so many tokens of a prompt go, and what that leaves to the others."""
        tokens = min(tokens, self.budget, self.each or tokens)
        if not tokens or not short or computed + tokens < total_tokens(request):
            return tokens
        if tokens > 1 and self.each:
            self.budget = tokens - 1
        elif tokens > 1:
            self.each = tokens - 1
        return tokens - 1

    def fits(self, request: RequestState, computed: int, tokens: int) -> bool:
        return self._needed(request, computed, tokens) <= self.free_blocks

    def _needed(self, request: RequestState, computed: int, tokens: int) -> int:
        held = blocks(request.computed_tokens, request, self.block_size)
        return blocks(computed + tokens, request, self.block_size) - held

    def preempt(self, request: RequestState) -> None:
        self.free_blocks += blocks(request.computed_tokens, request, self.block_size)
        self.preempted.append(request.request_id)

    def add(self, request: RequestState, computed: int, tokens: int) -> None:
        self.free_blocks -= self._needed(request, computed, tokens)
        self.budget -= tokens
        if request.phase is Phase.DECODE:
            self.decodes.append(request.request_id)
            self.decode_context += computed
        else:
            self.chunks.append((request.request_id, tokens))
            self.prefill_tokens += tokens
            self.prefill_context += computed
            self.pairs += chunk_pairs(tokens, computed)

    def step(self, budget_tokens: int, free_blocks: int) -> Step:
        shape = StepShape(
            self.prefill_tokens,
            self.prefill_context,
            len(self.decodes),
            self.decode_context,
            self.pairs,
        )
        return Step(
            decodes=tuple(self.decodes),
            chunks=tuple(self.chunks),
            admitted=tuple(self.admitted),
            preempted=tuple(self.preempted),
            blocks=free_blocks - self.free_blocks,
            budget_tokens=budget_tokens,
            each_tokens=self.each,
            shape=shape,
        )


def admissible(request: RequestState, running: int, free_blocks: int, limits: EngineLimits) -> bool:
    """Whether a waiting request may start: a seat, and KV blocks for its whole prompt."""
    needed = blocks(total_tokens(request), request, limits.block_size)
    return running < limits.max_num_seqs and needed <= free_blocks


def available(request: RequestState, state: Snapshot) -> bool:
    """Whether vLLM looks at a waiting request now, or at the next one.

    What a preempted request had in flight may still bring it a token: it is passed over until
    that is back.
    """
    return servable(request, state) and not request.steps_ahead


def servable(request: RequestState, state: Snapshot) -> bool:
    """Whether the model is long enough for the prompt; the engine rejects what is longer."""
    return request.prompt_tokens <= state.limits.max_model_len


def new_tokens(request: RequestState, state: Snapshot) -> int:
    """Tokens that could be computed now, were the budget large enough."""
    room = state.limits.max_model_len - request.computed_tokens
    return max(0, min(request.pending_tokens, room))


def blocks(tokens: int, request: RequestState, block_size: int) -> int:
    """KV blocks that a request holds for itself with ``tokens`` computed.

    It has the rest together with a request ahead of it. As the last is preempted first, this is
    what its preemption gives back.
    """
    if tokens == 0:
        return 0
    return -(-tokens // block_size) - shared_blocks(request, block_size)


def shared_blocks(request: RequestState, block_size: int) -> int:
    """KV blocks of its prefix-cache hit that a request ahead of it holds, too."""
    unheld = max(0, request.unheld_tokens)
    return max(0, cached_tokens(request, block_size) - unheld) // block_size


def cached_tokens(request: RequestState, block_size: int) -> int:
    """Prefix-cache hit on admission, whole blocks: of those who run what it was.

    The last token is always computed, for its logits. A preempted request's answer may be in
    the cache, too.
    """
    most = request.computed_tokens or total_tokens(request) - 1
    return max(0, min(request.cached_tokens, most)) // block_size * block_size


def total_tokens(request: RequestState) -> int:
    """Prompt and answer so far: what has to be in the cache before the next token."""
    return request.prompt_tokens + request.generated_tokens
