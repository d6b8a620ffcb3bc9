"""Vidur's processed traces: arrived_at (s), num_prefill_tokens, num_decode_tokens.

Its length files (arxiv_summarization_*) have no arrivals: those must be drawn (--rate).
"""

from pathlib import Path

from beamprof.traces.importers.base import ForeignRows, Importer, has, number, numbered, read_csv

LENGTHS = ("num_prefill_tokens", "num_decode_tokens")


def read(path: Path) -> ForeignRows:
    """Times are kept as they are; without arrived_at the frame has no arrival_s."""
    text = read_csv(path, LENGTHS)
    lengths = {
        "input_tokens": number("num_prefill_tokens"),
        "output_tokens": number("num_decode_tokens"),
    }
    if "arrived_at" not in text.columns:
        return ForeignRows(numbered(text.select(**lengths)))
    return ForeignRows(numbered(text.select(arrival_s=number("arrived_at"), **lengths)))


IMPORTER = Importer(
    name="vidur",
    title="Vidur processed trace",
    columns="[arrived_at,] num_prefill_tokens, num_decode_tokens",
    licence="MIT as published in Vidur; splitwise_*: CC-BY-4.0 (Azure)",
    recognises=has(*LENGTHS),
    read=read,
)
