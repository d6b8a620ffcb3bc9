"""Traces generated from ServeGen's pools: request_id, arrival_s, input_tokens, output_tokens.

Times run from the window's start and are kept. A manifest.json beside the file that names it
(by stem, with its SHA-256) states the window, hence the duration. Any CSV with these columns is
read, our own without its sidecar too; client_id, session_id and slo_class are kept.
"""

import json
from pathlib import Path

import polars as pl

from beamprof.traces.importers.base import ForeignRows, Importer, has, number, numbered, read_csv
from beamprof.traces.source_file import sha256_of

COLUMNS = ("arrival_s", "input_tokens", "output_tokens")
KEPT = ("client_id", "session_id", "slo_class")


def read(path: Path) -> ForeignRows:
    """The file's rows, and the manifest's duration where there is one for this very file."""
    text = read_csv(path, COLUMNS)
    frame = text.select(
        *(number(name).alias(name) for name in COLUMNS),
        *(pl.col(name) for name in KEPT if name in text.columns),
    )
    return ForeignRows(numbered(frame), duration_s=_stated_duration_s(path))


def _stated_duration_s(path: Path) -> float | None:
    manifest = path.with_name("manifest.json")
    try:
        entry = json.loads(manifest.read_text("utf-8"))[path.stem]
        start_s, end_s = (float(edge) for edge in entry["span_s"])
        same_file = entry["sha256"] == sha256_of(path)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no manifest, or one of something else: the last arrival decides
    return end_s - start_s if same_file else None


IMPORTER = Importer(
    name="servegen",
    title="generated ServeGen trace, or any CSV with our columns",
    columns="request_id, arrival_s, input_tokens, output_tokens, [client_id, ...]",
    licence="Apache-2.0 as published in ServeGen",
    recognises=has(*COLUMNS),
    read=read,
)
