"""The plant's prefix cache: which KV blocks are known by what they hold, and who holds them.

    tell_hits()   before a step: what each waiting request near the head would not compute
    take()        after it: its admitted requests hold their hits; full blocks become known
    let_go()      a request leaves or is preempted: its blocks are free, and stay known
    evict()       blocks that were needed anew forget what they held, the longest free first

vLLM's rules (v1 kv_cache_manager and block_pool): a block is known as soon as the step that
fills it is scheduled; freed blocks are taken again in the order in which they were freed, a
request's last ones first, and never used ones before all; two requests that compute the same
block at the same time hold one each.

What the emulator's arithmetic needs of it stands in two columns of a request, ``cached_tokens``
and ``shared_blocks``. What differs from vLLM: a request does not hit what another one admitted
in the same step fills, but in the next; and vLLM finds such a second block, too.
"""

import functools
from typing import NamedTuple

import numpy as np

from beam_runtime.emulator.compiler import compiled, inlined
from beam_runtime.emulator.places import waiting_place
from beam_runtime.emulator.schedule import available, held_blocks
from beam_runtime.emulator.setup import Batch
from beam_runtime.emulator.state import Ints, Records, State, record_type, records
from beamprof.traces.prefixes import PrefixBlocks, prefix_blocks
from beamprof.traces.trace import Trace

# Who holds a block: a row of State.requests, or one of these.
UNKNOWN, NOBODY = -2, -1
_ANONYMOUS = -1  # blocks that nobody can ask for again

ENTRY = record_type("block blocks")  # free blocks in order: one that is known, or so many others
BOOKS = record_type(
    "on "  # 0: every prompt is played cold
    "fresh queued "  # free blocks: never used, and in the queue
    "head length pushed "  # of the queue, a ring; ``pushed`` numbers its entries
    "changed"  # hits may differ from what requests were told
)


class PrefixCache(NamedTuple):
    """Blocks by content.

    Attributes:
        books: (1,) of BOOKS.
        offsets: request i asks for ``ids[offsets[i]:offsets[i + 1]]``, in this order.
        ids: (N,) content of a full block, 0..M-1.
        holder: (M,) a row, NOBODY or UNKNOWN.
        entry: (M,) number of the entry in the queue that stands for it.
        queue: (Q,) of ENTRY; entries whose block was taken since are skipped.
        cached_tokens: (requests,) hit when first admitted.
    """

    books: Records
    offsets: Ints
    ids: Ints
    holder: Ints
    entry: Ints
    queue: Records
    cached_tokens: Ints


def make_cache(trace: Trace, block_tokens: int, kv_blocks: int, *, wanted: bool) -> PrefixCache:
    """An empty cache for a trace; one that is off where it says nothing of prefixes."""
    blocks = _blocks(trace, block_tokens) if wanted else None
    books = records(1, BOOKS)
    if blocks is None:
        nothing = np.zeros(0, np.int64)
        offsets = np.zeros(trace.requests + 1, np.int64)
        return PrefixCache(
            books, offsets, nothing, nothing, nothing, records(1, ENTRY),
            np.zeros(trace.requests, np.int64),
        )  # fmt: skip
    contents = int(blocks.ids.max(initial=-1)) + 1
    # A queue holds free blocks, and no more are ever used than all requests need together.
    all_tokens = trace.input_tokens + trace.output_tokens
    used = min(kv_blocks, int((-(-all_tokens // block_tokens)).sum()))
    books["on"], books["fresh"] = 1, kv_blocks
    return PrefixCache(
        books,
        blocks.offsets,
        blocks.ids,
        np.full(contents, UNKNOWN, np.int64),
        np.full(contents, -1, np.int64),
        records(2 * used + 16, ENTRY),
        np.zeros(trace.requests, np.int64),
    )


@functools.lru_cache(maxsize=1)
def _blocks(trace: Trace, block_tokens: int) -> PrefixBlocks | None:
    """The trace's, its ids without gaps; kept for the next policy on the same trace."""
    blocks = prefix_blocks(trace, block_tokens)
    if blocks is None:
        return None
    _, ids = np.unique(blocks.ids, return_inverse=True)
    return PrefixBlocks(
        blocks.offsets, ids.ravel().astype(np.int64), blocks.prompt_blocks, block_tokens,
        blocks.source,
    )  # fmt: skip


@inlined
def opened_cache(cache: PrefixCache) -> PrefixCache:
    """The same with its books at hand."""
    return PrefixCache(
        cache.books[0], cache.offsets, cache.ids, cache.holder, cache.entry, cache.queue,
        cache.cached_tokens,
    )  # fmt: skip


@compiled
def tell_hits(state: State, cache: PrefixCache, hidden: Records, setup: Records) -> None:
    """To the waiting requests that the next step could admit."""
    books = cache.books
    if books.on == 0 or books.changed == 0:
        return
    books.changed = 0
    left = setup.max_batched_tokens
    number = 0
    while number < state.engine.waiting and left > 0:
        row = state.places[waiting_place(state, number)].waiting
        request = state.requests[row]
        tell(request, cache, hidden[row].request, setup)
        if available(state, request):  # else it is passed over
            left -= request.total_tokens - request.cached_tokens
        number += 1


@compiled
def tell(request: Records, cache: PrefixCache, number: int, setup: Records) -> None:
    """How long its hit is, and how much of that others hold. Its last token is computed anew."""
    begin = cache.offsets[number]
    most = min(cache.offsets[number + 1] - begin, (request.total_tokens - 1) // setup.block_size)
    hit, shared = 0, 0
    while hit < most:
        holder = cache.holder[cache.ids[begin + hit]]
        if holder == UNKNOWN:
            break
        shared += holder >= 0
        hit += 1
    request.cached_tokens = hit * setup.block_size
    request.shared_blocks = shared


@compiled
def take(state: State, cache: PrefixCache, hidden: Records, batch: Batch, setup: Records) -> None:
    """A step was issued: hits are held, others made room, and full blocks are known."""
    if cache.books.on == 0:
        return
    for item in range(batch.items - batch.admitted, batch.items):
        hold(state, cache, hidden, state.places[item].scheduled, setup)
    if batch.admitted > 0:
        cache.books.changed = 1
    evict(state, cache)
    for item in range(batch.items):
        note_full(state, cache, hidden, state.places[item].scheduled, setup)


@compiled
def hold(state: State, cache: PrefixCache, hidden: Records, row: int, setup: Records) -> None:
    """An admitted request holds its hit; some of it may have been taken in this very step."""
    request, mine = state.requests[row], hidden[row]
    mine.hit_blocks = mine.known_blocks = request.cached_tokens // setup.block_size
    if mine.admitted == 0:
        mine.admitted = 1
        cache.cached_tokens[mine.request] = request.cached_tokens
    begin, shared = cache.offsets[mine.request], 0
    for at in range(begin, begin + mine.hit_blocks):
        block = cache.ids[at]
        if cache.holder[block] == NOBODY:
            cache.holder[block] = row
            cache.books.queued -= 1
        else:
            shared += 1
    state.engine.free_blocks += shared - request.shared_blocks
    request.shared_blocks = shared


@compiled
def note_full(state: State, cache: PrefixCache, hidden: Records, row: int, setup: Records) -> None:
    """Blocks that the step fills are known from now on, if they are not already."""
    mine = hidden[row]
    begin = cache.offsets[mine.request]
    ids = cache.offsets[mine.request + 1] - begin
    full = min(ids, state.requests[row].computed_tokens // setup.block_size)
    for at in range(begin + mine.known_blocks, begin + full):
        if cache.holder[cache.ids[at]] == UNKNOWN:
            cache.holder[cache.ids[at]] = row
            cache.books.changed = 1
    mine.known_blocks = max(mine.known_blocks, full)


@compiled
def let_go(state: State, cache: PrefixCache, hidden: Records, row: int, setup: Records) -> int:
    """A request that is among the running no more frees its blocks; how many others still hold.

    The engine's count of free blocks is the caller's.
    """
    if cache.books.on == 0:
        return 0
    mine = hidden[row]
    request = state.requests[row]
    begin, known = cache.offsets[mine.request], mine.known_blocks
    passed_on = pass_on(state, cache, hidden, row)
    owned = 0
    for at in range(begin, begin + known):
        owned += cache.holder[cache.ids[at]] == row
    held = held_blocks(request, request.computed_tokens, setup) - passed_on
    if held > owned:
        push(cache, _ANONYMOUS, held - owned)
    for at in range(begin + known - 1, begin - 1, -1):
        block = cache.ids[at]
        if cache.holder[block] == row:
            cache.holder[block] = NOBODY
            cache.entry[block] = push(cache, block, 1)
    mine.hit_blocks = mine.known_blocks = 0
    cache.books.changed = 1
    return passed_on


@compiled
def pass_on(state: State, cache: PrefixCache, hidden: Records, row: int) -> int:
    """What was held for others is theirs: each block of the first running request that hit it."""
    begin, known = cache.offsets[hidden[row].request], hidden[row].known_blocks
    passed_on = 0
    for place in range(state.engine.running):
        other = state.places[place].running
        theirs = cache.offsets[hidden[other].request]
        for at in range(min(known, hidden[other].hit_blocks) if other != row else 0):
            block = cache.ids[begin + at]
            if cache.ids[theirs + at] != block:
                break
            if cache.holder[block] == row:
                cache.holder[block] = other
                state.requests[other].shared_blocks -= 1
                passed_on += 1
    return passed_on


@compiled
def push(cache: PrefixCache, block: int, blocks: int) -> int:
    """To the end of the queue; the number of the entry."""
    books, size = cache.books, len(cache.queue)
    number: int = books.pushed
    books.queued += blocks
    if books.length == size:
        tidy(cache)
    last = cache.queue[(books.head + books.length - 1) % size]
    if block == _ANONYMOUS and books.length > 0 and last.block == _ANONYMOUS:
        last.blocks += blocks
        return number - 1
    entry = cache.queue[(books.head + books.length) % size]
    entry.block, entry.blocks = block, blocks
    books.length += 1
    books.pushed += 1
    return number


@compiled
def evict(state: State, cache: PrefixCache) -> None:
    """As many blocks as were taken are no longer free: never used ones, then from the queue."""
    books = cache.books
    books.fresh -= min(books.fresh, books.fresh + books.queued - state.engine.free_blocks)
    while books.queued > state.engine.free_blocks - books.fresh:
        entry = cache.queue[books.head]
        if entry.block == _ANONYMOUS:
            taken = min(entry.blocks, books.queued - state.engine.free_blocks + books.fresh)
            entry.blocks -= taken
            books.queued -= taken
            if entry.blocks > 0:
                return
        elif stands(cache, 0):
            cache.holder[entry.block] = UNKNOWN
            books.queued -= 1
            books.changed = 1
        books.head = (books.head + 1) % len(cache.queue)
        books.length -= 1


@compiled
def stands(cache: PrefixCache, at: int) -> bool:
    """Whether the entry ``at`` places behind the head still is what it says."""
    books = cache.books
    entry = cache.queue[(books.head + at) % len(cache.queue)]
    number = books.pushed - books.length + at
    known = entry.block != _ANONYMOUS
    stale = known and (cache.holder[entry.block] != NOBODY or cache.entry[entry.block] != number)
    return not stale and (known or entry.blocks > 0)


@compiled
def tidy(cache: PrefixCache) -> None:
    """Without the entries that are to be skipped."""
    books, size = cache.books, len(cache.queue)
    kept = 0
    numbered = books.pushed
    for at in range(books.length):
        if not stands(cache, at):
            continue
        entry, to = cache.queue[(books.head + at) % size], cache.queue[(books.head + kept) % size]
        to.block, to.blocks = entry.block, entry.blocks
        kept += 1
    books.length = kept
    for at in range(kept):
        block = cache.queue[(books.head + at) % size].block
        if block != _ANONYMOUS:
            cache.entry[block] = numbered - kept + at
