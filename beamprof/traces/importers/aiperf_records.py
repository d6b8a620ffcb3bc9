"""aiperf's records (profile_export.jsonl): each request as it was served.

metadata.request_start_ns (Unix time), and metrics with their units: input_sequence_length,
output_sequence_length, time_to_first_token and request_latency. Warm-up, failed and cancelled
requests are dropped and counted.
"""

import polars as pl

from beamprof.errors import ImportFormatError
from beamprof.traces.importers.base import ForeignRows, Importer, Reading, has, held, numbered
from beamprof.traces.importers.clock import UNITS_S
from beamprof.traces.importers.sheet import Cells, Sheet

START, PHASE = "metadata.request_start_ns", "metadata.benchmark_phase"
CANCELLED, SESSION = "metadata.was_cancelled", "metadata.conversation_id"
PROMPT, OUTPUT = "metrics.input_sequence_length", "metrics.output_sequence_length"
TTFT, LATENCY = "metrics.time_to_first_token", "metrics.request_latency"


def read(sheet: Sheet, reading: Reading) -> ForeignRows:
    """The profiled requests, in order of arrival.

    Raises:
        ImportFormatError: a metric in a unit that is no time.
    """
    del reading  # its units are stated
    metrics = [f"{name}.{part}" for name in (PROMPT, OUTPUT, TTFT, LATENCY)
               for part in ("value", "unit")]  # fmt: skip
    cells = sheet.read((START, PHASE, CANCELLED, SESSION, "error", *metrics))
    arrival = cells.numbers(START) * UNITS_S["ns"]
    columns = {
        "arrival_s": arrival,
        "input_tokens": cells.numbers(f"{PROMPT}.value"),
        "output_tokens": cells.numbers(f"{OUTPUT}.value"),
        **held(cells, {"session_id": SESSION}),
    }
    ttft_s = _seconds(sheet, cells, TTFT)
    if ttft_s.null_count() < cells.height:
        columns["first_token_s"] = arrival + ttft_s
        columns["last_token_s"] = arrival + _seconds(sheet, cells, LATENCY)
    why = pl.Series([_dropped(*marks) for marks in zip(
        cells.values(PHASE), cells.values(CANCELLED), cells.values("error"), strict=True
    )], dtype=pl.String)  # fmt: skip
    frame = numbered(columns).filter(why.is_null()).sort("arrival_s", maintain_order=True)
    return ForeignRows(
        frame,
        from_first_request=True,
        dropped=dict(why.drop_nulls().value_counts(sort=True).iter_rows()),
    )


def _dropped(phase: object, cancelled: object, error: object) -> str | None:
    if error is not None:
        return "failed_requests"
    if cancelled is True:
        return "cancelled_requests"
    return "warm_up_requests" if str(phase).lower() == "warmup" else None


def _seconds(sheet: Sheet, cells: Cells, metric: str) -> pl.Series:
    units = set(cells.words(f"{metric}.unit").drop_nulls().to_list())
    if len(units) > 1 or not units <= set(UNITS_S):
        raise ImportFormatError(
            f"{sheet.path}: {metric} should be in one unit of time",
            cause=f"found {', '.join(sorted(units))}",
            hint=f"units here are {', '.join(UNITS_S)}",
        )
    return cells.numbers(f"{metric}.value") * UNITS_S[next(iter(units), "ms")]


IMPORTER = Importer(
    name="aiperf-records",
    title="aiperf records of served requests",
    columns="metadata, metrics, error",
    licence="unknown",
    required=("metadata", "metrics"),
    recognises=has("metadata", "metrics"),
    read=read,
)
