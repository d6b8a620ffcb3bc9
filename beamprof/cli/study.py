"""`beam study`: a grid of replays, in parallel, resumable, into one file."""

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from beamprof.cli.promised import SloClass
from beamprof.cli.streams import named_as
from beamprof.cli.variables import note_mistyped
from beamprof.errors import OutputError
from beamprof.files import STDIN, check_writable, is_stream
from beamprof.replay.assumptions import Assumptions

if TYPE_CHECKING:
    from beamprof.cli.bar import Bar
    from beamprof.replay.study import StudyResult
    from beamprof.replay.study_cells import Failure
    from beamprof.replay.study_spec import StudySpec

GROUPS = {
    "The grid": ("tables", "traces", "slos", "slo_class", "policies", "noises", "seeds"),
    "Every cell": (
        "assume",
        "host_gap",
        "front_end",
        "idle_power",
        "kv_blocks",
        "max_model_len",
        "over_limit",
        "concurrency",
    ),
    "How and where to": ("output", "workers", "on", "force", "as_json", "dry_run", "example"),
}


def command(
    file: Annotated[
        Path | None, typer.Argument(help="A study's TOML file; flags go before its values.")
    ] = None,
    tables: Annotated[
        list[str] | None, typer.Option("--tables", "--table", "-t", help="Files, with commas.")
    ] = None,
    traces: Annotated[
        list[str] | None, typer.Option("--traces", "--trace", help="Files, with commas.")
    ] = None,
    slos: Annotated[
        str | None, typer.Option("--slos", "--slo", help="TTFT/TBT, ... [default: 1s/200ms].")
    ] = None,
    slo_class: SloClass = None,
    policies: Annotated[
        str | None, typer.Option("--policies", "--policy", help="Names as in beam replay.")
    ] = None,
    noises: Annotated[
        str | None, typer.Option("--noises", "--noise", help="Deviations of a step's time, shares.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", "--seed", help="Of the noise: a,b,c or lo:hi:step.")
    ] = None,
    assume: Annotated[
        Assumptions | None,
        typer.Option("--assume", help="Where other options say nothing [default: validated]."),
    ] = None,
    host_gap: Annotated[
        str | None, typer.Option("--host-gap", help="Time per stage and step no pass covers.")
    ] = None,
    front_end: Annotated[
        str | None, typer.Option("--front-end", help="From sending to the engine's queue.")
    ] = None,
    idle_power: Annotated[
        str | None, typer.Option("--idle-power", help="Of a waiting GPU, e.g. 45W.")
    ] = None,
    kv_blocks: Annotated[
        int | None,
        typer.Option(
            "--kv-blocks", help="KV-cache blocks of 16 tokens; default: what the weights leave."
        ),
    ] = None,
    max_model_len: Annotated[
        int | None, typer.Option("--max-model-len", help="Most input + output tokens.")
    ] = None,
    over_limit: Annotated[
        str | None, typer.Option("--over-limit", help="Longer requests: error, drop or truncate.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", help="Closed loop: requests in flight.", min=1)
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file.")] = Path(
        "study.parquet"
    ),
    workers: Annotated[
        int | None,
        typer.Option("--workers", "-j", min=1, help="Cells at a time [default: all CPUs]."),
    ] = None,
    on: Annotated[str, typer.Option("--on", help="local or ray.")] = "local",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print cells and minutes; play nothing.")
    ] = False,
    example: Annotated[
        bool, typer.Option("--example", help="Print a commented study file.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the output.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Play a grid of tables, traces, SLOs and policies; one row for each cell.

    Finished cells lie beside the output and are never played again: run the same command to go
    on after any interrupt, or a larger grid to add to it.

    For example:  beam study -t TABLE --traces a.csv,b.csv --slos 1s/200ms,500ms/100ms
    """
    from beamprof.cli.first_compile import say_if_first
    from beamprof.replay.study_spec import resolve_study, study_template

    if example:
        _show_example(study_template(), as_json=as_json)
        return
    flags = {
        "tables": tables or None,
        "traces": traces or None,
        "slos": slos,
        "slo_class": slo_class or None,
        "policies": policies,
        "noises": noises,
        "seeds": seeds,
        "assume": assume,
        "host_gap": host_gap,
        "front_end": front_end,
        "idle_power": idle_power,
        "kv_blocks": kv_blocks,
        "max_model_len": max_model_len,
        "over_limit": over_limit,
        "concurrency": concurrency,
    }
    spec = resolve_study(flags, environment=os.environ, file=file)
    note_mistyped(os.environ)
    _check_output(spec, output, file, force=force or dry_run)
    named_as(output, "a study", ".parquet")
    say_if_first("beamprof.replay")
    if dry_run:
        _show_plan(spec, output, workers, as_json=as_json)
    else:
        _run(spec, output, on, workers, force=force, as_json=as_json)


def _show_example(text: str, *, as_json: bool) -> None:
    from beamprof.console import emit

    def render(console: object) -> None:
        del console  # it is there to be sent into a file: neither broken into lines nor coloured
        typer.echo(text, nl=False)

    emit("study --example", {"toml": text}, render, as_json=as_json)


def _check_output(spec: "StudySpec", output: Path, file: Path | None, *, force: bool) -> None:
    if is_stream(output):
        raise OutputError(
            f"a study keeps finished cells beside its output: it cannot go to {output}",
            hint="name a file: --output study.parquet",
        )
    named = [Path(name) for name in (*spec.tables, *spec.traces)]
    if STDIN in named:
        raise OutputError(
            "a study reads its tables and traces again in every cell: standard input cannot be",
            hint="name files",
        )
    check_writable(output, force=force, inputs=[*named, *([file] if file else [])])


def _show_plan(spec: "StudySpec", output: Path, workers: int | None, *, as_json: bool) -> None:
    from beamprof.console import emit, note
    from beamprof.plain import plain
    from beamprof.replay.study import plan_study
    from beamprof.report.study_views import show_plan

    plan = plan_study(spec, output, workers=workers)
    for text in plan.notes:
        note(text)
    emit(
        "study --dry-run",
        plain(plan),
        lambda console: show_plan(plan, console),
        as_json=as_json,
    )


def _run(
    spec: "StudySpec", output: Path, on: str, workers: int | None, *, force: bool, as_json: bool
) -> None:
    from beamprof.cli.bar import Bar
    from beamprof.console import emit, note
    from beamprof.errors import SweepError
    from beamprof.interrupt import Interrupted, stop_on_signals
    from beamprof.replay.study import study
    from beamprof.replay.study_places import On
    from beamprof.report.study_views import failure_lines, show_study

    if on not in tuple(On):
        raise SweepError(f"--on: expected {' or '.join(On)}, found {on!r}")
    try:
        with stop_on_signals() as stop, Bar("cells") as bar:
            result = study(
                spec,
                output,
                force=force,
                on=On(on),
                workers=workers,
                watcher=_Progress(bar),
                stop=stop,
            )
    except KeyboardInterrupt:
        raise Interrupted(
            f"finished cells are beside {output}; run the same command again to go on"
        ) from None
    for text in result.notes:
        note(text)
    status = "incomplete" if result.failures or result.remaining else "ok"
    if result.stopped_by and result.remaining:
        status = "interrupted"
    emit(
        "study",
        _data(result),
        lambda console: show_study(result, console),
        as_json=as_json,
        status=status,
        warnings=[*failure_lines(result.failures), *_doubts(spec)],
    )
    if status != "ok":
        raise typer.Exit(130 if status == "interrupted" else 1)


def _doubts(spec: "StudySpec") -> list[str]:
    """Of the tables, each line once; a table that cannot be read is among the failures."""
    from beam_runtime.errors import BeamError
    from beamprof.cli.streams import load_table
    from beamprof.tables.doubts import doubts

    found: list[str] = []
    for name in spec.tables:
        with suppress(BeamError):
            found += doubts(load_table(Path(name)))
    return list(dict.fromkeys(found))


def _data(result: "StudyResult") -> dict[str, Any]:
    from beamprof.plain import plain

    data: dict[str, Any] = plain(
        {
            "output": result.output,
            "folder": result.folder,
            "cells": result.cells,
            "played": result.played,
            "kept": result.kept,
            "remaining": result.remaining,
            "failures": result.failures,
            "stopped_by": result.stopped_by,
            "duration_s": result.duration_s,
            "notes": result.notes,
            "rows": result.frame.to_dicts(),
        }
    )
    return data


class _Progress:
    """A study's Watcher for people."""

    def __init__(self, bar: "Bar") -> None:
        self._bar = bar

    def begin(self, done: int, total: int) -> None:
        if done:
            self._bar.note(f"going on: {done} of {total} cells are done")
        self._bar.begin("study", done, total)

    def finished(self, cell: str, failure: "Failure | None") -> None:
        self._bar.now(cell)
        self._bar.advance(f"{cell}: failed" if failure else cell)
