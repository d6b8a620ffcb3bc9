"""`beam report`: one HTML page of a replay, a study or a controller's decision log."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from beam_runtime.errors import BeamError
from beamprof.cli.opened import check_openable, open_page
from beamprof.cli.streams import files_of, named_as, one_from_stdin, one_on_stdout, readable
from beamprof.cli.trace_output import window_s
from beamprof.console import emit
from beamprof.errors import ReportError
from beamprof.file_kind import PACKED, kind_of
from beamprof.files import STDIN, check_writable, is_stdout, is_stream

if TYPE_CHECKING:
    from rich.console import Console

    from beamprof.report.html_report import WrittenReport


_MADE_BY = "beam replay --output FOLDER and beam study"
_REPORTED = ("", "JSON", "a directory", "a Parquet file")  # "": whoever opens it says so
_LOGS = (".jsonl", ".json", ".log")  # whoever reads them says what is wrong with them


def command(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...", help="Folders of beam replay, studies, decision logs; -: stdin."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The page, or a picture of one replay (.svg, .png); -: stdout "
            "[default: beside PATH].",
        ),
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(
            "--window", metavar="FROM:TO",
            help="What timelines show, e.g. 10m:11m [default: the busiest stretch].",
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Show the page in a browser.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the output.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:  # fmt: skip
    """Write one HTML page with every figure; it loads nothing and can be mailed.

    After a replay:  beam replay --table T --trace X --output FOLDER && beam report FOLDER

    For a slide:  beam report FOLDER --output saving.png
    """
    from beamprof.plain import plain
    from beamprof.report.html_report import write_report

    one_on_stdout(output, as_json=as_json)
    check_openable(output, show=show)
    for path in paths:
        kind = "" if path.suffix in _LOGS or is_stream(path) else kind_of(path)
        if kind not in _REPORTED:
            raise ReportError(
                f"there is nothing to report on in {path}: it is {kind}",
                hint="unpack it first"
                if kind in PACKED
                else f"{_MADE_BY} write what a report is made of",
            )
    if output is not None:
        check_writable(output, force=force, inputs=files_of(paths))
        named_as(output, "a report", ".html", ".htm", ".svg", ".png")
    asked = None if window is None else window_s(window)
    one_from_stdin(paths)
    with ExitStack() as kept:
        files = [_file(path, kept) for path in paths]
        if output is None and files[0] != paths[0]:
            output = Path("standard-input.html")
        try:
            report = write_report(files, output, window=asked, force=force)
        except BeamError as error:  # it knows them by the names of their copies
            for file, path in zip(files, paths, strict=True):
                if file != path:
                    error.message = error.message.replace(str(file), _called(path))
            raise
    emit(
        "report",
        plain(report),
        lambda console: _show(report, console),
        as_json=as_json,
        stdout_taken=is_stdout(output),
    )
    if show:
        open_page(report.path)


def _called(path: Path) -> str:
    return "standard input" if path == STDIN else str(path)


def _file(path: Path, kept: ExitStack) -> Path:
    """A file to report on; what comes down a pipe is kept, under a name that says what it is."""
    if path != STDIN and not is_stream(path):
        return path
    copy = kept.enter_context(readable(path))
    if kind_of(copy) == "empty":
        raise ReportError(f"there is nothing to report on in {_called(path)}: it is empty",
                          hint=f"{_MADE_BY} write what a report is made of")  # fmt: skip
    return copy.rename(copy.with_suffix(".jsonl" if kind_of(copy) == "JSON" else ".parquet"))


def _show(report: "WrittenReport", console: "Console") -> None:
    from beamprof.report.page import sentence, wrote

    for told in report.inputs:
        sentence(console, told.sentence)
    wrote(console, report.path, f"({report.size_bytes / 1e3:,.0f} kB)")
