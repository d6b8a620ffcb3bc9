"""The simplest form: a prompt's length, an output's length, and perhaps a time."""

from collections.abc import Callable, Mapping

from beamprof.traces.importers.base import ForeignRows, Reading, held, numbered
from beamprof.traces.importers.clock import read_times
from beamprof.traces.importers.sheet import Sheet


def timed_lengths(
    prompt: str,
    output: str,
    times: Mapping[str, str | None],
    words: Mapping[str, str] | None = None,
    quiet: tuple[str, ...] = (),
) -> Callable[[Sheet, Reading], ForeignRows]:
    """A reader of such rows; without a time the frame has no arrival_s.

    Args:
        prompt: the column of prompt lengths.
        output: the column of output lengths.
        times: columns of times that there may be, each with the unit that it states; the first
            one that the file has is read.
        words: text columns that are kept: ours by theirs.
        quiet: columns that repeat what others say.
    """
    words = words or {}

    def read(sheet: Sheet, reading: Reading) -> ForeignRows:
        cells = sheet.read((prompt, output, *times, *words.values()))
        columns = {
            "input_tokens": cells.numbers(prompt),
            "output_tokens": cells.numbers(output),
            **held(cells, words),
        }
        time = next((name for name in times if name in cells.names), None)
        found = {}
        if time is not None and cells.holds(time):
            arrival = read_times(sheet, cells, time, reading, times[time])
            columns = {"arrival_s": arrival.seconds, **columns}
            found = {"time_unit": arrival.unit} if times[time] is None else {}
        used = (prompt, output, *times, *words.values(), *quiet)
        return ForeignRows(
            numbered(columns),
            found=found,
            unread=tuple(name for name in cells.names if name not in used),
        )

    return read
