"""Logs of served requests: when each came, got its first token and its last.

Any row with two lengths, an arrival, a first and a last token, under the usual names: vLLM's
(arrival_time, first_token_ts, last_token_ts; input_toks, output_toks), those of its metrics
(first_token_time, finished_time; num_prompt_tokens, num_generation_tokens) and the like. vLLM
stamps arrivals with Unix time and tokens with a monotonic clock; a queued_ts of the latter joins
the two: nobody is queued before he came, so the largest difference of arrival less queued turns
one into the other.
"""

from collections.abc import Sequence

import polars as pl

from beamprof.errors import ImportFormatError
from beamprof.traces.importers.base import ForeignRows, Importer, Reading, held, numbered
from beamprof.traces.importers.clock import UNITS_S, epoch_unit, no_unit
from beamprof.traces.importers.sheet import Cells, Sheet
from beamprof.units import format_duration

PROMPTS = ("input_toks", "input_tokens", "num_prompt_tokens", "prompt_tokens", "input_length")
OUTPUTS = (
    "output_toks", "output_tokens", "num_generation_tokens", "generation_tokens",
    "completion_tokens", "output_length",
)  # fmt: skip
ARRIVALS = ("arrival_time", "arrival_ts", "arrived_at", "start_time")
QUEUED = ("queued_ts", "queued_time")
FIRSTS = ("first_token_ts", "first_token_time")
LASTS = ("last_token_ts", "last_token_time", "finished_time", "finished_ts")
_SUFFIXES = ("", "_s", "_ms", "_us", "_ns")
# Requests wait for the front end to queue them; whoever waits longer is on another clock.
_MOST_WAIT_S = 30.0


def read(sheet: Sheet, reading: Reading) -> ForeignRows:
    """Arrivals, first and last tokens on one clock, the first arrival as time 0.

    Raises:
        ImportFormatError: times without a unit, or on clocks that nothing joins.
    """
    prompt, output = _one(sheet.columns, PROMPTS), _one(sheet.columns, OUTPUTS)
    arrival, first, last = (_time(sheet.columns, names) for names in (ARRIVALS, FIRSTS, LASTS))
    queued = _time(sheet.columns, QUEUED)
    used = tuple(
        name for name in (prompt, output, arrival, queued, first, last, "session_id") if name
    )
    cells = sheet.read(used)
    unit = _unit(sheet, cells, (arrival, first, last), reading)
    seconds = {name: _seconds(cells, name, unit) for name in (arrival, first, last)}
    shift_s = 0.0
    if _absolute(cells, arrival) != _absolute(cells, first):
        if not queued:
            raise ImportFormatError(
                f"{sheet.path}: {arrival} and {first} are on two clocks, and nothing joins them",
                cause=f"{arrival} begins at {_least(seconds[arrival])}, {first} at "
                f"{_least(seconds[first])}",
                hint=f"keep vLLM's queued_ts, or write {arrival} with the clock of {first}",
            )
        shift_s = _shift_s(sheet, seconds[arrival], _seconds(cells, queued, unit), queued)
    columns = {
        "arrival_s": seconds[arrival],
        "input_tokens": cells.numbers(prompt),
        "output_tokens": cells.numbers(output),
        **held(cells, {"session_id": "session_id"}),
        "first_token_s": seconds[first] + shift_s,
        "last_token_s": seconds[last] + shift_s,
    }
    return ForeignRows(
        numbered(columns).sort("arrival_s", maintain_order=True),  # logs are often by last token
        from_first_request=True,
        found={"time_unit": unit, **({"clocks_joined_by": queued} if shift_s else {})},
        unread=tuple(name for name in cells.names if name not in (*used, "request_id")),
    )


def is_served_log(columns: tuple[str, ...]) -> bool:
    """Whether all five columns are there."""
    return bool(
        _one(columns, PROMPTS)
        and _one(columns, OUTPUTS)
        and all(_time(columns, names) for names in (ARRIVALS, FIRSTS, LASTS))
    )


def _one(columns: Sequence[str], names: Sequence[str]) -> str:
    return next((name for name in names if name in columns), "")


def _time(columns: Sequence[str], names: Sequence[str]) -> str:
    return _one(columns, [name + suffix for name in names for suffix in _SUFFIXES])


def _unit(sheet: Sheet, cells: Cells, times: tuple[str, ...], reading: Reading) -> str:
    """One unit for the log: as said, as in the names, or as the arrivals' size proves."""
    said = reading.time_unit or epoch_unit(cells.numbers(times[0]))
    named = [
        suffix[1:]
        for name in times
        for suffix in _SUFFIXES[1:]
        if name.endswith(suffix) and not name.endswith("_ts")
    ]
    if said is None and len(set(named)) == 1:
        said = named[0]
    if said is None:
        raise no_unit(sheet, times[0], cells.numbers(times[0]))
    return said


def _seconds(cells: Cells, name: str, unit: str) -> pl.Series:
    own = next(
        (s[1:] for s in _SUFFIXES[1:] if name.endswith(s) and not name.endswith("_ts")), unit
    )
    return cells.numbers(name) * UNITS_S[own]


def _absolute(cells: Cells, name: str) -> bool:
    return epoch_unit(cells.numbers(name)) is not None


def _shift_s(sheet: Sheet, arrival_s: pl.Series, queued_s: pl.Series, queued: str) -> float:
    apart_s = (arrival_s - queued_s).drop_nulls().drop_nans()
    largest, least = apart_s.max(), apart_s.min()
    if not isinstance(largest, float) or not isinstance(least, float):
        raise ImportFormatError(f"{sheet.path}: {queued} has no times", hint="see the file")
    if largest - least > _MOST_WAIT_S:
        raise ImportFormatError(
            f"{sheet.path}: its two clocks do not run together",
            cause=f"arrival less {queued} varies by {format_duration(largest - least)}",
            hint="was the clock set during the log, or do rows come from several machines?",
        )
    return largest


def _least(seconds: pl.Series) -> str:
    low = seconds.min()
    return f"{low:.0f} s" if isinstance(low, float) else "nothing"


IMPORTER = Importer(
    name="served-log",
    title="log of served requests (vLLM's and the like)",
    columns="arrival_time, first_token_ts, last_token_ts, input_toks, output_toks, [queued_ts]",
    licence="unknown",
    required=(),
    recognises=is_served_log,
    read=read,
)
