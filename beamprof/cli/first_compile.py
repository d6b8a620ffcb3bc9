"""Tell whoever waits that numba is compiling, the first time a machine runs a search or a plant."""

from importlib.util import find_spec
from pathlib import Path

from beamprof.console import note


def say_if_first(package: str) -> None:
    """Say it where ``package`` (dotted) has no compiled code beside its sources yet."""
    spec = find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    if folders and not any((Path(folders[0]) / "__pycache__").glob("*.nbi")):
        note("compiling, once after each install: up to a minute")
