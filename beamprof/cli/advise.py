"""`beam advise`: what would I save, and what do I have to do for it?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from beamprof.cli.first_compile import say_if_first
from beamprof.cli.opened import check_openable, open_page
from beamprof.cli.promised import SloE2e, SloTbt, SloTpot, SloTtft
from beamprof.cli.streams import load_table, named_as, one_on_stdout
from beamprof.console import emit, note, stderr
from beamprof.errors import ModelShapeError, OutputError, ReplayError
from beamprof.files import STDIN, check_writable, is_stdout

if TYPE_CHECKING:
    from beam_runtime.table.perf_table import PerfTable
    from beamprof.advice.load import Load

USUAL_INPUT_TOKENS, USUAL_OUTPUT_TOKENS = 1050, 150
GROUPS = {
    "The model and its GPUs": ("table", "model", "device", "tp", "pp"),
    "The load": ("from_vllm", "trace", "rate", "input_tokens", "output_tokens"),
    "What is promised": ("slo_ttft", "slo_tbt", "slo_tpot", "slo_e2e"),
    "Today": ("chunk", "max_num_seqs", "price", "carbon"),
    "What comes of it": ("output", "show", "force", "as_json"),
}


def command(
    table: Annotated[
        Path | None, typer.Option("--table", "-t", help="A perf-energy table; else it is modelled.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Without a table [default: the server's own].")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="Without a table: the GPU, such as H100.")
    ] = None,
    tp: Annotated[int | None, typer.Option("--tp", min=1, help="GPUs of a stage.")] = None,
    pp: Annotated[int | None, typer.Option("--pp", min=1, help="Pipeline stages.")] = None,
    from_vllm: Annotated[
        str | None,
        typer.Option("--from-vllm", metavar="URL|FILE",
                     help="A vLLM server's /metrics: http://host:8000, or saved in a file."),
    ] = None,
    trace: Annotated[
        Path | None, typer.Option("--trace", help="Requests, in any known format.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", help="Requests per second of one replica.")
    ] = None,
    input_tokens: Annotated[
        int | None,
        typer.Option("--input-tokens", help="Mean prompt, with --rate [default: 1050].")
    ] = None,
    output_tokens: Annotated[
        int | None,
        typer.Option("--output-tokens", help="Mean output, with --rate [default: 150].")
    ] = None,
    slo_ttft: SloTtft = "1s",
    slo_tbt: SloTbt = None,
    slo_tpot: SloTpot = None,
    slo_e2e: SloE2e = None,
    chunk: Annotated[
        int | None,
        typer.Option("--max-num-batched-tokens", min=32, max=65536,
                     help="Of vLLM, as it is now [default: vLLM's own on this GPU]."),
    ] = None,
    max_num_seqs: Annotated[
        int | None, typer.Option("--max-num-seqs", min=1, max=65536, help="Likewise.")
    ] = None,
    price: Annotated[
        float | None, typer.Option("--price", help="Of a kWh, in any currency.")
    ] = None,
    carbon: Annotated[
        float | None, typer.Option("--carbon", help="Of the grid, grams of CO2 per kWh.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="An HTML page as well; -: stdout.")
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Show --output in a browser.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the page.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:  # fmt: skip
    """What would I save, and how? One clock, vLLM's flags, BEAM: least effort first.

    About a server:  beam advise --from-vllm http://localhost:8000 --device H100
    """
    from beamprof.advice.advise import Today, advise
    from beamprof.plain import plain
    from beamprof.report.advice_view import show_advice
    from beamprof.slo import slo_from_flags

    one_on_stdout(output, as_json=as_json)
    check_openable(output, show=show)
    if show and output is None:
        raise OutputError("--open shows a page", hint="name it: --output advice.html")
    inputs = [path for path in (table, trace) if path is not None]
    if output is not None:
        check_writable(output, force=force, inputs=inputs)
        named_as(output, "the page", ".html", ".htm")
    slo = slo_from_flags(slo_ttft, slo_tbt, slo_tpot, slo_e2e)
    load, served = _load(from_vllm, trace, rate, input_tokens, output_tokens, model)
    known = (
        load_table(table, model=model, tp=tp, pp=pp, device=device)
        if table is not None
        else _modelled(model, served, device, tp or 1, pp or 1)
    )
    load = _taken(known, load)
    usual = Today.on(known.device)
    say_if_first("beamprof.replay")
    advice = advise(
        known, load, slo,
        today=Today(chunk or usual.chunk_tokens, max_num_seqs or usual.max_num_seqs),
        price_per_kwh=price, co2_g_per_kwh=carbon, model="" if table else model or served,
        progress=lambda name: note(f"simulating: {name}"),
    )  # fmt: skip
    if output is not None:
        from beamprof.report.html.advice_part import write_advice

        write_advice(advice, output, force=force)
    emit(
        "advise",
        {"keepable": advice.keepable, "best": advice.best.name, **plain(advice)},
        lambda console: show_advice(advice, console),
        as_json=as_json,
        status="ok" if advice.keepable else "no",
        stdout_taken=is_stdout(output),
        warnings=advice.doubts if as_json else (),  # people read them below the ladder
    )
    if output is not None and not as_json:
        from beamprof.report.page import wrote

        wrote(stderr(), output)
    if show and output is not None:
        open_page(output)
    if not advice.keepable:
        raise typer.Exit(1)


def _load(
    from_vllm: str | None, trace: Path | None, rate: float | None, input_tokens: int | None,
    output_tokens: int | None, model: str | None,
) -> tuple["Load", str]:  # fmt: skip
    """The load, and the model's name where a server told it."""
    from beamprof.advice.load import load_from_rate, load_from_scrape, load_from_trace
    from beamprof.advice.scrape import read_scrape
    from beamprof.traces.importing import open_trace

    if from_vllm is not None and trace is not None:
        raise ReplayError("--from-vllm and --trace are both a load", hint="leave one of them out")
    given = (("--input-tokens", input_tokens), ("--output-tokens", output_tokens))
    told = [flag for flag, tokens in given if tokens is not None]
    if told and (trace is not None or from_vllm is not None):
        source = "a trace" if trace is not None else "a server"
        raise ReplayError(
            f"{source} has lengths of its own", hint=f"leave {' and '.join(told)} out"
        )
    if trace is not None:
        if rate is not None:
            raise ReplayError("a trace has its own rate", hint="leave --rate out")
        name = "standard input" if trace == STDIN else str(trace)
        return load_from_trace(open_trace(trace), name), ""
    if from_vllm is not None:
        scrape = read_scrape(from_vllm, model)
        return load_from_scrape(scrape, rate), scrape.model
    if rate is None:
        raise ReplayError(
            "advice needs a load",
            hint="--from-vllm http://localhost:8000, --trace FILE, or --rate 2 --input-tokens "
            "1000 --output-tokens 200",
        )
    return load_from_rate(
        rate,
        USUAL_INPUT_TOKENS if input_tokens is None else input_tokens,
        USUAL_OUTPUT_TOKENS if output_tokens is None else output_tokens,
    ), ""


def _taken(table: "PerfTable", load: "Load") -> "Load":
    """The load within what the table's model takes, where that is known."""
    from beamprof.advice.load import within
    from beamprof.tables.model_length import longest_request

    most = longest_request(table)
    return load if most is None else within(load, most, table.model)


def _modelled(model: str | None, served: str, device: str | None, tp: int, pp: int) -> "PerfTable":
    """A table from the device's file; nothing is kept."""
    from beamprof.advice.modelled import modelled_table
    from beamprof.devices.device import device_names

    if not (model or served):
        raise ReplayError(
            "advice needs a model", hint="--model llama3-8b, or a table of it: --table FILE"
        )
    if device is None:
        raise ReplayError(
            f"advice on {model or served} needs a table or a GPU",
            cause="a model's name and its load do not say what it runs on",
            hint=f"--device, one of {', '.join(device_names())}; or --table FILE, measured there",
        )
    try:
        made = modelled_table(model or served, device, tp=tp, pp=pp)
    except ModelShapeError as error:
        if model is not None:
            raise
        error.cause = f"that is what the server calls it; {error.cause}"
        error.hint = f"say what it is made of: --model NAME; {error.hint}"
        raise
    note(f"modelled: {made.model} tp{made.tp} pp{made.pp} on {made.device}")
    return made
