"""vLLM's own scheduling of one step (design/emulator.md).

First come first served inside a token budget, running requests before waiting ones, admission
by KV blocks, preemption of the last. The composer decides what this scheduler gets to see and
how many tokens it may spend; an adapter lets the engine's real one do it. The oracle is vLLM's
Scheduler itself (tests/vllm/test_vllm_oracle.py).

What it does not know: which prompts begin alike, and which KV blocks are taken first. So it is
told of each request how long its prefix-cache hit is and how much of that others hold, and
believes it until it is told anew; who was preempted is taken to hit nothing.
"""

from beam_runtime.emulator.compiler import compiled, merged
from beam_runtime.emulator.places import waiting_place
from beam_runtime.emulator.setup import Batch
from beam_runtime.emulator.state import DECODING, OTHER, PREFILL, READY, Records, State

# What a step gets to see of prompts: nothing, all but each one's last token, or all.
HIDDEN, SHORT, WHOLE = range(3)


@compiled
def held_blocks(request: Records, tokens: int, setup: Records) -> int:
    """KV blocks that a request holds for itself with ``tokens`` computed.

    It has the rest together with a request ahead of it. As the last is preempted first, this is
    what its preemption gives back.
    """
    if tokens == 0:
        return 0
    blocks: int = -(-tokens // setup.block_size) - request.shared_blocks
    return blocks


@compiled
def admissible(request: Records, running: int, free_blocks: int, setup: Records) -> bool:
    """Whether a waiting request may start: a seat, and KV blocks for its whole prompt.

    vLLM's scheduler_reserve_full_isl.
    """
    needed = held_blocks(request, request.total_tokens, setup)
    return running < setup.max_num_seqs and needed <= free_blocks


@compiled
def available(state: State, request: Records) -> bool:
    """Whether vLLM looks at a waiting request now, or at the next one.

    What a preempted request had in flight may still bring it a token: it is passed over until
    that is back.
    """
    back: bool = request.last_step <= state.engine.steps_back
    return back


@compiled
def kind_of(request: Records, setup: Records) -> int:
    """What a running request can do now."""
    left = request.total_tokens - request.computed_tokens
    pending = min(left, setup.max_model_len - request.computed_tokens)
    if request.computed_tokens != 0 and request.generated_tokens > 0 and left <= 1:
        return READY if pending > 0 else DECODING
    return PREFILL if pending > 0 else OTHER


@compiled
def prefill_pending(state: State, setup: Records) -> bool:
    """Whether the next step could carry prefill."""
    if state.engine.prefilling > 0:
        return True
    for number in range(state.engine.waiting):
        head = state.requests[state.places[waiting_place(state, number)].waiting]
        if available(state, head):
            return admissible(head, state.engine.running, state.engine.free_blocks, setup)
    return False


@compiled
def fill(state: State, budget_tokens: int, all_shown: bool, prompts: int, setup: Records) -> Batch:
    """Plain vLLM scheduling of one step.

    An engine can be told whom it does not see, how many tokens a step has, and how many of them
    any prompt gets at most (vLLM's long_prefill_token_threshold). So where prompts are to stay
    SHORT of their last token, the first that would be done says how many each may get (unless a
    user has), the next one ends the step, and those that are short already are not seen.

    Args:
        state: the engine.
        budget_tokens: most tokens of the step.
        all_shown: every ready decode is visible; else those that are ``shown``.
        prompts: HIDDEN, SHORT or WHOLE.
        setup: limits.
    """
    requests, places = state.requests, state.places
    left, each_tokens = budget_tokens, prompt_cap_tokens(state, setup)
    free_blocks = state.engine.free_blocks
    running, waiting = state.engine.running, state.engine.waiting
    items, preempted, admitted, passed_over = 0, 0, 0, 0
    chunk_tokens, chunk_context_tokens, pairs = 0, 0, 0.0
    decodes, decode_context_tokens = 0, 0
    at = 0
    while at < running and left > 0:
        row = places[at].running
        request = requests[row]
        computed = request.computed_tokens
        if request.kind == READY and (all_shown or request.shown == 1):
            tokens = 1
        elif request.kind == PREFILL and prompts != HIDDEN:
            tokens = prompt_tokens(request, computed, left, each_tokens, setup)
            if prompts == SHORT and computed + tokens == request.total_tokens:
                tokens -= 1
                if tokens > 0:
                    left, each_tokens = kept_short(tokens, left, each_tokens)
        else:
            tokens = 0
        if tokens == 0:
            at += 1
            continue
        if tokens > request.room_tokens:
            needed = -(-(tokens - request.room_tokens) // setup.block_size)
            while needed > free_blocks and running > at:
                running -= 1
                preempted += 1
                victim = requests[places[running].running]
                free_blocks += held_blocks(victim, victim.computed_tokens, setup)
            if running == at:  # it was the last one itself
                break
            free_blocks -= needed
        left -= tokens
        places[items].scheduled = row
        places[items].scheduled_tokens = tokens
        items += 1
        if request.kind == READY:
            decodes += 1
            decode_context_tokens += computed
        else:
            chunk_tokens += tokens
            chunk_context_tokens += computed
            pairs += tokens * (computed + (tokens + 1) / 2)
        at += 1
    while prompts != HIDDEN and preempted == 0 and admitted + passed_over < waiting and left > 0:
        row = places[waiting_place(state, admitted + passed_over)].waiting
        request = requests[row]
        if not available(state, request):
            passed_over += 1
            continue
        if not admissible(request, running + admitted, free_blocks, setup):
            break
        computed = request.cached_tokens
        tokens = prompt_tokens(request, computed, left, each_tokens, setup)
        if prompts == SHORT and computed + tokens == request.total_tokens:
            tokens -= 1
            if tokens == 0:  # nobody who waits can be hidden
                break
            left, each_tokens = kept_short(tokens, left, each_tokens)
        free_blocks -= held_blocks(request, computed + tokens, setup)
        left -= tokens
        places[items].scheduled = row
        places[items].scheduled_tokens = tokens
        items += 1
        admitted += 1
        chunk_tokens += tokens
        chunk_context_tokens += computed
        pairs += tokens * (computed + (tokens + 1) / 2)
    return Batch(
        items, admitted, preempted, free_blocks, chunk_tokens, chunk_context_tokens, pairs,
        decodes, decode_context_tokens, each_tokens,
    )  # fmt: skip


@compiled
def prompt_tokens(
    request: Records, computed: int, left: int, each_tokens: int, setup: Records
) -> int:
    """How many tokens a prompt gets of a step with so many left."""
    tokens: int = min(min(request.total_tokens, setup.max_model_len) - computed, left)
    return min(tokens, each_tokens) if each_tokens > 0 else tokens


@compiled
def prompt_cap_tokens(state: State, setup: Records) -> int:
    """Most tokens of any prompt in this step, 0 = all it holds: nobody is held up by one alone.

    vLLM 0.32's rule.
    """
    threshold: int = setup.long_prefill_token_threshold
    requests = state.engine.running + state.engine.waiting
    if threshold == 0 or requests < 2:
        return 0
    if setup.long_prefill_token_threshold_adaptive:
        threshold = max(threshold, setup.max_batched_tokens // requests)
    return threshold


@compiled
def kept_short(tokens: int, left: int, each_tokens: int) -> tuple[int, int]:
    """(tokens left, most of each prompt) so that one with room for more gets just so many."""
    return (left, tokens) if each_tokens == 0 else (tokens, each_tokens)


@merged
def shortened(state: State, batch: Batch, tokens: int) -> Batch:
    """What ``fill`` gives for a budget smaller by so many tokens, if it need not preempt.

    It takes the same requests in the same order, so the last ones lose tokens. Only what a
    step's cost depends on is right in the result; the items lie as ``batch`` has them.
    """
    items = batch.items
    chunk_tokens, pairs = batch.chunk_tokens, batch.pairs
    chunk_context_tokens = batch.chunk_context_tokens
    decodes, decode_context_tokens = batch.decodes, batch.decode_context_tokens
    while tokens > 0 and items > 0:
        items -= 1
        place = state.places[items]
        request = state.requests[place.scheduled]
        had = place.scheduled_tokens
        waits = items >= batch.items - batch.admitted
        computed = request.cached_tokens if waits else request.computed_tokens
        keeps = had - min(had, tokens)
        tokens -= had - keeps
        if request.kind == READY and not waits:
            decodes -= 1
            decode_context_tokens -= computed
        else:
            chunk_tokens -= had - keeps
            pairs -= had * (computed + (had + 1) / 2) - keeps * (computed + (keeps + 1) / 2)
            chunk_context_tokens -= computed if keeps == 0 else 0
    return Batch(
        batch.items, batch.admitted, 0, batch.free_blocks, chunk_tokens, chunk_context_tokens,
        pairs, decodes, decode_context_tokens, batch.each_tokens,
    )  # fmt: skip
