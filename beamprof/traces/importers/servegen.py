"""Traces generated from ServeGen's pools: request_id, arrival_s, input_tokens, output_tokens.

Times run from the window's start and are kept. A manifest.json beside the file that names it
(by stem, with its SHA-256) states the window, hence the duration.
"""

import dataclasses
import json

from beamprof.traces.importers.base import LENGTHS, ForeignRows, Importer, Reading
from beamprof.traces.importers.own_columns import ARRIVAL, read_own
from beamprof.traces.importers.sheet import Sheet
from beamprof.traces.source_file import sha256_of

COLUMNS = ("request_id", ARRIVAL, *LENGTHS, "client_id")


def read(sheet: Sheet, reading: Reading) -> ForeignRows:
    """The file's rows, and the manifest's duration where there is one for this very file."""
    rows = read_own(sheet, reading)
    return dataclasses.replace(rows, duration_s=_stated_duration_s(sheet) or rows.duration_s)


def _stated_duration_s(sheet: Sheet) -> float | None:
    manifest = sheet.path.with_name("manifest.json")
    try:
        entry = json.loads(manifest.read_text("utf-8"))[sheet.path.stem]
        start_s, end_s = (float(edge) for edge in entry["span_s"])
        same_file = entry["sha256"] == sha256_of(sheet.path)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None  # no manifest, or one of something else: the last arrival decides
    return end_s - start_s if same_file else None


IMPORTER = Importer(
    name="servegen",
    title="generated ServeGen trace",
    columns="request_id, arrival_s, input_tokens, output_tokens, client_id",
    licence="Apache-2.0 if it is drawn from a pool published in ServeGen",
    required=(ARRIVAL, *LENGTHS),
    recognises=lambda columns: columns == COLUMNS,
    read=read,
)
