"""`beam doctor`: hardware, permissions, packages, and locks that were left behind."""

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
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """What is here, what may be done, and whether a GPU was left locked. Exit code 1 if so."""
    from beamprof.doctor.diagnose import diagnose
    from beamprof.plain import plain
    from beamprof.report.doctor_view import show_diagnosis

    found = diagnose(restore_orphans=restore)
    emit(
        "doctor",
        {"well": found.well, **plain(found)},
        lambda out: show_diagnosis(found, out),
        as_json=as_json,
        status="ok" if found.well else "no",
    )
    if not found.well:
        raise typer.Exit(1)
