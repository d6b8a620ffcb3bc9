"""Lengths only, under guidellm's names: prompt_tokens_count, output_tokens_count."""

from beamprof.traces.importers.base import Importer, has
from beamprof.traces.importers.timed_lengths import timed_lengths

PROMPT, OUTPUT = "prompt_tokens_count", "output_tokens_count"

IMPORTER = Importer(
    name="token-counts",
    title="guidellm's prompt and output lengths",
    columns=f"[timestamp,] {PROMPT}, {OUTPUT}",
    licence="unknown",
    required=(PROMPT, OUTPUT),
    recognises=has(PROMPT, OUTPUT),
    read=timed_lengths(PROMPT, OUTPUT, {"timestamp": None}),
)
