"""What a prefix cache could reuse of a trace: blocks of its prompts that came before.

vLLM keeps full blocks of its own size, each known by everything up to its end, and never takes a
whole prompt from the cache: its last token is computed anew (vllm v1 kv_cache_manager,
get_computed_blocks). Where a trace has prefix hashes they say which prompts begin alike, in blocks
of the trace's size; otherwise turns of one session are taken to begin with all that the turn
before them held, prompt and answer, where they are long enough for it.

A trace's blocks are converted so: a cache block that ends at token e is the same in two prompts
if all their trace blocks up to ceil(e / size) are. What this module does not know: how long the
engine keeps a block, and whether the earlier prompt has been computed when the later one starts.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beamprof.traces.trace import Trace

VLLM_BLOCK_TOKENS = 16  # vLLM's default on GPUs (CacheConfig.block_size)


@dataclass(frozen=True, slots=True)
class PrefixBlocks:
    """Every request's cache blocks in prompt order; equal ids are equal content.

    Attributes:
        offsets: request i has ``ids[offsets[i]:offsets[i + 1]]``, shape (requests + 1,).
        ids: of full blocks; by sessions they go on through the answer, for a later turn to find.
        prompt_blocks: how many of a request's blocks lie in its prompt, shape (requests,).
        block_tokens: the cache's block.
        source: ``prefix_hashes`` or ``sessions``.
    """

    offsets: NDArray[np.int64]
    ids: NDArray[np.int64]
    prompt_blocks: NDArray[np.int64]
    block_tokens: int
    source: str


@dataclass(frozen=True, slots=True)
class PrefixReuse:
    """What an endless cache would have spared, if each prompt finds all that came before it.

    Attributes:
        source: ``prefix_hashes`` or ``sessions``, where the trace says what begins alike.
        block_tokens: the cache's block.
        cached_tokens: prompt tokens by request that would not be computed, shape (requests,).
        prompt_tokens: of all requests.
    """

    source: str
    block_tokens: int
    cached_tokens: NDArray[np.int64]
    prompt_tokens: int

    @property
    def reused_tokens(self) -> int:
        """Of all requests together."""
        return int(self.cached_tokens.sum())

    @property
    def share(self) -> float:
        """Of all prompt tokens."""
        return self.reused_tokens / self.prompt_tokens

    def __str__(self) -> str:
        return (
            f"{self.reused_tokens:,} of {self.prompt_tokens:,} prompt tokens ({self.share:.0%}) "
            f"repeat what came before (by {self.source.replace('_', ' ')}, "
            f"{self.block_tokens}-token blocks)"
        )


def prefix_reuse(trace: Trace, block_tokens: int = VLLM_BLOCK_TOKENS) -> PrefixReuse | None:
    """Prompt tokens that a cache of such blocks would hold; None where the trace does not say."""
    blocks = prefix_blocks(trace, block_tokens)
    if blocks is None:
        return None
    requests = np.repeat(np.arange(trace.requests), np.diff(blocks.offsets))
    _, first_place, name = np.unique(blocks.ids, return_index=True, return_inverse=True)
    seen = requests[first_place][name] < requests
    # The first block that is new ends what can be taken from the cache.
    place = np.arange(len(seen)) - blocks.offsets[requests]
    run = np.diff(blocks.offsets)
    np.minimum.at(run, requests[~seen], place[~seen])
    spared = np.minimum(run, (trace.input_tokens - 1) // block_tokens) * block_tokens
    return PrefixReuse(blocks.source, block_tokens, spared, int(trace.input_tokens.sum()))


def prefix_blocks(trace: Trace, block_tokens: int = VLLM_BLOCK_TOKENS) -> PrefixBlocks | None:
    """A trace's prompts as blocks of a cache; None where it has neither hashes nor sessions.

    Memory goes with the tokens of all prompts over ``block_tokens``: 8 bytes a block.
    """
    if block_tokens < 1:
        raise ValueError(f"a block has 1 token or more, found {block_tokens}")
    if "prefix_hashes" in trace.frame.columns:
        return _from_hashes(trace, block_tokens)
    if "session_id" in trace.frame.columns:
        return _from_sessions(trace, block_tokens)
    return None


def _from_hashes(trace: Trace, block_tokens: int) -> PrefixBlocks:
    size = trace.prefix_block_tokens or block_tokens
    lists = trace.frame["prefix_hashes"]
    counts = lists.list.len().fill_null(0).to_numpy().astype(np.int64)
    hashed = np.minimum(counts * size, trace.input_tokens)
    prompt_blocks = hashed // block_tokens
    offsets = _offsets(prompt_blocks)
    request, place = _places(offsets)
    level = -(-(place + 1) * block_tokens // size)  # trace blocks up to the cache block's end
    nodes = _nodes(lists.explode().drop_nulls().to_numpy(), counts)
    node = nodes[_offsets(counts)[:-1][request] + level - 1]
    return PrefixBlocks(offsets, _ids(node, place), prompt_blocks, block_tokens, "prefix_hashes")


def _nodes(hashes: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """One number for each prefix of hashes: equal exactly where all hashes up to it are."""
    starts = _offsets(counts)[:-1]
    nodes = np.empty(len(hashes), dtype=np.int64)
    alive, parents, used = np.flatnonzero(counts), np.zeros(int((counts > 0).sum()), np.int64), 1
    for level in range(int(counts.max(initial=0))):
        at = starts[alive] + level
        pairs = np.stack([parents, hashes[at]], axis=1)
        _, name = np.unique(pairs, axis=0, return_inverse=True)
        nodes[at] = name.ravel() + used
        used += int(name.max(initial=-1)) + 1
        longer = counts[alive] > level + 1
        parents, alive = nodes[at][longer], alive[longer]
    return nodes


def _from_sessions(trace: Trace, block_tokens: int) -> PrefixBlocks:
    """A turn shorter than what came before it begins a line of its own: its history was cut."""
    held = pl.col("input_tokens") + pl.col("output_tokens")
    before = held.shift(1).over("session_id")
    cut = (pl.col("input_tokens") < before).fill_null(value=False)
    lines = trace.frame.with_row_index("row").select(
        line=pl.when(pl.col("session_id").is_null())
        .then(pl.struct(pl.lit(None, pl.String).alias("session_id"), pl.col("row")))
        .otherwise(
            pl.struct(
                pl.col("session_id"), cut.cum_sum().over("session_id").cast(pl.UInt32).alias("row")
            )
        )
    )["line"]
    line = lines.rank("dense").to_numpy().astype(np.int64)
    # The last token of an answer is never fed back by its own request.
    blocks = (trace.input_tokens + trace.output_tokens - 1) // block_tokens
    offsets = _offsets(blocks)
    request, place = _places(offsets)
    return PrefixBlocks(
        offsets,
        _ids(line[request], place),
        trace.input_tokens // block_tokens,
        block_tokens,
        "sessions",
    )


def _ids(owner: NDArray[np.int64], place: NDArray[np.int64]) -> NDArray[np.int64]:
    deepest = int(place.max(initial=0)) + 1
    ids: NDArray[np.int64] = owner * deepest + place
    return ids


def _offsets(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _places(offsets: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The request of each block, and its place in it."""
    request = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    return request, np.arange(offsets[-1]) - offsets[:-1][request]
