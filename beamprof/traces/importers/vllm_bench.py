"""vLLM's serving benchmark (vllm bench serve --save-detailed): one JSON object of lists.

input_lens, output_lens, ttfts and itls (seconds), errors; start_times (seconds of one clock) in
newer versions, without them the file holds lengths only. Failed requests are dropped and counted.
"""

from typing import Any

import polars as pl

from beamprof.errors import ImportFormatError
from beamprof.traces.importers.base import ForeignRows, Importer, Reading, has, numbered
from beamprof.traces.importers.sheet import Sheet, cells_of

COLUMNS = ("input_lens", "output_lens")
OTHERS = ("ttfts", "itls", "errors", "start_times")


def read(sheet: Sheet, reading: Reading) -> ForeignRows:
    """One request for each place in the lists, in order of arrival.

    Raises:
        ImportFormatError: lists that are none, or of unequal lengths.
    """
    del reading  # its unit is stated
    lists = _lists(sheet)
    rows = [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]
    cells = cells_of(enumerate(rows), tuple(lists))
    columns = {
        "input_tokens": cells.numbers("input_lens"),
        "output_tokens": cells.numbers("output_lens"),
    }
    if "start_times" in lists:
        arrival = cells.numbers("start_times")
        columns["arrival_s"] = arrival
        if {"ttfts", "itls"} <= set(lists):
            columns["first_token_s"] = arrival + cells.numbers("ttfts")
            columns["last_token_s"] = columns["first_token_s"] + _sums(cells.values("itls"))
    failed = pl.Series([bool(error) for error in cells.values("errors")], dtype=pl.Boolean)
    failed = failed | (columns["output_tokens"] == 0).fill_null(value=False)
    frame = numbered(columns).filter(~failed)
    if "arrival_s" in columns:
        frame = frame.sort("arrival_s", maintain_order=True)
    return ForeignRows(
        frame,
        from_first_request=True,
        dropped={"failed_requests": int(failed.sum())} if failed.any() else {},
    )


def _lists(sheet: Sheet) -> dict[str, list[Any]]:
    """The lists that the file has, all of one length."""
    cells = sheet.read((*COLUMNS, *OTHERS))
    lists: dict[str, list[Any]] = {}
    for name in (*COLUMNS, *OTHERS):
        value = cells.values(name)[0]
        if value is None or (value == [] and name in OTHERS):
            continue
        if not isinstance(value, list):
            raise ImportFormatError(
                f"{sheet.path}: {name} should be a list", cause=f"found {ascii(value)[:60]}"
            )
        lists[name] = value
    sizes = {name: len(values) for name, values in lists.items()}
    if len(set(sizes.values())) != 1 or set(COLUMNS) - set(lists):
        raise ImportFormatError(
            f"{sheet.path}: its lists should be there and have one length",
            cause="found " + ", ".join(f"{name} of {size}" for name, size in sizes.items()),
            hint="was the benchmark run with --save-detailed?",
        )
    return lists


def _sums(gaps: list[Any]) -> pl.Series:
    """All gaps between two tokens of each request together, null where they are no numbers."""

    def total(values: Any) -> float | None:
        try:
            return float(sum(values))
        except (TypeError, ValueError, OverflowError):
            return None

    return pl.Series([total(values) for values in gaps], dtype=pl.Float64)


IMPORTER = Importer(
    name="vllm-bench",
    title="result of vllm bench serve --save-detailed",
    columns="input_lens, output_lens, [start_times, ttfts, itls, errors]",
    licence="unknown",
    required=COLUMNS,
    recognises=has(*COLUMNS),
    read=read,
)
