"""`beam sweep`: what a sweep will do, and a file to start one's own from."""

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from beamprof.cli.grouped import Examples
from beamprof.cli.variables import note_mistyped

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    cls=Examples,
    help="Show a sweep with the origin of every value, or begin one's own.",
    no_args_is_help=True,
)


@app.command("show", short_help="Print a sweep, and where each value comes from.")
def show(
    name: Annotated[
        str | None,
        typer.Argument(help="A sweep that BEAM ships, or a TOML file; without it the defaults."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Print a sweep as `beam profile` would read it here, with the origin of every value.

    For example:  BEAM_BUDGET=5m beam sweep show
    """
    import os

    from beamprof.console import emit
    from beamprof.profiler.spec import SETTINGS, resolve_spec, shipped_sweeps
    from beamprof.settings import user_config

    spec = resolve_spec(environment=os.environ, sweep=name)
    note_mistyped(os.environ)
    values = {setting.key: getattr(spec, setting.field) for setting in SETTINGS}
    data = {
        key: {
            "value": value if value is None or isinstance(value, int | float) else str(value),
            "origin": spec.origins[key],
        }
        for key, value in values.items()
    }

    def render(console: "Console") -> None:
        from rich.table import Table

        title = name or "the defaults"
        console.print(f"{title}: flags of beam profile go before every value here.", markup=False)
        grid = Table(box=None, pad_edge=False)
        for heading in ("setting", "value", "origin"):
            grid.add_column(heading)
        units = {setting.key: setting.field for setting in SETTINGS}
        for key, entry in data.items():
            grid.add_row(key, _with_unit(units[key], entry["value"]), str(entry["origin"]))
        console.print(grid)
        yours = user_config(os.environ)
        console.print(f"yours: {yours or 'no ~/.config/beam/config.toml'}", markup=False)
        console.print(f"shipped: {', '.join(shipped_sweeps())}", markup=False)
        use = f" --sweep {name}" if name else ""
        console.print(f"next: beam profile --model MODEL{use} --dry-run", markup=False)

    emit("sweep show", data, render, as_json=as_json)


@app.command("init", short_help="Write a commented TOML with every setting.")
def init(
    path: Annotated[Path, typer.Argument(help="The file to write; -: stdout.")] = Path(
        "sweep.toml"
    ),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Write a commented TOML with every setting, its meaning and an example.

    For example:  beam sweep init mine.toml
    """
    from beamprof.cli.streams import named_as, one_on_stdout
    from beamprof.console import emit
    from beamprof.files import is_stdout, written_whole
    from beamprof.profiler.spec import sweep_template

    one_on_stdout(path, as_json=as_json)
    named_as(path, "a sweep", ".toml", how="beam sweep init")
    with written_whole(path, force=force) as temporary:
        temporary.write_text(sweep_template(), "utf-8")

    def render(console: "Console") -> None:
        from beamprof.report.page import next_command, wrote

        wrote(console, path)
        next_command(console, f"beam profile --model MODEL --sweep {quote(str(path))} --dry-run")

    emit("sweep init", {"path": str(path)}, render, as_json=as_json, stdout_taken=is_stdout(path))


def _with_unit(field: str, value: object) -> str:
    if value is None:
        return "chosen later"
    for suffix, unit in (("_s", " s"), ("_w", " W")):
        if field.endswith(suffix):
            return f"{value:g}{unit}"
    return str(value)
