"""`beam table`: look at, question, join and convert perf-energy tables."""

from collections.abc import Callable, Sequence
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer
from rich.console import Console

from beamprof import console

app = typer.Typer(
    name="table",
    help="Inspect, look up, check, compare, merge, export and import perf-energy tables.",
    no_args_is_help=True,
)

TablePath = Annotated[Path, typer.Argument(metavar="TABLE", help="A perf-energy table (Parquet).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]


@app.command()
def inspect(table: TablePath, as_json: AsJson = False) -> None:
    """Show what is in a table: coverage, best clocks, frontier, doubts."""
    from beam_runtime.table.perf_table import PerfTable
    from beamprof.plain import plain
    from beamprof.report.inspect_view import show_table
    from beamprof.tables.inspect import inspect_table

    view = inspect_table(PerfTable.load(table))
    data = {**plain(view), "drivable": view.check.drivable}
    console.emit(
        "table inspect", data, lambda out: show_table(view, str(table), out), as_json=as_json
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
        int, typer.Option(min=0, help="KV tokens of those requests together.")
    ] = 0,
    clock: Annotated[
        int | None, typer.Option(min=1, help="One clock, MHz. [default: all measured ones]")
    ] = None,
    extrapolate: Annotated[
        bool, typer.Option("--extrapolate", help="Answer outside the table too, marked so.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """What one engine step costs, at one clock or at all."""
    from beam_runtime.table.perf_table import PerfTable
    from beam_runtime.types import StepShape
    from beamprof.plain import plain
    from beamprof.report.table_views import show_lookup
    from beamprof.tables.lookup import lookup_step

    step = StepShape(prefill, prefill_context, decode, decode_context)
    answer = lookup_step(PerfTable.load(table), step, clock_mhz=clock, extrapolate=extrapolate)
    console.emit(
        "table lookup",
        plain(answer),
        lambda out: show_lookup(answer, str(table), out),
        as_json=as_json,
    )


@app.command()
def check(table: TablePath, as_json: AsJson = False) -> None:
    """Should this table drive a controller? Exit code 1 when it should not."""
    from beam_runtime.table.perf_table import PerfTable
    from beamprof.plain import plain
    from beamprof.report.table_views import show_check
    from beamprof.tables.check import check_table

    found = check_table(PerfTable.load(table))
    console.emit(
        "table check",
        {"drivable": found.drivable, **plain(found)},
        lambda out: show_check(found, str(table), out),
        as_json=as_json,
        status="ok" if found.drivable else "no",
    )
    if not found.drivable:
        raise typer.Exit(1)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="The table in question, e.g. a modelled one.")],
    b: Annotated[Path, typer.Argument(help="The reference, e.g. a measured one.")],
    force: Annotated[
        bool, typer.Option("--force", help="Compare tables of different models or layouts.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """How far table A is off table B: MAPE and bias, over all, by batch and by clock."""
    from beam_runtime.table.perf_table import PerfTable
    from beamprof.plain import plain
    from beamprof.report.table_views import show_comparison
    from beamprof.tables.compare import compare_tables

    found = compare_tables(PerfTable.load(a), PerfTable.load(b), force=force)
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
    output: Annotated[Path, typer.Option("--output", "-o", help="The table to write.")],
    prefer: Annotated[
        str | None,
        typer.Option(metavar="newest", help="Take a pass that several hold from the newest."),
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Join tables of one model, layout, device and source."""
    from beam_runtime.errors import TableError
    from beamprof.tables.merge import Prefer, merge_files

    if prefer is not None and prefer not in list(Prefer):
        raise TableError(f"--prefer knows {', '.join(Prefer)}, found {prefer!r}")
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
        f"wrote {output}",
        "",
        f"next: beam table check {quote(str(output))}",
    ]
    console.emit("table merge", data, _lines(lines), as_json=as_json, warnings=list(merged.notes))


@app.command()
def export(
    table: TablePath,
    file_format: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="csv, jsonl or beam-artifact.")
    ] = "csv",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The file to write. [default: beside the table]"),
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write a table for other tools: CSV, JSON lines, or the CSV form of the BEAM paper."""
    from beam_runtime.table.perf_table import PerfTable
    from beamprof.plain import plain
    from beamprof.tables.export import export_table, output_beside

    loaded = PerfTable.load(table)
    target = output or output_beside(table, loaded, file_format)
    written = export_table(loaded, target, file_format=file_format, force=force)
    left_out = [
        f"{count:,} {reason} left out: {file_format} has no place for them"
        for reason, count in written.left_out.items()
    ]
    lines = [
        f"Exported {written.rows:,} rows as {file_format}.",
        f"wrote {written.output_path}",
    ]
    console.emit("table export", plain(written), _lines(lines), as_json=as_json, warnings=left_out)


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="The file to read.")],
    file_format: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="beam-artifact: the paper's CSVs. aiconfigurator: a system's folder of operators.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The table to write. [default: FILE as .parquet]"),
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
    """Read another tool's measurements as a perf-energy table, marked as imported."""
    from beamprof.tables.importers import ImportOverrides
    from beamprof.tables.importing import import_table

    done = import_table(
        source,
        output or source.with_suffix(".parquet"),
        file_format=file_format,
        overrides=ImportOverrides(model, tp, pp, device, origin, licence),
        force=force,
    )
    table = done.table
    data = {
        "output": str(done.output_path),
        "rows": len(table),
        "dropped_rows": done.dropped_rows,
        "metadata": dict(table.metadata),
        "notes": list(done.notes),
    }
    lines = [
        f"Imported {len(table):,} rows of {table.model} tp{table.tp} pp{table.pp} on "
        f"{table.device}; {done.dropped_rows:,} were marked as not valid and dropped.",
        f"wrote {done.output_path}",
        "",
        f"next: beam table inspect {quote(str(done.output_path))}",
    ]
    for text in done.notes:
        console.note(text)
    console.emit("table import", data, _lines(lines), as_json=as_json)


def _lines(lines: Sequence[str]) -> Callable[[Console], None]:
    """Plain lines; a long path is left whole, for it is there to be copied."""

    def render(out: Console) -> None:
        for line in lines:
            out.print(line, markup=False, soft_wrap=True)

    return render
