"""The options that say what requests are promised: the same words for every command."""

from typing import Annotated

import typer

SloTtft = Annotated[str, typer.Option("--slo-ttft", help="Time to first token.")]
SloTbt = Annotated[
    str | None,
    typer.Option(
        "--slo-tbt",
        "--slo-itl",
        help="Every gap between tokens, or a share: 200ms@99% [default: 200ms].",
    ),
]
SloTpot = Annotated[
    str | None, typer.Option("--slo-tpot", help="Instead: a request's mean time per token.")
]
SloE2e = Annotated[str | None, typer.Option("--slo-e2e", help="Instead: the whole request.")]
SloClass = Annotated[
    list[str] | None,
    typer.Option(
        "--slo-class",
        metavar="NAME=TTFT/TBT",
        help="Of requests whose slo_class in the trace is NAME, e.g. batch=10s/500ms; again "
        "for each class.",
    ),
]
