"""The command that helps where a foreign file needs to be told about, for hints.

Whoever reads traces may meet such a file, and `beam trace import` alone has flags to tell about it:
one wording for all, which names that command.
"""

from pathlib import Path
from shlex import quote

FROM_STDIN = Path("standard input")  # what messages call it


def import_with(path: Path, *flags: str) -> str:
    """``beam trace import FILE FLAGS``, the alternatives with "or" between them.

    Args:
        path: of the file, as messages call it.
        flags: what helps, each in full.
    """
    file = "-" if path == FROM_STDIN else quote(str(path))
    first, *others = flags
    either = "".join(f", or {other}" for other in others)
    return f"beam trace import {file} {first}{either}; then use the trace that it writes"
