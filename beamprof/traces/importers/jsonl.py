"""JSON lines with our own names (see own_columns), and lengths without times under common ones."""

from beamprof.traces.importers.base import LENGTHS, Importer, has
from beamprof.traces.importers.own_columns import read_own

IMPORTER = Importer(
    name="jsonl",
    title="rows with our column names",
    columns="[arrival_s,] input_tokens, output_tokens, [client_id, session_id, prefix_hashes, ...]",
    licence="unknown",
    required=LENGTHS,
    recognises=has(*LENGTHS),
    read=read_own,
)
