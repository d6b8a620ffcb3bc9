"""A KV connector that makes vLLM believe: so many tokens of this request are cached already.

    SamplingParams(extra_args={"kv_transfer_params": {"beam_context_tokens": 2048}})

vLLM then allocates the blocks of those tokens and computes only what follows them, so that one
engine step can be any mix of decodes and a chunk, each over any context. The cache is filled
with random numbers once, on start: a GPU's power depends on the bits that it moves. What the
model says over such a cache means nothing.

vLLM imports this module by name (kv_connector_module_path), in its engine and in its workers;
vLLM's own DecodeBenchConnector does the like for whole prompts.
"""

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1 import base
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1

from beamprof.backends.vllm_cells import CONTEXT_KEY


class _Nothing(base.KVConnectorMetadata):  # type: ignore[misc]
    """What the scheduler has to tell the workers."""


# Without it vLLM 0.11.1 and newer refuse to combine a connector with several kinds of attention.
_HYBRID: tuple[type, ...] = tuple(filter(None, [getattr(base, "SupportsHMA", None)]))


class ContextConnector(KVConnectorBase_V1, *_HYBRID):  # type: ignore[misc]
    """Answers with the context that a request names; loads and saves nothing."""

    # In the scheduler

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """(tokens beyond those computed that count as cached, False: they are there at once)."""
        wanted = (request.kv_transfer_params or {}).get(CONTEXT_KEY, 0)
        # The last token is always computed, for its logits.
        context = min(int(wanted), request.num_tokens - 1)
        return max(0, context - num_computed_tokens), False

    def update_state_after_alloc(self, *_: Any, **__: Any) -> None:
        """The blocks are there, and what they hold does not matter."""

    def build_connector_meta(self, scheduler_output: Any) -> base.KVConnectorMetadata:
        """Nothing to tell."""
        del scheduler_output
        return _Nothing()

    def request_finished(self, *_: Any, **__: Any) -> tuple[bool, dict[str, Any] | None]:
        """Blocks may be freed at once."""
        return False, None

    request_finished_all_groups = request_finished

    # In the workers

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        """Fill them; packed or 8-bit caches stay as they are."""
        for cache in kv_caches.values():
            if getattr(cache, "is_floating_point", bool)() and cache.element_size() > 1:
                cache.normal_()

    def start_load_kv(self, *_: Any, **__: Any) -> None:
        """Nothing to load."""

    def wait_for_layer_load(self, *_: Any, **__: Any) -> None:
        """Nothing to wait for."""

    def save_kv_layer(self, *_: Any, **__: Any) -> None:
        """Nothing to save."""

    def wait_for_save(self) -> None:
        """Nothing to wait for."""
