"""Show a page that was written, where there is somebody to look at it."""

from pathlib import Path

from beamprof.console import warn
from beamprof.errors import OutputError
from beamprof.files import is_stream


def check_openable(output: Path | None, *, show: bool) -> None:
    """Refuse early to open what is no file.

    Raises:
        OutputError: --open, and the page goes to a stream.
    """
    if show and output is not None and is_stream(output):
        raise OutputError(
            f"--open shows a file: {output} is none", hint="leave --open or --output out"
        )


def open_page(path: Path) -> None:
    """Ask the desktop's browser; without one the page is still there."""
    import webbrowser

    try:
        shown = webbrowser.open(path.resolve().as_uri())
    except (OSError, webbrowser.Error):
        shown = False
    if not shown:
        warn(f"no browser was found to show {path}")
