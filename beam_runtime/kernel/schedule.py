"""Twin of beam_runtime.emulator.schedule: what vLLM's own rules put into a step."""

from beam_runtime.kernel.jit import compiled
from beam_runtime.kernel.state import (
    CACHED,
    COMPUTED,
    FREE_BLOCKS,
    ITEM,
    ITEM_TOKENS,
    KIND,
    LAST_STEP,
    N_PREFILL,
    N_RUNNING,
    N_WAITING,
    PREFILL,
    READY,
    ROOM,
    RUNNING,
    SHARED,
    SHOWN,
    STEPS_BACK,
    TOTAL,
    WAIT_HEAD,
    WAITING,
    Batch,
    Engine,
    State,
)


@compiled
def blocks(s: State, row: int, tokens: int, e: Engine) -> int:
    if tokens == 0:
        return 0
    held: int = -(-tokens // e.block_size) - s.requests[SHARED, row]
    return held


@compiled
def admissible(s: State, row: int, running: int, free_blocks: int, e: Engine) -> bool:
    return running < e.max_num_seqs and blocks(s, row, s.requests[TOTAL, row], e) <= free_blocks


@compiled
def prefill_pending(s: State, e: Engine) -> bool:
    if s.at[N_PREFILL] > 0:
        return True
    for i in range(s.at[N_WAITING]):
        head = s.requests[WAITING, (s.at[WAIT_HEAD] + i) % s.requests.shape[1]]
        if available(s, head):
            return admissible(s, head, s.at[N_RUNNING], s.at[FREE_BLOCKS], e)
    return False


@compiled
def available(s: State, row: int) -> bool:
    back: bool = s.requests[LAST_STEP, row] <= s.at[STEPS_BACK]
    return back


@compiled
def fill(s: State, budget: int, all_shown: bool, prefill: bool, e: Engine) -> Batch:
    """``all_shown``: every ready decode is visible; else those marked SHOWN."""
    r = s.requests
    left = budget
    free = s.at[FREE_BLOCKS]
    n_running = s.at[N_RUNNING]
    items, preempted, admitted, passed = 0, 0, 0, 0
    chunk, context, pairs = 0, 0, 0.0
    decodes, decode_context = 0, 0
    i = 0
    while i < n_running and left > 0:
        row = r[RUNNING, i]
        kind = r[KIND, row]
        if kind == READY and (all_shown or r[SHOWN, row] == 1):
            tokens = 1
        elif kind == PREFILL and prefill:
            computed = r[COMPUTED, row]
            tokens = min(min(r[TOTAL, row], e.max_model_len) - computed, left)
        else:
            i += 1
            continue
        if tokens > r[ROOM, row]:
            needed = -(-(tokens - r[ROOM, row]) // e.block_size)
            while needed > free:
                n_running -= 1
                victim = r[RUNNING, n_running]
                free += blocks(s, victim, r[COMPUTED, victim], e)
                preempted += 1
                if n_running == i:
                    break
            if n_running == i:
                break
            free -= needed
        left -= tokens
        r[ITEM, items] = row
        r[ITEM_TOKENS, items] = tokens
        items += 1
        computed = r[COMPUTED, row]
        if kind == READY:
            decodes += 1
            decode_context += computed
        else:
            chunk += tokens
            context += computed
            pairs += tokens * (computed + (tokens + 1) / 2)
        i += 1
    while prefill and preempted == 0 and admitted + passed < s.at[N_WAITING] and left > 0:
        row = r[WAITING, (s.at[WAIT_HEAD] + admitted + passed) % r.shape[1]]
        if not available(s, row):
            passed += 1
            continue
        if not admissible(s, row, n_running + admitted, free, e):
            break
        computed = r[CACHED, row]
        tokens = min(min(r[TOTAL, row], e.max_model_len) - computed, left)
        free -= blocks(s, row, computed + tokens, e)
        left -= tokens
        r[ITEM, items] = row
        r[ITEM_TOKENS, items] = tokens
        items += 1
        admitted += 1
        chunk += tokens
        context += computed
        pairs += tokens * (computed + (tokens + 1) / 2)
    return Batch(items, admitted, preempted, free, chunk, context, pairs, decodes, decode_context)


@compiled
def shortened(s: State, b: Batch, tokens: int) -> Batch:
    """What ``fill`` gives for a budget smaller by so many tokens, if it need not preempt.

    It takes the same requests in the same order, so the last ones lose tokens. Only what a
    step's cost depends on is right in the result; the items lie as ``b`` has them.
    """
    r = s.requests
    items = b.items
    chunk, context, pairs = b.chunk, b.context, b.pairs
    decodes, decode_context = b.decodes, b.decode_context
    while tokens > 0 and items > 0:
        row, had = r[ITEM, items - 1], r[ITEM_TOKENS, items - 1]
        waits = items > b.items - b.admitted
        computed = r[CACHED, row] if waits else r[COMPUTED, row]
        keeps = had - min(had, tokens)
        tokens -= had - keeps
        if r[KIND, row] == READY and not waits:
            decodes -= 1
            decode_context -= computed
        else:
            chunk -= had - keeps
            pairs -= had * (computed + (had + 1) / 2) - keeps * (computed + (keeps + 1) / 2)
            context -= computed if keeps == 0 else 0
        items -= 1
    return Batch(
        b.items, b.admitted, 0, b.free_blocks, chunk, context, pairs, decodes, decode_context
    )  # fmt: skip
