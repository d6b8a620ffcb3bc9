"""Logs of an OpenAI-style API: the tokens that each response says it used, and a time.

prompt_tokens and completion_tokens as columns of their own (proxies such as LiteLLM), in usage
(responses as they came; Anthropic's say input_tokens and output_tokens there), or in
response.body.usage (results of a batch). OpenAI's created is whole Unix seconds; the arrival is
taken to be then.
"""

from beamprof.errors import ImportFormatError
from beamprof.traces.importers.base import ForeignRows, Importer, Reading, held, numbered
from beamprof.traces.importers.clock import read_times
from beamprof.traces.importers.own_columns import ARRIVALS
from beamprof.traces.importers.sheet import Sheet

_PLACES = ("", "usage.", "response.usage.", "response.body.usage.")
COUNTS = tuple(
    (f"{place}{prompt}", f"{place}{output}")
    for place in _PLACES
    for prompt, output in (
        ("prompt_tokens", "completion_tokens"),
        ("input_tokens", "output_tokens"),
    )
    if place or prompt == "prompt_tokens"  # input_tokens of their own are ours
)
TIMES = {**ARRIVALS, "response.created": None, "response.body.created": None}
SESSION = "session_id"


def read(sheet: Sheet, reading: Reading) -> ForeignRows:
    """One request for each row.

    Raises:
        ImportFormatError: no row says how many tokens it used.
    """
    cells = sheet.read((*(name for pair in COUNTS for name in pair), *TIMES, SESSION))
    pair = next((pair for pair in COUNTS if all(cells.holds(name) for name in pair)), None)
    if pair is None:
        raise ImportFormatError(
            f"{sheet.path} does not say how many tokens its requests used",
            cause=f"looked for {', '.join(' and '.join(pair) for pair in COUNTS[:3])}",
            hint="a stream tells them where stream_options has include_usage",
        )
    columns = {
        "input_tokens": cells.numbers(pair[0]),
        "output_tokens": cells.numbers(pair[1]),
        **held(cells, {SESSION: SESSION}),
    }
    time = next((name for name in TIMES if cells.holds(name)), None)
    found = {}
    if time is not None:
        arrival = read_times(sheet, cells, time, reading, unit=TIMES[time])
        columns = {"arrival_s": arrival.seconds, **columns}
        found = {} if TIMES[time] else {"time_unit": arrival.unit}
    used = {*pair, time, SESSION, "id", "object"}
    return ForeignRows(
        numbered(columns),
        from_first_request=True,
        found=found,
        unread=tuple(name for name in cells.names if name not in used),
    )


def is_usage_log(columns: tuple[str, ...]) -> bool:
    """Whether rows hold counts of tokens as an OpenAI-style API tells them."""
    named = set(columns)
    return (
        {"prompt_tokens", "completion_tokens"} <= named
        or "usage" in named
        or {"custom_id", "response"} <= named
    )


IMPORTER = Importer(
    name="usage-log",
    title="log of an OpenAI-style API",
    columns="[created or timestamp or startTime,] prompt_tokens, completion_tokens; or in usage",
    licence="unknown",
    required=(),
    recognises=is_usage_log,
    read=read,
)
