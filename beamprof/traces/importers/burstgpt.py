"""BurstGPT, 6 columns (BurstGPT_1, _2) or 8 (BurstGPT_3: Session ID, Elapsed time).

Times are seconds, often whole and repeated; the first request is time 0. A failed request has
0 response tokens: it is dropped and counted. API rows have no session.
"""

from pathlib import Path

import polars as pl

from beamprof.traces.importers.base import ForeignRows, Importer, has, number, numbered, read_csv

COLUMNS = ("Timestamp", "Request tokens", "Response tokens")


def read(path: Path) -> ForeignRows:
    """Both layouts."""
    text = read_csv(path, COLUMNS)
    session = {"session_id": pl.col("Session ID")} if "Session ID" in text.columns else {}
    frame = numbered(
        text.select(
            arrival_s=number("Timestamp") - number("Timestamp").fill_nan(None).min(),
            input_tokens=number("Request tokens"),
            output_tokens=number("Response tokens"),
            **session,
        )
    )
    failed = pl.col("output_tokens").eq(0).fill_null(value=False)
    kept = frame.filter(~failed)
    return ForeignRows(
        kept,
        from_first_request=True,
        dropped={"failed_requests": frame.height - kept.height},
    )


IMPORTER = Importer(
    name="burstgpt",
    title="BurstGPT, 6 or 8 columns",
    columns="Timestamp, [Session ID, Elapsed time,] Model, Request tokens, Response tokens, ...",
    licence="CC-BY-4.0 as published in BurstGPT",
    recognises=has(*COLUMNS),
    read=read,
)
