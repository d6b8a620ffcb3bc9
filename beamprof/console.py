"""Where words go: results to stdout, everything else to stderr, JSON when asked.

``--json`` prints exactly one object {schema, command, status, data, warnings} on stdout.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console

JSON_SCHEMA = "beam.cli/1"
MAX_WIDTH = 100


def stdout() -> Console:
    """Results. Never wider than 100 columns; plain where there is no terminal."""
    return _console(stderr=False)


def stderr() -> Console:
    """Progress, notes, warnings and errors."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False, soft_wrap=False)
    console.width = min(console.width, MAX_WIDTH) if console.is_terminal else MAX_WIDTH
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
    render: Callable[[Console], None],
    *,
    as_json: bool,
    status: str = "ok",
    warnings: list[str] | None = None,
) -> None:
    """Print a command's result: as one JSON object, or by ``render`` for people."""
    warnings = warnings or []
    if as_json:
        envelope = {
            "schema": JSON_SCHEMA,
            "command": command,
            "status": status,
            "data": data,
            "warnings": warnings,
        }
        sys.stdout.write(json.dumps(envelope, indent=2, allow_nan=False) + "\n")
        return
    render(stdout())
    for text in warnings:
        warn(text)
