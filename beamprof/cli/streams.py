"""What commands read from standard input and write to standard output."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from beam_runtime.errors import BeamError
from beamprof.errors import ImportFormatError, OutputError
from beamprof.file_kind import PACKED, kind_of
from beamprof.files import STDIN, check_writable, is_stdout, is_stream, read_twice

_PAGES = (".html", ".svg", ".png")
# Names that promise a kind of file; others, such as .txt or none, promise nothing.
_KINDS = frozenset({
    ".parquet", ".csv", ".tsv", ".json", ".jsonl", ".xlsx", ".html", ".htm", ".svg", ".png", ".jpg",
    ".jpeg", ".gif", ".webp", ".pdf", ".toml", ".yaml", ".gz", ".zip",
})  # fmt: skip

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


def named_as(output: Path | None, what: str, *suffixes: str, how: str = "--output") -> None:
    """Refuse a name that says another kind of file than is written.

    Args:
        output: as it was named.
        what: is written there.
        suffixes: that such files have, the usual one first.
        how: what is typed before the name.

    Raises:
        OutputError: such as ``table.csv`` for a table, which is Parquet.
    """
    if output is None or output.suffix.lower() in suffixes:
        return
    if output.suffix.lower() in _KINDS and not is_stream(output):
        raise OutputError(
            f"{output} is named as another kind of file: {what} is {' or '.join(suffixes)}",
            hint=f"{how} {output.with_suffix(suffixes[0])}",
        )


def check_folder(output: Path | None, *, force: bool, inputs: Sequence[Path]) -> None:
    """Refuse a folder of results that would hold one of the inputs, or is none.

    Raises:
        OutputError: as files.check_writable; or a stream.
    """
    if output is None:
        return
    if is_stream(output):
        raise OutputError(
            f"a replay writes a folder of files: it cannot go to {output}",
            hint="name a folder: --output run; or --json for its numbers on standard output",
        )
    for source in inputs:
        if source.parent.resolve() == output.resolve() and force:
            check_writable(output / source.name, force=True, inputs=[source])


def files_of(inputs: Sequence[Path]) -> list[Path]:
    """Every file that is read where a folder is named; pages, which nobody reads, left out."""
    files: list[Path] = []
    for path in inputs:
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        files += [file for file in inside if file.suffix not in _PAGES]
    return files


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


def check_source(path: Path) -> None:
    """Refuse a file to import that is not there, or holds nothing.

    Raises:
        ImportFormatError: missing, empty or a directory.
    """
    kind = kind_of(path)
    if kind in ("", "empty", "a directory"):
        words = f"there is no file {path}" if not kind else f"{path} is {kind}"
        raise ImportFormatError(words, hint="check the path")


def load_table(
    path: Path,
    *,
    model: str | None = None,
    tp: int | None = None,
    pp: int | None = None,
    device: str | None = None,
) -> "PerfTable":
    """A table from a file, a pipe or standard input; model and device under any of their names.

    Raises as PerfTable.load, and DeviceError for a device that there is not.
    """
    from beam_runtime.errors import TableError
    from beam_runtime.table.perf_table import PerfTable

    with readable(path) as file:
        kind = kind_of(file)
        if kind and kind != "a Parquet file":
            hint = {
                "CSV": "measurements of other tools: beam table import FILE --format FORMAT",
                "empty": "copy it again, or make one: beam profile --model MODEL --output FILE",
                "a directory": f"name a table in it: {path}/NAME.parquet",
                **dict.fromkeys(PACKED, "unpack it first"),
            }.get(kind, "a table is a Parquet file that beam profile or beam table import wrote")
            raise TableError(f"{file} is no table: it is {kind}", hint=hint)
        if model is not None:
            from beamprof.models.registry import table_names

            own = PerfTable.load(file).model
            model = own if own in table_names(model) else model
        if device is not None:
            from beamprof.devices.device import resolve_device

            device = resolve_device(device).name
        return PerfTable.load(file, model=model, tp=tp, pp=pp, device=device)
