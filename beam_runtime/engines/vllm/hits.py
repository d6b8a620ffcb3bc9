"""How much of a waiting request vLLM's prefix cache holds, found without asking vLLM to look.

vLLM looks at every block of a prompt. Blocks are given away from the end of a prefix, so what
is cached of one is its beginning, and so is what somebody holds of that: both ends are found by
bisection, in a handful of looks. Requests that computed the same at the same time leave two
copies of a block, of which one may be held and the other not; then it may find less held.

It knows the cache of models whose layers all attend to everything. For others, and where a vLLM
keeps it differently, it finds nothing.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

_WHOLE_ATTENTION = ("FullAttentionSpec", "MLAAttentionSpec")
# The only KV-cache group; a list, as vLLM asks for one.
_GROUP = [0]
_NOTHING = (0, 0)


class PrefixHits:
    """Looks into one scheduler's prefix cache, and changes nothing in it.

    Args:
        scheduler: vLLM's.
    """

    def __init__(self, scheduler: Any) -> None:
        manager = getattr(scheduler, "kv_cache_manager", None)
        pool = getattr(manager, "block_pool", None)
        config = getattr(scheduler, "kv_cache_config", None)
        groups: Sequence[Any] = getattr(config, "kv_cache_groups", ())
        size = getattr(scheduler, "block_size", 0)
        known = (
            getattr(manager, "enable_caching", False)
            and len(groups) == 1
            and type(groups[0].kv_cache_spec).__name__ in _WHOLE_ATTENTION
            and groups[0].kv_cache_spec.block_size == size
            and getattr(scheduler, "hash_block_size", size) == size
        )
        self._block = getattr(pool, "get_cached_block", None) if known else None
        self._size = size

    def find(self, request: Any) -> tuple[int, int]:
        """(tokens that are cached, of these the ones in blocks that nobody holds)."""
        block = self._block
        if block is None or getattr(request, "skip_reading_prefix_cache", False):
            return _NOTHING
        hashes: Sequence[Any] = getattr(request, "block_hashes", ())
        # The last token is always computed, for its logits.
        most = min(len(hashes), (request.num_tokens - 1) // self._size)
        if most <= 0 or not block(hashes[0], _GROUP):
            return _NOTHING
        blocks = range(most)
        cached = bisect_left(blocks, True, 1, key=lambda at: not block(hashes[at], _GROUP))
        held = bisect_left(
            blocks, True, 0, cached, key=lambda at: block(hashes[at], _GROUP)[0].ref_cnt == 0
        )
        return cached * self._size, (cached - held) * self._size
