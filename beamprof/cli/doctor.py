"""`beam doctor`: hardware, permissions, packages, and locks that were left behind."""

from pathlib import Path
from typing import Annotated

import typer

from beamprof.console import emit


def command(
    restore: Annotated[
        bool,
        typer.Option(
            "--restore", help="Release GPUs that BEAM has locked and whose process is dead."
        ),
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="Could an engine be started with this beam.toml?"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Could BEAM control this machine, and was a GPU left locked? Exit code 1 if not, or if so.

    With --restore the exit code is that of the restoring: 1 where a lock could not be released.
    With --config it is that of the file.

    Before vLLM is started:  beam doctor --config beam.toml
    """
    from beamprof.doctor.diagnose import diagnose
    from beamprof.plain import plain
    from beamprof.report.doctor_view import show_diagnosis

    found = diagnose(restore_orphans=restore, config=config)
    well = found.controls
    if restore:
        well = found.well
    elif config is not None:
        well = found.serves
    emit(
        "doctor",
        {"well": found.well, "controls": found.controls, "serves": found.serves, **plain(found)},
        lambda out: show_diagnosis(found, out),
        as_json=as_json,
        status="ok" if well else "no",
    )
    if not well:
        raise typer.Exit(1)
