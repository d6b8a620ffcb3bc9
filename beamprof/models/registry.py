"""Models by name: BEAM's own list, names as people write them, folders and Hugging Face's cache.

registry.toml holds the deciding fields of each config.json, under Hugging Face's names, so one
reader serves files and registry alike.
"""

import os
import re
import tomllib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from beamprof.errors import ModelShapeError
from beamprof.models.config import read_config, shape_of
from beamprof.models.names import letters, meant
from beamprof.models.shape import ModelShape


def resolve_model(model: str, *, dtype: str | None = None) -> ModelShape:
    """A registry name or alias, a Hugging Face id, or a folder (or its config.json).

    A Hugging Face id is looked up in the local cache first, then in the registry by its name.
    Nothing is downloaded.

    Raises:
        ModelShapeError: none of them is found, or the config cannot be understood.
    """
    try:
        path = Path(model).expanduser()
        is_folder = bool(model.strip()) and path.is_dir()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, a home that is nobody's
        path, is_folder = Path(), False
    if is_folder or path.suffix == ".json":
        return read_config(path / "config.json" if is_folder else path, dtype=dtype)
    cached = cached_config(model)
    if cached is not None:
        config = read_config(cached, dtype=dtype)
        return _named(config, model.rpartition("/")[2].lower())
    name = registry_name(model)
    if name is not None:
        return _shape(name, dtype)
    raise ModelShapeError(
        f"unknown model {model!r}",
        cause="it is neither in BEAM's registry, nor in the local Hugging Face cache, nor a "
        "directory with a config.json",
        hint=f"{meant(model, _names())}known models: {', '.join(sorted(entries()))}; or give a "
        "directory that holds the model's config.json",
    )


def registry_name(model: str) -> str | None:
    """The registry's name for what somebody calls a model; None where it is not there."""
    wanted = model.strip().lower()
    names = _names()
    for name in (wanted, wanted.rpartition("/")[2]):
        if name in names:
            return names[name]
    by_letters = {letters(name): ours for name, ours in names.items()}
    return by_letters.get(letters(wanted.rpartition("/")[2]))


def table_names(model: str) -> set[str]:
    """What tables of a model may call it: as written, as the registry does, after its folder."""
    names = {model, registry_name(model) or model, model.rpartition("/")[2].lower()}
    try:
        path = Path(model).expanduser()
        folder = path if path.is_dir() else path.parent if path.suffix == ".json" else None
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, a home that is nobody's
        folder = None
    return names if folder is None else {*names, folder.resolve().name}


@cache
def registry() -> dict[str, ModelShape]:
    """The models BEAM knows by name (registry.toml, each with its source)."""
    return {name: _shape(name, None) for name in entries()}


@cache
def entries() -> dict[str, dict[str, Any]]:
    """registry.toml as it stands: Hugging Face id, aliases, config."""
    text = resources.files("beamprof.models").joinpath("registry.toml").read_text("utf-8")
    return tomllib.loads(text)


def registered_config(name: str) -> dict[str, Any]:
    """The config.json of a registry entry: what an engine needs to build its shape."""
    entry = entries()[name]
    base = entries()[entry["like"]]["config"] if "like" in entry else {}
    return {**base, **entry.get("config", {})}


def _shape(name: str, dtype: str | None) -> ModelShape:
    return shape_of(registered_config(name), name, f"registry entry {name}", dtype=dtype)


@cache
def _names() -> dict[str, str]:
    """Every way to write an entry's name, in lower case."""
    names = {}
    for name, entry in entries().items():
        for written in (
            name,
            entry["id"],
            entry["id"].rpartition("/")[2],
            *entry.get("aliases", ()),
        ):
            names[written.lower()] = name
    return names


def cached_config(model: str) -> Path | None:
    """The config.json of a Hugging Face id in the local cache, the latest revision; or None."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        return None
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    folder = hub / f"models--{model.replace('/', '--')}" / "snapshots"
    try:
        found = sorted(folder.glob("*/config.json"), key=lambda file: file.stat().st_mtime)
    except OSError:
        return None
    return found[-1] if found else None


def _named(shape: ModelShape, name: str) -> ModelShape:
    from dataclasses import replace

    return replace(shape, name=name)
