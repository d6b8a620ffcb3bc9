"""`beam replay`: what would each policy have cost on this trace?"""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from beamprof.cli.first_compile import say_if_first
from beamprof.cli.promised import (
    LeastTokens,
    MaxSlowdown,
    SloClass,
    SloE2e,
    SloTbt,
    SloTpot,
    SloTtft,
)
from beamprof.cli.streams import check_folder, load_table, one_from_stdin
from beamprof.console import emit, note
from beamprof.replay.assumptions import Assumptions
from beamprof.traces.policies import OverLimit
from beamprof.units import parse_duration_s, parse_power_w

if TYPE_CHECKING:
    from beam_runtime.table.perf_table import PerfTable
    from beamprof.cli.bar import Bar
    from beamprof.replay.options import ReplayOptions
    from beamprof.replay.sensitivity import Outcome
    from beamprof.traces.trace import Trace

DEFAULT_POLICIES = "vanilla,static:best,max-q,window-dvfs,beam-paper,beam,oracle"

GROUPS = {
    "What to play": ("table", "trace", "policy", "model", "tp", "pp"),
    "What was promised": (
        "slo_ttft",
        "slo_tbt",
        "slo_tpot",
        "slo_e2e",
        "slo_class",
        "least_tokens_per_s",
        "max_slowdown",
    ),
    "What is true": (
        "assume",
        "plant_table",
        "smooth",
        "noise",
        "seed",
        "idle_power",
        "host_gap",
        "front_end",
        "clock_delay",
        "kv_blocks",
    ),
    "Requests": ("max_model_len", "over_limit", "concurrency", "prefix_cache"),
    "What comes of it": ("output", "force", "sensitivity", "as_json"),
}


def command(
    context: typer.Context,
    table: Annotated[Path, typer.Option("--table", "-t", help="What the policies know.")],
    trace: Annotated[Path, typer.Option("--trace", help="Requests, in any known format.")],
    policy: Annotated[
        str,
        typer.Option(
            "--policy",
            help="Names with commas: vanilla[:CHUNK|best], static:MHZ[:CHUNK]|knee|best, "
            "max-q[:WATTS] (a power limit), window-dvfs, "
            "lowest-feasible, beam-paper, beam[:no-RULE], oracle.",
        ),
    ] = DEFAULT_POLICIES,
    slo_ttft: SloTtft = "1s",
    slo_tbt: SloTbt = None,
    slo_tpot: SloTpot = None,
    slo_e2e: SloE2e = None,
    least_tokens_per_s: LeastTokens = None,
    max_slowdown: MaxSlowdown = None,
    slo_class: SloClass = None,
    plant_table: Annotated[
        Path | None, typer.Option("--plant-table", help="What is true, where it is another table.")
    ] = None,
    assume: Annotated[
        Assumptions,
        typer.Option(
            "--assume",
            help="validated: smoothed table, 3 % noise, constants fitted to nodes, waiting power "
            "by clock. published: raw table, no noise, 45 W.",
        ),
    ] = Assumptions.VALIDATED,
    smooth: Annotated[
        bool | None,
        typer.Option("--smooth/--no-smooth", help="Smooth that table along the clock."),
    ] = None,
    noise: Annotated[
        float | None, typer.Option("--noise", help="Deviation of a step's time, as a share.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the noise.", min=0)] = 0,
    idle_power: Annotated[
        str | None,
        typer.Option("--idle-power", help="Of a waiting GPU at every clock, e.g. 45W."),
    ] = None,
    host_gap: Annotated[
        str | None, typer.Option("--host-gap", help="Time per stage and step that no pass covers.")
    ] = None,
    front_end: Annotated[
        str | None, typer.Option("--front-end", help="From sending to the engine's queue.")
    ] = None,
    clock_delay: Annotated[
        str | None, typer.Option("--clock-delay", help="Until a clock that was asked for is there.")
    ] = None,
    kv_blocks: Annotated[
        int | None,
        typer.Option(
            "--kv-blocks",
            help="KV-cache blocks of 16 tokens; default: what the weights leave.",
            min=1,
        ),
    ] = None,
    max_model_len: Annotated[
        int | None, typer.Option("--max-model-len", help="Most input + output tokens.", min=2)
    ] = None,
    over_limit: Annotated[
        OverLimit, typer.Option("--over-limit", help="What happens to longer requests.")
    ] = OverLimit.ERROR,
    concurrency: Annotated[
        int | None,
        typer.Option(
            "--concurrency",
            help="Closed loop: so many requests in flight; the trace's lengths, not its arrivals.",
            min=1,
        ),
    ] = None,
    prefix_cache: Annotated[
        bool,
        typer.Option(
            "--prefix-cache/--no-prefix-cache",
            help="Prompts that begin alike are computed once, where the trace has block hashes "
            "or sessions.",
        ),
    ] = True,
    model: Annotated[str | None, typer.Option("--model", help="The table must be for it.")] = None,
    tp: Annotated[int | None, typer.Option("--tp", help="Likewise.", min=1)] = None,
    pp: Annotated[int | None, typer.Option("--pp", help="Likewise.", min=1)] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for Parquet results; made if need be."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
    sensitivity: Annotated[
        bool,
        typer.Option("--sensitivity", help="Change each assumption in turn: what becomes of it?"),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Play a trace under several policies: energy, TTFT, TBT and the knobs, side by side.

    For example:  beam replay -t TABLE --trace azure.csv --policy vanilla,beam -o run
    """
    from beamprof.cli.bar import Bar
    from beamprof.interrupt import Interrupted
    from beamprof.plain import plain
    from beamprof.replay.ladder import replay
    from beamprof.replay.model_length import beyond_the_model
    from beamprof.replay.options import ReplayOptions
    from beamprof.report.replay_views import show_replay, undecided_lines, why_unkept
    from beamprof.report.trace_views import import_words
    from beamprof.slo import parse_classes, slo_from_flags
    from beamprof.tables.doubts import doubts
    from beamprof.traces.importing import open_trace

    options = ReplayOptions.assuming(
        assume,
        slo=slo_from_flags(slo_ttft, slo_tbt, slo_tpot, slo_e2e, least_tokens_per_s, max_slowdown),
        classes=parse_classes(slo_class or (), "--slo-class"),
        noise=noise,
        seed=seed,
        smooth=smooth,
        host_gap_ms=_ms(host_gap, "--host-gap"),
        front_end_ms=_ms(front_end, "--front-end"),
        clock_delay_ms=_ms(clock_delay, "--clock-delay"),
        idle_power_w=None if idle_power is None else parse_power_w(idle_power, "--idle-power"),
        kv_blocks=kv_blocks,
        max_model_len=max_model_len,
        over_limit=over_limit,
        concurrency=concurrency,
        prefix_cache=prefix_cache,
    )
    one_from_stdin([table, trace, plant_table])
    check_folder(
        output, force=force, inputs=[table, trace, *([plant_table] if plant_table else [])]
    )
    known = load_table(table, model=model, tp=tp, pp=pp)
    true = None if plant_table is None else load_table(plant_table, model=model, tp=tp, pp=pp)
    requests = open_trace(trace)
    for text in import_words(requests.provenance):
        note(text)
    say_if_first("beamprof.replay")
    names = policy.split(",")
    played: list[str] = []
    try:
        with Bar("policies") as bar:
            report = replay(
                known,
                requests,
                names,
                options,
                plant_table=true,
                output=output,
                force=force,
                command=shlex.join(["beam", *context.obj]),
                progress=lambda name: _now(bar, name, played, len(names)),
            )
        outcomes = _varied(known, requests, names, options, true) if sensitivity else ()
    except KeyboardInterrupt:
        done = ", ".join(played[:-1]) or "nothing"
        raise Interrupted(
            f"{done} had been played, nothing was written; run the same command again, or with "
            "fewer names in --policy"
        ) from None
    note(f"plant: {', '.join(report.assumed)}")
    following = (
        f"beam report {shlex.quote(str(output))}"
        if output
        else f"beam replay --table {shlex.quote(str(table))} --trace {shlex.quote(str(trace))} "
        "--output FOLDER"
    )
    unkept = why_unkept(report)
    emit(
        "replay",
        {**plain(report), "sensitivity": plain(outcomes)},
        lambda console: show_replay(report, outcomes, following, console),
        as_json=as_json,
        status="no" if unkept else "ok",
        warnings=[
            *(text for one in (known, true) if one is not None for text in doubts(one)),
            *filter(None, [beyond_the_model(known, requests, options)]),
            *undecided_lines(report),
        ],
    )
    if unkept:
        raise typer.Exit(1)


def _varied(
    table: "PerfTable",
    trace: "Trace",
    names: list[str],
    options: "ReplayOptions",
    plant_table: "PerfTable | None",
) -> "tuple[Outcome, ...]":
    """What becomes of the last policy asked for; it is the one that people ask about."""
    from beamprof.cli.bar import Bar
    from beamprof.replay.sensitivity import VARIATIONS, sensitivity

    asked = [name for name in names if name != "oracle"][-1:]
    with Bar("assumptions") as bar:
        bar.begin("sensitivity", 0, len(VARIATIONS))
        return sensitivity(
            table, trace, asked, options, plant_table=plant_table, progress=bar.advance
        )


def _ms(text: str | None, name: str) -> float | None:
    if text is None:
        return None
    return 0.0 if text in ("0", "0s", "0ms") else parse_duration_s(text, name) * 1e3


def _now(bar: "Bar", name: str, played: list[str], asked: int) -> None:
    """Another policy begins; the one before it is done."""
    if played:
        bar.advance(played[-1])
    else:
        bar.begin("replay", 0, asked)
    played.append(name)
    bar.now(f"playing {name}")
    if not bar.shown:
        note(f"playing {name}")
