"""Tell whoever waits that numba is compiling, the first time a machine runs a search or a plant."""

import os
from importlib.util import find_spec
from pathlib import Path

from beamprof.console import note


def say_if_first(package: str) -> None:
    """Say it where ``package`` (dotted) has no compiled code on disk yet."""
    spec = find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    if folders and not _compiled(Path(folders[0])):
        note("compiling, once after each install: up to a minute")


def _compiled(folder: Path) -> bool:
    """Whether numba has kept anything of a folder's code, beside it or where it was told to."""
    elsewhere = os.environ.get("NUMBA_CACHE_DIR")
    if elsewhere:  # in a folder named after this one, and a hash
        return any(Path(elsewhere).glob(f"{folder.name}_*/*.nbi"))
    return any((folder / "__pycache__").glob("*.nbi"))
