"""Vidur's processed traces: arrived_at (s), num_prefill_tokens, num_decode_tokens.

Its length files (arxiv_summarization_*) have no arrivals: those must be drawn (--rate).
"""

from beamprof.traces.importers.base import Importer, has
from beamprof.traces.importers.timed_lengths import timed_lengths

IMPORTER = Importer(
    name="vidur",
    title="Vidur processed trace",
    columns="[arrived_at,] num_prefill_tokens, num_decode_tokens",
    licence="MIT as published in Vidur; splitwise_*: CC-BY-4.0 (Azure)",
    required=("num_prefill_tokens", "num_decode_tokens"),
    recognises=has("num_prefill_tokens", "num_decode_tokens"),
    read=timed_lengths("num_prefill_tokens", "num_decode_tokens", {"arrived_at": "s"}),
)
