"""`beam report`: one HTML page of a replay, a study or a controller's decision log."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from beamprof.cli.streams import one_on_stdout
from beamprof.cli.trace_output import window_s
from beamprof.console import emit
from beamprof.errors import ReportError
from beamprof.file_kind import kind_of
from beamprof.files import check_writable, is_stdout

if TYPE_CHECKING:
    from rich.console import Console

    from beamprof.report.html_report import WrittenReport


def command(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...", help="Folders of beam replay, a study, decision logs (.jsonl)."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The page; -: stdout [default: beside PATH]."),
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(
            "--window", metavar="FROM:TO",
            help="What timelines show, e.g. 10m:11m [default: the busiest stretch].",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the output.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:  # fmt: skip
    """Write one HTML page with every figure; it loads nothing and can be mailed.

    After a replay:  beam replay --table T --trace X --output FOLDER && beam report FOLDER
    """
    from beamprof.plain import plain
    from beamprof.report.html_report import write_report

    one_on_stdout(output, as_json=as_json)
    for path in paths:
        if kind_of(path) in ("empty", "CSV", "a picture", "a PDF", "some binary file"):
            raise ReportError(
                f"there is nothing to report on in {path}: it is {kind_of(path)}",
                hint="beam replay --output FOLDER and beam study write what a report is made of",
            )
    if output is not None:
        check_writable(output, force=force, inputs=paths)
    report = write_report(
        paths, output, window=None if window is None else window_s(window), force=force
    )
    emit(
        "report",
        plain(report),
        lambda console: _show(report, console),
        as_json=as_json,
        stdout_taken=is_stdout(output),
    )


def _show(report: "WrittenReport", console: "Console") -> None:
    from rich.text import Text

    from beamprof.report.page import sentence

    for told in report.inputs:
        sentence(console, told.sentence)
    size = f"({report.size_bytes / 1e3:,.0f} kB)"
    line = Text("wrote ", "dim").append(str(report.path), "not dim").append(f" {size}", "dim")
    console.print(line, soft_wrap=True)
