"""What commands read from standard input and write to standard output."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from beam_runtime.errors import BeamError
from beamprof.errors import OutputError
from beamprof.files import STDIN, is_stdout, read_twice

if TYPE_CHECKING:
    from beam_runtime.table.perf_table import PerfTable


def one_on_stdout(output: Path | None, *, as_json: bool) -> None:
    """Refuse two things on one stream.

    Raises:
        OutputError: ``-o -`` with --json.
    """
    if as_json and is_stdout(output):
        raise OutputError(
            "--json and -o - both write to standard output", hint="leave one of them out"
        )


def one_from_stdin(paths: Sequence[Path | None]) -> None:
    """Refuse to read standard input twice.

    Raises:
        BeamError: more than one input is ``-``.
    """
    if sum(path == STDIN for path in paths) > 1:
        raise BeamError(
            "standard input (-) can be read for one input only", hint="name a file for the others"
        )


@contextmanager
def readable(path: Path) -> Iterator[Path]:
    """A file to read ``path`` from; errors within call it what the user did."""
    with read_twice(path) as file:
        try:
            yield file
        except BeamError as error:
            if file != path:
                shown = "standard input" if path == STDIN else str(path)
                error.message = error.message.replace(str(file), shown)
            raise


def load_table(
    path: Path, *, model: str | None = None, tp: int | None = None, pp: int | None = None
) -> "PerfTable":
    """A table from a file, a pipe or standard input. Raises as PerfTable.load."""
    from beam_runtime.table.perf_table import PerfTable

    with readable(path) as file:
        return PerfTable.load(file, model=model, tp=tp, pp=pp)
