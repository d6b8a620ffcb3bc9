"""`beam profile`: measure or model one stage and write its table."""

import dataclasses
import os
import shutil
import tempfile
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from beamprof.cli.streams import named_as, one_on_stdout
from beamprof.cli.variables import note_mistyped
from beamprof.files import is_stdout, is_stream, written_whole

if TYPE_CHECKING:
    from rich.console import Console

    from beam_runtime.table.perf_table import PerfTable
    from beamprof.profiler.dry_run import DryRun
    from beamprof.profiler.profile import ProfileRequest, ProfileResult


GROUPS = {
    "What to profile": (
        "model",
        "tp",
        "pp",
        "ep",
        "dp",
        "dtype",
        "kv_cache_dtype",
        "device",
        "backend",
    ),
    "How": ("sweep", "clocks", "budget", "max_tokens", "seed", "assume_power"),
    "What comes of it": ("output", "force", "fresh", "dry_run", "as_json"),
}


def command(
    model: Annotated[
        str | None,
        typer.Option(help="Registry name such as llama3-70b, or a directory with config.json."),
    ] = None,
    tp: Annotated[
        int | None, typer.Option(help="Tensor-parallel GPUs of a stage [default: 1].")
    ] = None,
    pp: Annotated[int | None, typer.Option(help="Pipeline stages [default: 1].")] = None,
    ep: Annotated[
        int | None, typer.Option(help="GPUs that share a layer's experts whole [default: 1].")
    ] = None,
    dp: Annotated[
        int | None, typer.Option(help="Data-parallel groups that share them [default: 1].")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of what is not quantised [default: as engines choose].")
    ] = None,
    kv_cache_dtype: Annotated[
        str | None, typer.Option(help="Of the KV cache: auto, bfloat16, fp8 [default: auto].")
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            help="modelled, torch or vllm [default: vllm or torch where a GPU is found and it is "
            "installed, else modelled]."
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Device file [default: the GPU here, else a100-sxm4-80gb].")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The table; -: stdout [default: MODEL-tpT-ppP-DEVICE.parquet, here].",
        ),
    ] = None,
    sweep: Annotated[
        str | None, typer.Option(help="A shipped sweep or a TOML file; see beam sweep show.")
    ] = None,
    clocks: Annotated[
        str | None,
        typer.Option(
            help="MHz: 510:1410:120, a list a,b,c, auto, all, or current (touch no clock)."
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Time for the sweep, such as 10m; coarser where it must [default: 15m]."),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Largest step in new tokens [default: 1024].")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Order in which cells are measured [default: 0].")
    ] = None,
    assume_power: Annotated[
        str | None,
        typer.Option(help="Power to record where no energy counter can be read, such as 65W."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print cells, minutes and kWh; measure nothing.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Forget the journal of an interrupted run.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing table.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Profile one pipeline stage of a model into a perf-energy table.

    Without a GPU the numbers are modelled from a device file, and say so. An interrupted sweep
    goes on where it stopped when the same command is run again.

    What it would take:  beam profile --model llama3-70b --tp 2 --pp 4 --dry-run
    """
    from beamprof.profiler.profile import ProfileRequest
    from beamprof.profiler.spec import resolve_spec

    flags = {
        "model": model,
        "tp": tp,
        "pp": pp,
        "ep": ep,
        "dp": dp,
        "dtype": dtype,
        "kv_cache_dtype": kv_cache_dtype,
        "backend": backend,
        "device": device,
        "clocks": clocks,
        "budget": budget,
        "max_tokens": max_tokens,
        "seed": seed,
        "assume_power": assume_power,
    }
    one_on_stdout(output, as_json=as_json)
    named_as(output, "a table", ".parquet")
    spec = resolve_spec(flags, environment=os.environ, sweep=sweep)
    note_mistyped(os.environ)
    request = ProfileRequest(spec, output=output, force=force, fresh=fresh)
    if dry_run:
        _show_plan(request, as_json=as_json)
    else:
        _run(request, as_json=as_json)


def _show_plan(request: "ProfileRequest", *, as_json: bool) -> None:
    from beamprof.console import emit, note
    from beamprof.profiler.dry_run import dry_run

    # Nothing is written, so what lies at the output is no reason to stop.
    planned = dry_run(dataclasses.replace(request, force=True))
    for text in planned.prepared.notes:
        note(text)
    emit(
        "profile --dry-run",
        _plan_data(planned),
        lambda console: _render_plan(planned, console, force=request.force),
        as_json=as_json,
        warnings=planned.prepared.warnings if as_json else (),  # people read the notes
    )


def _plan_data(planned: "DryRun") -> dict[str, Any]:
    prepared = planned.prepared
    return {
        "model": prepared.model.name,
        "tp": prepared.stage.tp,
        "pp": prepared.stage.pp,
        "device": prepared.choice.clocks.device,
        "backend": prepared.choice.backend,
        "clocks_mhz": list(prepared.plan.clocks_mhz),
        "cells_per_clock": len(prepared.plan.steps),
        "cells": planned.cells,
        "trials": planned.trials,
        "done": planned.done,
        "device_trials": planned.device_trials,
        "device_minutes": round(planned.device_s / 60, 2),
        "device_kwh": planned.device_kwh,
        "window_s": prepared.measured_plan.window_s,
        "expected_error": dataclasses.asdict(prepared.measured_plan.expected),
        "thinned": prepared.thinned,
        "other_journal": planned.other_journal,
        "output": str(prepared.output),
        "output_exists": prepared.output.exists(),
        "journal": str(prepared.journal),
    }


def _render_plan(planned: "DryRun", console: "Console", *, force: bool) -> None:
    from beamprof.units import format_duration

    prepared, plan = planned.prepared, planned.prepared.plan
    measured = prepared.measured_plan
    where = f"{prepared.model.name} tp{prepared.stage.tp} pp{prepared.stage.pp}"
    device = prepared.choice.clocks.device
    lines = [
        f"{where} on {device}: {planned.cells} cells in {planned.trials} trials, "
        + (f"{planned.done} done already." if planned.done else "none done yet."),
        "",
        f"  clocks          {_clock_text(plan.clocks_mhz)}",
        f"  cells           {len(plan.steps)} at each clock, and idle power",
    ]
    cost = f"{format_duration(planned.device_s)}"
    if planned.device_kwh is not None:
        cost += f", {planned.device_kwh:.2g} kWh (modelled power, the stage's GPUs)"
    trials = f"{measured.rounds} x {measured.window_s:g} s for each cell"
    if prepared.choice.modelled:
        lines.append("  here            modelled: seconds, no GPU")
        lines.append(f"  on a real one   {cost}; {trials}")
    else:
        lines.append(f"  takes           {cost}; {trials}")
    first, *others = measured.expected.parts
    lines.append(f"  expected error  {first}")
    lines += [f"{'':18}{part}" for part in others]
    if prepared.thinned:
        lines.append(f"  for the budget  {prepared.thinned}")
    if planned.other_journal:
        lines.append(
            f"  in the way      {prepared.journal} of another sweep: {planned.other_journal}"
        )
    there = prepared.output.exists() and not is_stream(prepared.output)
    verb = "would replace" if there else "would write"
    lines.append(f"  {verb:15} {prepared.output}")
    needs = " and with --force, or another --output" if there and not force else ""
    lines += ["", f"next: the same without --dry-run{needs}"]
    console.print("\n".join(lines), markup=False)


def _run(request: "ProfileRequest", *, as_json: bool) -> None:
    if request.output is None or not is_stream(request.output):
        _profile(request, as_json=as_json)
        return
    # A stream cannot be gone on with: its journal ends with the command.
    with tempfile.TemporaryDirectory(prefix="beam-profile-") as folder:
        table = Path(folder) / "table.parquet"
        _profile(dataclasses.replace(request, output=table), as_json=as_json, stream=request.output)
        if table.exists():
            with written_whole(request.output) as temporary:
                shutil.copyfile(table, temporary)


def _profile(request: "ProfileRequest", *, as_json: bool, stream: Path | None = None) -> None:
    from beamprof.cli.bar import Bar
    from beamprof.cli.progress import SweepProgress
    from beamprof.console import emit
    from beamprof.interrupt import Interrupted, stop_on_signals
    from beamprof.profiler.profile import profile

    try:
        with stop_on_signals() as stop, Bar("trials") as bar:
            result = profile(request, watcher=SweepProgress(bar), stop=stop)
    except KeyboardInterrupt:
        raise Interrupted(
            "finished trials are in the journal; run the same command again to go on"
            if stream is None
            else "nothing was kept; with --output FILE finished trials are"
        ) from None
    if result.follower:
        return
    status = "ok" if result.table is not None and not result.refused else "incomplete"
    if result.stopped_by and result.table is None:
        status = "interrupted"
    emit(
        "profile",
        _result_data(result),
        lambda console: _render_result(result, stream, console),
        as_json=as_json,
        status=status,
        warnings=[
            *(result.prepared.warnings if as_json else ()),
            *(f"not measured: {text}" for text in result.refused),
        ],
        stdout_taken=is_stdout(stream),
    )
    if status != "ok":
        raise typer.Exit(130 if status == "interrupted" else 1)


def _result_data(result: "ProfileResult") -> dict[str, Any]:
    from beamprof.tables.knees import knees

    prepared = result.prepared
    return {
        "model": prepared.model.name,
        "tp": prepared.stage.tp,
        "pp": prepared.stage.pp,
        "device": prepared.choice.clocks.device,
        "backend": prepared.choice.backend,
        "output": str(prepared.output) if result.table is not None else None,
        "journal": str(prepared.journal),
        "rows": len(result.table) if result.table is not None else 0,
        "clocks_mhz": list(result.table.clocks_mhz) if result.table is not None else [],
        "measured": result.measured,
        "resumed": result.resumed,
        "remaining": result.remaining,
        "stopped_by": result.stopped_by,
        "duration_s": round(result.duration_s, 3),
        "expected_error": dataclasses.asdict(prepared.plan.expected),
        "knees": [dataclasses.asdict(knee) for knee in knees(result.table)]
        if result.table is not None
        else [],
    }


def _render_result(result: "ProfileResult", stream: Path | None, console: "Console") -> None:
    from beamprof.report.page import fitted_block, next_command, wrote
    from beamprof.tables.leave_one_out import held_out_error
    from beamprof.units import format_duration

    prepared = result.prepared
    what = f"{prepared.model.name} tp{prepared.stage.tp} pp{prepared.stage.pp}"
    if result.table is None and stream is not None:
        console.print(
            f"Stopped by {result.stopped_by}: nothing was kept; with --output FILE finished trials "
            "are."
        )
        return
    if result.table is None:
        console.print(
            f"Stopped by {result.stopped_by}: {result.measured + result.resumed} trials of {what} "
            f"are in {prepared.journal}, {result.remaining} are left.\n"
            "next: run the same command again to go on (--fresh starts over)",
            markup=False,
            soft_wrap=True,
        )
        return
    how = "modelled" if prepared.choice.modelled else "measured"
    kept = f" ({result.resumed} trials were in the journal)" if result.resumed else ""
    clocks = len(result.table.clocks_mhz)
    at = f"{clocks} clocks" if clocks > 1 else "one clock"
    console.print(
        f"{what} on {result.table.device}: {len(result.table)} rows {how} at {at} in "
        f"{format_duration(result.duration_s)}{kept}.\n",
        markup=False,
    )
    fitted_block(console, _knee_grid(result.table), ("top MHz", "ms"))
    console.print(f"\nexpected error: {prepared.plan.expected}", markup=False)
    found = None if prepared.choice.modelled else held_out_error(result.table)
    if found is not None:
        console.print(
            f"found: latency {100 * found.latency_mape:.1f} %, energy "
            f"{100 * found.energy_mape:.1f} % over {found.rows} mixed steps kept out of the fit",
            markup=False,
        )
    if prepared.choice.device_file is not None and prepared.choice.modelled:
        console.print(f"on top of the model's: {prepared.choice.device_file.accuracy}",
                      markup=False)  # fmt: skip
    if stream is not None:
        wrote(console, stream)
        return
    wrote(console, prepared.output)
    wrote(console, prepared.journal, "(every trial; may be deleted)")
    next_command(console, f"beam table inspect {quote(str(prepared.output))}")


def _knee_grid(table: "PerfTable") -> Any:
    from beamprof.report.page import plain_table
    from beamprof.tables.grid import describe_step
    from beamprof.tables.knees import knees

    grid = plain_table()
    several = len(table.clocks_mhz) > 1
    grid.add_column("step", no_wrap=True)
    cheapest = ("best MHz", "ms", "J", "saves %") if several else ()
    for heading in ("top MHz" if several else "MHz", "ms", "J", *cheapest):
        grid.add_column(heading, justify="right")
    for knee in knees(table):
        values = [str(knee.top_mhz), f"{knee.top_latency_ms:.1f}", f"{knee.top_energy_j:.2f}"]
        if several:
            values += [
                str(knee.knee_mhz),
                f"{knee.knee_latency_ms:.1f}",
                f"{knee.knee_energy_j:.2f}",
                f"{knee.saved * 100:.0f}",
            ]
        grid.add_row(describe_step(knee.step), *values)
    return grid


def _clock_text(clocks_mhz: tuple[int, ...]) -> str:
    if clocks_mhz == (0,):
        return "as they are"
    shown = ", ".join(str(clock) for clock in clocks_mhz[:12])
    more = f", ... {clocks_mhz[-1]}" if len(clocks_mhz) > 12 else ""
    return f"{len(clocks_mhz)}: {shown}{more} MHz"
