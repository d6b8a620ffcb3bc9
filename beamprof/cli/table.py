"""`beam table`: look at, question, join and convert perf-energy tables."""

from collections.abc import Callable, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from beamprof import console
from beamprof.cli.grouped import Examples
from beamprof.cli.streams import (
    check_source,
    files_of,
    load_table,
    named_as,
    one_from_stdin,
    one_on_stdout,
    readable,
)
from beamprof.files import check_writable, is_stdout, is_stream

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    cls=Examples,
    name="table",
    help="Inspect, look up, check, compare, merge, export and import perf-energy tables.",
    no_args_is_help=True,
)

TablePath = Annotated[
    Path, typer.Argument(metavar="TABLE", help="A perf-energy table (Parquet); -: stdin.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]


@app.command(short_help="What is in a table: coverage, best clocks, warnings.")
def inspect(table: TablePath, as_json: AsJson = False) -> None:
    """Show what is in a table: coverage, best clocks, frontier, warnings.

    For example:  beam table inspect tables/a100-sxm4-80gb/llama3-70b/tp2-pp4.parquet
    """
    from beamprof.plain import plain
    from beamprof.report.inspect_view import show_table
    from beamprof.tables.doubts import doubts
    from beamprof.tables.inspect import inspect_table

    known = load_table(table)
    view = inspect_table(known)
    data = {**plain(view), "drivable": view.check.drivable}
    console.emit(
        "table inspect",
        data,
        lambda out: show_table(view, str(table), out),
        as_json=as_json,
        warnings=doubts(known),
    )


@app.command()
def lookup(
    table: TablePath,
    prefill: Annotated[int, typer.Option(min=0, help="New tokens of the prefill chunk.")] = 0,
    prefill_context: Annotated[
        int, typer.Option(min=0, help="Tokens of that request already in the KV cache.")
    ] = 0,
    decode: Annotated[int, typer.Option(min=0, help="Requests that decode one token each.")] = 0,
    decode_context: Annotated[
        int | None, typer.Option(min=0, help="KV tokens of those requests together.")
    ] = None,
    clock: Annotated[
        int | None, typer.Option(min=1, help="One clock, MHz. [default: all measured ones]")
    ] = None,
    extrapolate: Annotated[
        bool, typer.Option("--extrapolate", help="Answer outside the table too, marked so.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """What one engine step costs, at one clock or at all.

    A chunk of 256 tokens, and 32 decodes of 1,250 tokens each, in one step:

    beam table lookup TABLE --prefill 256 --decode 32 --decode-context 40000
    """
    from beam_runtime.types import StepShape
    from beamprof.plain import plain
    from beamprof.report.table_views import show_lookup
    from beamprof.tables.asked_step import check_clock, check_step
    from beamprof.tables.doubts import doubts
    from beamprof.tables.lookup import lookup_step

    known = load_table(table)
    check_clock(known, clock)
    check_step(known, prefill, prefill_context, decode, decode_context)
    step = StepShape(prefill, prefill_context, decode, decode_context or 0)
    answer = lookup_step(known, step, clock_mhz=clock, extrapolate=extrapolate)
    console.emit(
        "table lookup",
        plain(answer),
        lambda out: show_lookup(answer, str(table), out),
        as_json=as_json,
        warnings=doubts(known),
    )


@app.command(short_help="Should this table drive a controller?")
def check(table: TablePath, as_json: AsJson = False) -> None:
    """Should this table drive a controller? Exit code 1 when it should not.

    For example:  beam table check TABLE && echo "good enough"
    """
    from beamprof.plain import plain
    from beamprof.report.table_views import show_check
    from beamprof.tables.check import check_table
    from beamprof.tables.doubts import doubts

    known = load_table(table)
    found = check_table(known)
    console.emit(
        "table check",
        {"drivable": found.drivable, **plain(found)},
        lambda out: show_check(found, str(table), out),
        as_json=as_json,
        status="ok" if found.drivable else "no",
        warnings=doubts(known),
    )
    if not found.drivable:
        raise typer.Exit(1)


@app.command(short_help="How far is one table off another, and where?")
def compare(
    a: Annotated[Path, typer.Argument(help="The table in question, e.g. a modelled one.")],
    b: Annotated[Path, typer.Argument(help="The reference, e.g. a measured one.")],
    force: Annotated[
        bool, typer.Option("--force", help="Compare tables of different models or layouts.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """How far table A is off table B: MAPE and bias, over all, by batch and by clock.

    For example:  beam table compare modelled.parquet measured.parquet
    """
    from beamprof.plain import plain
    from beamprof.report.table_views import show_comparison
    from beamprof.tables.compare import compare_tables

    one_from_stdin([a, b])
    found = compare_tables(load_table(a), load_table(b), force=force)
    data = {
        "a": str(a),
        "b": str(b),
        **plain(found.overall),
        **plain(found),
    }
    console.emit(
        "table compare",
        data,
        lambda out: show_comparison(found, str(a), str(b), out),
        as_json=as_json,
        warnings=list(found.differences),
    )


@app.command()
def merge(
    tables: Annotated[list[Path], typer.Argument(metavar="TABLE...", help="Two or more tables.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The table to write; -: stdout.")],
    prefer: Annotated[
        str | None,
        typer.Option(metavar="newest", help="Take a pass that several hold from the newest."),
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Join tables of one model, layout, device and source.

    For example:  beam table merge monday.parquet tuesday.parquet -o both.parquet
    """
    from beam_runtime.errors import TableError
    from beamprof.tables.merge import Prefer, merge_files

    if prefer is not None and prefer not in list(Prefer):
        raise TableError(f"--prefer knows {', '.join(Prefer)}, found {prefer!r}")
    one_on_stdout(output, as_json=as_json)
    check_writable(output, force=force, inputs=tables)
    named_as(output, "a table", ".parquet")
    twice = next((table for table in tables if tables.count(table) > 1), None)
    if twice is not None:
        raise TableError(f"{twice} is named twice", hint="name each table once")
    merged = merge_files(tables, output, prefer=Prefer(prefer) if prefer else None, force=force)
    data = {
        "output": str(output),
        "rows": len(merged.table),
        "replaced_rows": merged.replaced_rows,
        "clocks_mhz": list(merged.table.clocks_mhz),
        "notes": list(merged.notes),
    }
    lines = [
        f"Merged {len(tables)} tables: {len(merged.table):,} rows, {merged.replaced_rows:,} older "
        "ones replaced.",
    ]
    console.emit(
        "table merge",
        data,
        _written(lines, output, f"beam table check {quote(str(output))}"),
        as_json=as_json,
        warnings=merged.notes,
        stdout_taken=is_stdout(output),
    )


@app.command(short_help="Write a table for other tools: CSV, JSON lines.")
def export(
    table: TablePath,
    file_format: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="csv, jsonl or beam-artifact.")
    ] = "csv",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The file to write; -: stdout. [default: beside the table]"
        ),
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write a table for other tools: CSV, JSON lines, or the CSV form of the BEAM paper.

    For example:  beam table export TABLE -o - | head
    """
    from beamprof.plain import plain
    from beamprof.tables.export import SUFFIXES, export_table, output_beside

    one_on_stdout(output, as_json=as_json)
    if output is not None:
        check_writable(output, force=force, inputs=[table])
    if file_format in SUFFIXES:
        named_as(output, file_format, *SUFFIXES[file_format])
    loaded = load_table(table)
    beside = Path("stdin") if is_stream(table) else table
    target = output or output_beside(beside, loaded, file_format)
    check_writable(target, force=force, inputs=[table])
    written = export_table(loaded, target, file_format=file_format, force=force)
    left_out = [
        f"{count:,} {reason} left out: {file_format} has no place for them"
        for reason, count in written.left_out.items()
    ]
    lines = [f"Exported {written.rows:,} rows as {file_format}."]
    console.emit(
        "table export",
        plain(written),
        _written(lines, written.output_path),
        as_json=as_json,
        warnings=left_out,
        stdout_taken=is_stdout(output),
    )


@app.command("import", short_help="Read another tool's measurements as a table.")
def import_(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="The file or folder to read.")],
    file_format: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="beam-artifact: the paper's CSVs. aiconfigurator: a system's folder of operators. "
            "llmservingsim: a model's folder of operators.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The table to write; -: stdout. [default: FILE as .parquet]"
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Registry name or config directory, over the file's name.")
    ] = None,
    tp: Annotated[int | None, typer.Option(min=1, help="Tensor parallelism, likewise.")] = None,
    pp: Annotated[int | None, typer.Option(min=1, help="Pipeline stages, likewise.")] = None,
    device: Annotated[
        str | None, typer.Option(help="Device, likewise, e.g. a100-sxm4-80gb.")
    ] = None,
    origin: Annotated[str | None, typer.Option(help="Where the file comes from.")] = None,
    licence: Annotated[str | None, typer.Option(help="Its licence, e.g. Apache-2.0.")] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Read another tool's measurements as a perf-energy table, marked as imported.

    For example:  beam table import FILE.csv --format beam-artifact -o mine.parquet
    """
    from beam_runtime.table.schema import RowKind
    from beamprof.tables.importers import FOLDERS, ImportOverrides
    from beamprof.tables.importing import import_table

    one_on_stdout(output, as_json=as_json)
    folder = source.is_dir() and file_format in FOLDERS
    named = source.with_name(f"{source.resolve().name}.parquet") if folder else (
        Path("stdin.parquet") if is_stream(source) else source.with_suffix(".parquet")
    )  # fmt: skip
    target = output or named
    check_writable(target, force=force, inputs=files_of([source]))
    named_as(output, "a table", ".parquet")
    with readable(source) as file:
        if not folder:
            check_source(file)
        done = import_table(
            file,
            target,
            file_format=file_format,
            overrides=ImportOverrides(model, tp, pp, device, origin, licence),
            force=force,
        )
    table = done.table
    passes = len(table.rows(RowKind.FORWARD)["kind"])
    data = {
        "output": str(done.output_path),
        "rows": passes,
        "idle_rows": len(table) - passes,
        "dropped_rows": done.dropped_rows,
        "metadata": dict(table.metadata),
        "notes": list(done.notes),
    }
    lines = [
        f"Imported {passes:,} rows of {table.model} tp{table.tp} pp{table.pp} on "
        f"{table.device}; {done.dropped_rows:,} were marked as not valid and dropped.",
    ]
    following = f"beam table inspect {quote(str(done.output_path))}"
    for text in done.notes:
        console.note(text)
    console.emit(
        "table import",
        data,
        _written(lines, done.output_path, following),
        as_json=as_json,
        stdout_taken=is_stdout(output),
    )


def _written(lines: Sequence[str], path: Path, following: str = "") -> Callable[["Console"], None]:
    """What was done, the file that came of it, and the next command."""
    from beamprof.report.page import next_command, wrote

    def render(out: "Console") -> None:
        for line in lines:
            out.print(line, markup=False, soft_wrap=True)
        wrote(out, path)
        if following:
            next_command(out, following)

    return render
