"""Where words go: results to stdout, everything else to stderr, JSON when asked.

``--json`` prints exactly one object {schema, command, status, data, warnings} on stdout.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

JSON_SCHEMA = "beam.cli/1"
MAX_WIDTH = 100


def stdout() -> "Console":
    """Results. Never wider than 100 columns; plain where there is no terminal."""
    return _console(stderr=False)


def stderr() -> "Console":
    """Progress, notes, warnings and errors."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> "Console":
    # rich takes longer to import than the rest of `beam --help`.
    from beamprof.printed import PrintedConsole

    console = PrintedConsole(stderr=stderr, highlight=False, soft_wrap=False)
    asked = console.is_terminal or os.environ.get("COLUMNS", "").isdecimal()
    console.width = min(console.width, MAX_WIDTH) if asked else MAX_WIDTH
    return console


def note(text: str) -> None:
    """One line of what was chosen and why, on stderr."""
    stderr().print(text, style="dim", markup=False)


def warn(text: str) -> None:
    """One warning on stderr."""
    stderr().print(f"warning: {text}", style="yellow", markup=False)


def emit(
    command: str,
    data: Any,
    render: Callable[["Console"], None],
    *,
    as_json: bool,
    status: str = "ok",
    warnings: Sequence[str] = (),
    stdout_taken: bool = False,
) -> None:
    """Print a command's result: as one JSON object, or by ``render`` for people.

    Args:
        command: its words, e.g. ``table inspect``.
        data: JSON values.
        render: for people.
        as_json: which of the two.
        status: ok, no, incomplete or interrupted.
        warnings: said on stderr, or in the object.
        stdout_taken: the output itself went to stdout (``-o -``): words go to stderr.
    """
    if as_json:
        write_json(command, status, data, warnings)
        return
    render(stderr() if stdout_taken else stdout())
    for text in warnings:
        warn(text)


def write_json(command: str | None, status: str, data: Any, warnings: Sequence[str] = ()) -> None:
    """The one object of --json."""
    envelope = {
        "schema": JSON_SCHEMA,
        "command": command,
        "status": status,
        "data": data,
        "warnings": list(warnings),
    }
    sys.stdout.write(json.dumps(envelope, indent=2, allow_nan=False) + "\n")
