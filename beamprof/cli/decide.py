"""`beam decide`: one state, one decision, and the space around it."""

from pathlib import Path
from typing import Annotated

import typer

from beamprof.cli.first_compile import say_if_first
from beamprof.console import emit
from beamprof.units import parse_duration_s, parse_power_w


def command(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="A perf-energy table (Parquet).")],
    waiting: Annotated[
        str, typer.Option("--waiting", help="Prompts that wait, in tokens: 1500,300 or 4x1500.")
    ] = "",
    running: Annotated[
        str, typer.Option("--running", help="Requests that decode, by context: 32x1200,4x3000.")
    ] = "",
    state: Annotated[
        Path | None,
        typer.Option("--state", help="The state as JSON, with waits, caches and own SLOs."),
    ] = None,
    slo_ttft: Annotated[str, typer.Option("--slo-ttft", help="Time to first token.")] = "1s",
    slo_tbt: Annotated[
        str, typer.Option("--slo-tbt", "--slo-itl", help="Time between tokens.")
    ] = "200ms",
    clock: Annotated[
        int | None, typer.Option("--clock", min=1, help="Clock now, MHz [default: the highest].")
    ] = None,
    max_chunk: Annotated[
        int, typer.Option("--max-chunk", min=32, help="Largest step the engine was started for.")
    ] = 512,
    max_num_seqs: Annotated[
        int, typer.Option("--max-num-seqs", min=1, help="Requests that may run together.")
    ] = 256,
    host_gap: Annotated[
        str | None,
        typer.Option("--host-gap", help="Time per stage and step that no pass covers; over the "
                     "table's."),
    ] = None,
    idle_power: Annotated[
        str | None,
        typer.Option("--idle-power", help="Of a waiting GPU, e.g. 80W, for a table without it."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:  # fmt: skip
    """What would the controller do now? The knobs, what they promise, and what was refused.

    One new prompt on an idle engine:  beam decide TABLE --waiting 1500 --slo-ttft 1s
    """
    from beam_runtime.table.perf_table import PerfTable
    from beam_runtime.types import Slo
    from beamprof.decide.decide import decide, limits_of
    from beamprof.decide.engine_state import read_state, state_of
    from beamprof.errors import StateError
    from beamprof.plain import plain
    from beamprof.report.decide_view import show_decision

    if state is not None and (waiting or running or clock):
        raise StateError(
            "--state says it all: leave --waiting, --running and --clock out",
            hint="or leave --state out",
        )
    known = PerfTable.load(table)
    spec = read_state(state) if state is not None else state_of(waiting, running)
    spec = spec if clock is None else spec.model_copy(update={"clock_mhz": clock})
    say_if_first("beam_runtime.search")
    answer = decide(
        known,
        spec,
        slo=Slo(
            parse_duration_s(slo_ttft, "--slo-ttft") * 1e3,
            parse_duration_s(slo_tbt, "--slo-tbt") * 1e3,
        ),
        limits=limits_of(
            known,
            max_chunk_tokens=max_chunk,
            max_num_seqs=max_num_seqs,
            host_gap_ms=None
            if host_gap is None
            else parse_duration_s(host_gap, "--host-gap") * 1e3,
        ),
        idle_power_w=None
        if idle_power is None
        else parse_power_w(idle_power, "--idle-power") * known.tp,
    )
    feasible = answer.chosen.feasible
    emit(
        "decide",
        {"feasible": feasible, **plain(answer)},
        lambda out: show_decision(answer, str(table), out),
        as_json=as_json,
        status="ok" if feasible else "no",
        warnings=list(answer.notes),
    )
    if not feasible:
        raise typer.Exit(1)
