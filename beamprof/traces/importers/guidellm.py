"""guidellm's benchmark file (JSON): the requests of its one benchmark, as they were served.

Times are Unix seconds. Field names moved between its versions; each is looked for under all of
them. Requests that failed or were cut short are dropped and counted.
"""

from collections.abc import Mapping
from typing import Any

import polars as pl

from beamprof.errors import ImportFormatError
from beamprof.traces.importers.base import ForeignRows, Importer, Reading, has, numbered
from beamprof.traces.importers.sheet import Cells, Sheet, cells_of

ARRIVAL = (
    "request_start_time", "start_time", "info.timings.request_start",
    "scheduler_info.request_timings.request_start",
)  # fmt: skip
FIRST = (
    "first_token_time", "info.timings.first_token_iteration", "info.timings.first_iteration",
    "scheduler_info.request_timings.first_iteration",
)  # fmt: skip
LAST = (
    "last_token_time", "info.timings.last_token_iteration", "info.timings.last_iteration",
    "scheduler_info.request_timings.last_iteration", "end_time", "request_end_time",
)  # fmt: skip
PROMPT = ("prompt_tokens", "input_metrics.text_tokens", "input_metrics.total_tokens")
OUTPUT = ("output_tokens", "output_metrics.text_tokens", "output_metrics.total_tokens")


def read(sheet: Sheet, reading: Reading) -> ForeignRows:
    """The successful requests, in order of arrival.

    Raises:
        ImportFormatError: no requests in the file, or several benchmarks.
    """
    del reading  # its unit is stated
    requests = _requests(sheet)
    done = [entry for entry in requests.get("successful") or [] if isinstance(entry, Mapping)]
    dropped = {
        f"{kind}_requests": len(entries)
        for kind in ("incomplete", "errored")
        if isinstance(entries := requests.get(kind), list) and entries
    }
    names = (*ARRIVAL, *FIRST, *LAST, *PROMPT, *OUTPUT)
    cells = cells_of(((row, dict(entry)) for row, entry in enumerate(done)), names)
    first, last = _first_of(cells, FIRST), _first_of(cells, LAST)
    columns = {
        "arrival_s": _first_of(cells, ARRIVAL),
        "input_tokens": _first_of(cells, PROMPT),
        "output_tokens": _first_of(cells, OUTPUT),
    }
    if first.null_count() < cells.height:
        columns |= {"first_token_s": first, "last_token_s": last}
    frame = numbered(columns).sort("arrival_s", maintain_order=True)
    return ForeignRows(frame, from_first_request=True, dropped=dropped)


def _requests(sheet: Sheet) -> Mapping[str, Any]:
    benchmarks = sheet.read(("benchmarks",)).values("benchmarks")[0]
    if not isinstance(benchmarks, list) or not benchmarks:
        raise ImportFormatError(f"{sheet.path} holds no guidellm benchmark", cause="none is listed")
    if len(benchmarks) > 1:
        raise ImportFormatError(
            f"{sheet.path} holds {len(benchmarks)} guidellm benchmarks; a trace is one",
            hint="pick one: jq '{benchmarks: [.benchmarks[0]]}' FILE | beam trace import - -o T",
        )
    requests = benchmarks[0].get("requests") if isinstance(benchmarks[0], Mapping) else None
    if isinstance(requests, list):
        return {"successful": requests}
    if not isinstance(requests, Mapping):
        raise ImportFormatError(
            f"{sheet.path} holds no requests of its guidellm benchmark",
            hint="run guidellm with --output-path results.json, which keeps them",
        )
    return requests


def _first_of(cells: Cells, names: tuple[str, ...]) -> pl.Series:
    """Row by row the first of these that is a number."""
    frame = pl.DataFrame({name: cells.numbers(name) for name in names})
    return frame.select(pl.coalesce(names).alias(names[0])).to_series()


IMPORTER = Importer(
    name="guidellm",
    title="guidellm benchmark file",
    columns="benchmarks: [requests: successful: prompt_tokens, output_tokens, ...]",
    licence="unknown",
    required=("benchmarks",),
    recognises=has("benchmarks"),
    read=read,
)
