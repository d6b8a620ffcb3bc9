"""`beam decide`: one state, one decision, and the space around it."""

from pathlib import Path
from typing import Annotated

import typer

from beamprof.cli.first_compile import say_if_first
from beamprof.cli.promised import LeastTokens, MaxSlowdown, SloE2e, SloTbt, SloTpot, SloTtft
from beamprof.console import emit
from beamprof.units import parse_duration_s, parse_power_w

GROUPS = {
    "The state": ("waiting", "running", "state", "clock"),
    "What was promised": (
        "slo_ttft",
        "slo_tbt",
        "slo_tpot",
        "slo_e2e",
        "least_tokens_per_s",
        "max_slowdown",
    ),
    "The engine": ("max_chunk", "max_num_seqs", "host_gap", "idle_power"),
    "What comes of it": ("as_json",),
}


def command(
    table: Annotated[
        Path, typer.Argument(metavar="TABLE", help="A perf-energy table (Parquet); -: stdin.")
    ],
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
    slo_ttft: SloTtft = "1s",
    slo_tbt: SloTbt = None,
    slo_tpot: SloTpot = None,
    slo_e2e: SloE2e = None,
    least_tokens_per_s: LeastTokens = None,
    max_slowdown: MaxSlowdown = None,
    clock: Annotated[
        int | None, typer.Option("--clock", min=1, help="Clock now, MHz [default: the highest].")
    ] = None,
    max_chunk: Annotated[
        int | None,
        typer.Option(
            "--max-chunk", min=32, help="Largest step the engine was started for [default: 512]."
        ),
    ] = None,
    max_num_seqs: Annotated[
        int,
        typer.Option("--max-num-seqs", min=1, max=65536, help="Requests that may run together."),
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
    from beamprof.cli.streams import load_table, one_from_stdin, readable
    from beamprof.decide.bounds import beyond_the_table, clock_of, largest_step
    from beamprof.decide.decide import decide, limits_of
    from beamprof.decide.engine_state import read_state, state_of
    from beamprof.errors import StateError
    from beamprof.plain import plain
    from beamprof.report.decide_view import show_decision
    from beamprof.slo import slo_from_flags
    from beamprof.tables.doubts import doubts

    if state is not None and (waiting or running or clock):
        raise StateError(
            "--state says it all: leave --waiting, --running and --clock out",
            hint="or leave --state out",
        )
    slo = slo_from_flags(slo_ttft, slo_tbt, slo_tpot, slo_e2e, least_tokens_per_s, max_slowdown)
    gap_ms = None if host_gap is None else parse_duration_s(host_gap, "--host-gap") * 1e3
    idle_w = None if idle_power is None else parse_power_w(idle_power, "--idle-power")
    one_from_stdin([table, state])
    known = load_table(table)
    if state is not None:
        with readable(state) as file:
            spec = read_state(file)
    else:
        spec = state_of(waiting, running)
    spec = spec.model_copy(update={"clock_mhz": clock_of(known, clock or spec.clock_mhz)})
    max_chunk, cut = largest_step(known, max_chunk)
    say_if_first("beam_runtime.search")
    answer = decide(
        known,
        spec,
        slo=slo,
        limits=limits_of(
            known,
            max_chunk_tokens=max_chunk,
            max_num_seqs=max_num_seqs,
            host_gap_ms=gap_ms,
        ),
        idle_power_w=None if idle_w is None else idle_w * known.tp,
    )
    kept = answer.chosen.lost == 0
    emit(
        "decide",
        {"feasible": answer.feasible, **plain(answer)},
        lambda out: show_decision(answer, str(table), out),
        as_json=as_json,
        status="ok" if kept else "no",
        warnings=[
            *cut,
            *doubts(known),
            *beyond_the_table(known, spec, answer.chosen.knobs.chunk_tokens),
            *answer.notes,
        ],
    )
    if not kept:
        raise typer.Exit(1)
