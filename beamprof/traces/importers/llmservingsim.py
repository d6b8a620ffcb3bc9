"""LLMServingSim's requests: input_toks, output_toks, arrival_time_ns; TSV, CSV or JSON lines.

Token ids (input_tok_ids), where the file holds them, are left out and named.
"""

from beamprof.traces.importers.base import Importer, has
from beamprof.traces.importers.timed_lengths import timed_lengths

IMPORTER = Importer(
    name="llmservingsim",
    title="LLMServingSim requests",
    columns="[arrival_time_ns,] input_toks, output_toks",
    licence="MIT if it is one of those published in LLMServingSim",
    required=("input_toks", "output_toks"),
    recognises=has("input_toks", "output_toks"),
    read=timed_lengths(
        "input_toks",
        "output_toks",
        {"arrival_time_ns": "ns", "arrival_time": None, "arrival_ts": None},
        {"session_id": "session_id"},
        ("request_id",),
    ),
)
