"""`beam trace import | generate | stats`: requests to replay, from anywhere, with their record."""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from beamprof.cli import trace_generate
from beamprof.cli.grouped import Examples
from beamprof.cli.trace_output import (
    Force,
    Json,
    MaxTokens,
    Output,
    Over,
    Seed,
    Window,
    preparation,
    show,
    write,
)
from beamprof.files import STDIN, is_stream
from beamprof.traces.policies import BadRows, OverLimit
from beamprof.units import parse_duration_s

app = typer.Typer(
    cls=Examples,
    name="trace",
    help="Import, generate and describe request traces.",
    no_args_is_help=True,
)
app.add_typer(trace_generate.app, name="generate")


@app.command("import", short_help="Bring a trace of any known format into BEAM's form.")
def import_(
    file: Annotated[
        Path, typer.Argument(help="A trace in any known format, packed or not; -: stdin.")
    ],
    output: Output = None,
    format_name: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="azure, burstgpt, mooncake, bailian, aiperf, guidellm, served-log, ...; found by "
            "the columns if left out.",
        ),
    ] = None,
    window: Window = None,
    max_total_tokens: MaxTokens = None,
    over_limit: Over = OverLimit.ERROR,
    target_tps: Annotated[
        float | None,
        typer.Option("--target-tps", help="Thin to this mean of input + output tokens per second."),
    ] = None,
    bad_rows: Annotated[
        BadRows, typer.Option("--bad-rows", help="What happens to rows that are no requests.")
    ] = BadRows.ERROR,
    sort: Annotated[bool, typer.Option("--sort", help="Sort rows whose times go back.")] = False,
    duration: Annotated[
        str | None,
        typer.Option("--duration", help="How long the trace lasts, if the file does not say."),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option("--rate", help="Poisson arrivals per second for a file of lengths only."),
    ] = None,
    seed: Seed = 0,
    time_unit: Annotated[
        str | None,
        typer.Option("--time-unit", help="s, ms, us or ns, where the file does not say it."),
    ] = None,
    block_tokens: Annotated[
        int | None,
        typer.Option("--block-tokens", help="Tokens of one prefix hash, likewise.", min=1),
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", help="Of the file, for its record.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Bring a trace into BEAM's form: azure, burstgpt, mooncake, servegen, vidur and more.

    One hour of a published trace:  beam trace import azure.csv.gz --window 0s:1h

    A log of your own server:       beam trace import requests.jsonl -o mine.parquet
    """
    from beamprof.traces.importing import ImportOptions, import_trace

    options = ImportOptions(
        bad_rows=bad_rows,
        sort=sort,
        duration_s=None if duration is None else parse_duration_s(duration, "--duration"),
        rate_rps=rate,
        seed=seed,
        licence=licence,
        time_unit=time_unit,
        block_tokens=block_tokens,
    )
    write(
        "trace import",
        lambda: import_trace(file, format_name=format_name, options=options),
        preparation(window, max_total_tokens, over_limit, target_tps, seed),
        output or _beside(file),
        force=force,
        as_json=as_json,
        inputs=[file],
    )


def _beside(file: Path) -> Path:
    """Where an import goes that names no output: beside the file; from a pipe, here."""
    if file == STDIN or is_stream(file):
        return Path("stdin.trace.parquet")
    packed = file.suffix in (".gz", ".bz2", ".xz", ".zst") and Path(file.stem).suffix
    return file.with_name(f"{Path(file.stem).stem if packed else file.stem}.trace.parquet")


@app.command(short_help="Rates, lengths, burstiness, and what was done.")
def stats(
    file: Annotated[
        Path, typer.Argument(help="A trace, BEAM's own or in any known format; -: stdin.")
    ],
    as_json: Json = False,
) -> None:
    """Describe a trace: rates, lengths, burstiness, and what was done to it.

    For example:  beam trace stats requests.jsonl
    """
    from beamprof.traces.importing import open_trace
    from beamprof.traces.preparation import report_trace

    report = report_trace(open_trace(file))
    following = f"beam replay --table TABLE --trace {quote(str(file))}"
    show("trace stats", report, following, as_json=as_json)
