"""`beam trace generate`: synthetic load, or a draw from a ServeGen pool."""

from collections.abc import Callable
from inspect import Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from beamprof.cli.grouped import Examples
from beamprof.cli.trace_output import (
    Force,
    Json,
    MaxTokens,
    Output,
    Over,
    Seed,
    moment_s,
    preparation,
    write,
)
from beamprof.errors import TraceError
from beamprof.traces.policies import MissingDataset, OverLimit
from beamprof.units import parse_duration_s

if TYPE_CHECKING:
    from beamprof.traces.preparation import Preparation
    from beamprof.traces.servegen_sampler import Draw
    from beamprof.traces.synthetic import Lengths
    from beamprof.traces.trace import Trace

app = typer.Typer(
    cls=Examples,
    name="generate",
    help="Draw a trace: synthetic load or a ServeGen pool.",
    no_args_is_help=True,
)

DAY_S = 86400

Rate = Annotated[float, typer.Option("--rate", help="Requests per second.")]
Duration = Annotated[str, typer.Option("--duration", help="How long the trace lasts, e.g. 10m.")]
InputTokens = Annotated[int, typer.Option("--input-tokens", help="Mean prompt.")]
OutputTokens = Annotated[int, typer.Option("--output-tokens", help="Mean output.")]
Spread = Annotated[
    float, typer.Option("--spread", help="Lengths are uniform in mean ± this fraction.")
]


# A load's name for its file, and how it is drawn once lengths and seed are known.
Load = tuple[str, "Callable[[Lengths, int], Trace]"]


def _shared(
    input_tokens: InputTokens = 1050,
    output_tokens: OutputTokens = 150,
    spread: Spread = 0.3,
    seed: Seed = 0,
    output: Output = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Options that every synthetic load has."""


def _synthetic(own: Callable[..., Load]) -> Callable[..., None]:
    """A command out of a load's own options and the shared ones."""

    def command(**given: Any) -> None:
        from beamprof.traces.synthetic import Lengths

        shared = {name: given.pop(name) for name in signature(_shared).parameters}
        name, draw = own(**given)
        seed = shared["seed"]
        lengths = Lengths(shared["input_tokens"], shared["output_tokens"], shared["spread"])
        write(
            f"trace generate {own.__name__}",
            lambda: draw(lengths, seed),
            None,
            shared["output"] or Path(f"{name}-seed{seed}.parquet"),
            force=shared["force"],
            as_json=shared["as_json"],
        )

    # typer reads a command's options from its signature.
    options = [*signature(own).parameters.values(), *signature(_shared).parameters.values()]
    command.__signature__ = Signature(options)  # type: ignore[attr-defined]
    command.__annotations__ = {option.name: option.annotation for option in options}
    command.__name__, command.__doc__ = own.__name__, own.__doc__
    return command


@app.command()
@_synthetic
def poisson(rate: Rate = 2.0, duration: Duration = "10m") -> Load:
    """Poisson arrivals at one rate.

    For example:  beam trace generate poisson --rate 4 --duration 10m -o load.parquet
    """
    from beamprof.traces import synthetic

    duration_s = parse_duration_s(duration, "--duration")
    return f"poisson-{rate:g}rps", lambda lengths, seed: synthetic.poisson(
        rate, duration_s, lengths=lengths, seed=seed
    )


@app.command()
@_synthetic
def step(
    low: Annotated[float, typer.Option("--low", help="Requests per second around it.")] = 4.0,
    high: Annotated[float, typer.Option("--high", help="Requests per second in it.")] = 20.0,
    duration: Duration = "2m",
    burst_start: Annotated[str, typer.Option("--burst-start", help="When it comes.")] = "30s",
    burst: Annotated[str, typer.Option("--burst", help="How long it lasts.")] = "30s",
) -> Load:
    """A burst: a low rate, a high one, the low one again.

    For example:  beam trace generate step --low 2 --high 12 --burst 1m --duration 5m
    """
    from beamprof.traces import synthetic

    duration_s = parse_duration_s(duration, "--duration")
    burst_start_s = moment_s(burst_start, "--burst-start")
    burst_s = parse_duration_s(burst, "--burst")
    return f"step-{low:g}-{high:g}rps", lambda lengths, seed: synthetic.step(
        low, high, duration_s,
        burst_start_s=burst_start_s, burst_s=burst_s, lengths=lengths, seed=seed,
    )  # fmt: skip


@app.command()
@_synthetic
def ramp(
    start: Annotated[float, typer.Option("--from", help="Requests per second first.")] = 2.0,
    end: Annotated[float, typer.Option("--to", help="Requests per second last.")] = 6.4,
    duration: Duration = "10m",
) -> Load:
    """A rate that grows, or falls, in a straight line.

    For example:  beam trace generate ramp --from 1 --to 8 --duration 20m
    """
    from beamprof.traces import synthetic

    duration_s = parse_duration_s(duration, "--duration")
    return f"ramp-{start:g}-{end:g}rps", lambda lengths, seed: synthetic.ramp(
        start, end, duration_s, lengths=lengths, seed=seed
    )


@app.command()
@_synthetic
def spike(
    rate: Rate = 2.0,
    duration: Duration = "2m",
    every: Annotated[str, typer.Option("--every", help="Time between spikes.")] = "30s",
    requests: Annotated[int, typer.Option("--requests", help="Prompts in one spike.")] = 1,
    spike_input_tokens: Annotated[
        int, typer.Option("--spike-input-tokens", help="Prompt of each of them.")
    ] = 1500,
) -> Load:
    """Prompts that arrive at one moment, again and again, over Poisson arrivals.

    For example:  beam trace generate spike --requests 4 --every 10s
    """
    from beamprof.traces import synthetic

    duration_s = parse_duration_s(duration, "--duration")
    every_s = parse_duration_s(every, "--every")
    return f"spike-{rate:g}rps", lambda lengths, seed: synthetic.spike(
        rate, duration_s, every_s=every_s, requests=requests,
        spike_input_tokens=spike_input_tokens, lengths=lengths, seed=seed,
    )  # fmt: skip


@app.command()
def servegen(
    pool: Annotated[
        Path, typer.Argument(help="A folder of chunk-<id>-trace.csv and -dataset.json")
    ],
    day: Annotated[int, typer.Option("--day", help="Of the pool's time axis.", min=0)] = 0,
    start: Annotated[str, typer.Option("--start", help="Time of day, e.g. 19h.")] = "19h",
    duration: Duration = "1h",
    scale: Annotated[
        float | None, typer.Option("--scale", help="Factor on every client's rate.")
    ] = None,
    target_tps: Annotated[
        float | None,
        typer.Option("--target-tps", help="Find the scale for this mean of in + out tokens/s."),
    ] = None,
    missing_dataset: Annotated[
        MissingDataset,
        typer.Option("--missing-dataset", help="What happens to clients without lengths."),
    ] = MissingDataset.ERROR,
    max_total_tokens: MaxTokens = None,
    over_limit: Over = OverLimit.ERROR,
    seed: Seed = 0,
    output: Output = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Draw a trace from a native ServeGen client pool.

    For example:  beam trace generate servegen m-large --start 19h --target-tps 1800
    """
    from beamprof.traces.servegen_sampler import Draw

    if scale is not None and target_tps is not None:
        raise TraceError(
            "--scale and --target-tps both set the load",
            hint="leave one out: --target-tps finds the scale",
        )
    draw = Draw(
        start_s=day * DAY_S + moment_s(start, "--start"),
        duration_s=parse_duration_s(duration, "--duration"),
        scale=1.0 if scale is None else scale,
        seed=seed,
        missing=missing_dataset,
    )
    steps = preparation(None, max_total_tokens, over_limit, None, seed)
    write(
        "trace generate servegen",
        lambda: _from_pool(pool, draw, target_tps, steps),
        steps,
        output or Path(f"servegen-{pool.resolve().name}-d{day}-{start}-seed{seed}.parquet"),
        force=force,
        as_json=as_json,
    )


def _from_pool(
    folder: Path, draw: "Draw", target_tps: float | None, steps: "Preparation"
) -> "Trace":
    from beamprof.traces.servegen_pool import read_pool
    from beamprof.traces.servegen_sampler import sample, scale_for_tokens_per_s

    pool = read_pool(folder, draw.start_s, draw.start_s + draw.duration_s)
    if target_tps is not None:
        draw = scale_for_tokens_per_s(pool, draw, target_tps, steps.apply)
    return sample(pool, draw)
