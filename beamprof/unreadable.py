"""What polars raises where a file is damaged: its own errors, the system's, and panics.

A panic is no Exception: what catches those alone lets it through.
"""

import polars as pl

UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)


def first_line(error: BaseException) -> str:
    """What it says, without polars' long explanations."""
    lines = str(error).splitlines()
    return lines[0][:200] if lines else type(error).__name__
