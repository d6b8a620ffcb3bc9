"""BurstGPT, 6 columns (BurstGPT_1, _2) or 8 (BurstGPT_3: Session ID, Elapsed time).

Times are seconds, often whole and repeated; the first request is time 0. A failed request has
0 response tokens: it is dropped and counted. API rows have no session.
"""

import polars as pl

from beamprof.traces.importers.base import ForeignRows, Importer, Reading, has, held, numbered
from beamprof.traces.importers.clock import read_times
from beamprof.traces.importers.sheet import Sheet

COLUMNS = ("Timestamp", "Request tokens", "Response tokens")
SESSION = "Session ID"


def read(sheet: Sheet, reading: Reading) -> ForeignRows:
    """Both layouts."""
    cells = sheet.read((*COLUMNS, SESSION))
    frame = numbered(
        {
            "arrival_s": read_times(sheet, cells, "Timestamp", reading, unit="s").seconds,
            "input_tokens": cells.numbers("Request tokens"),
            "output_tokens": cells.numbers("Response tokens"),
            **held(cells, {"session_id": SESSION}),
        }
    )
    kept = frame.filter(~pl.col("output_tokens").eq(0).fill_null(value=False))
    # Elapsed time, where there is one, is the service's own and holds more than serving.
    return ForeignRows(
        kept,
        from_first_request=True,
        dropped={"failed_requests": frame.height - kept.height},
        unread=tuple(name for name in cells.names if name not in (*COLUMNS, SESSION)),
    )


IMPORTER = Importer(
    name="burstgpt",
    title="BurstGPT, 6 or 8 columns",
    columns="Timestamp, [Session ID, Elapsed time,] Model, Request tokens, Response tokens, ...",
    licence="CC-BY-4.0 as published in BurstGPT",
    required=COLUMNS,
    recognises=has(*COLUMNS),
    read=read,
)
