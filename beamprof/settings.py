"""Settings from four places: flag > BEAM_* variable > TOML > default, origins remembered.

One record per setting gives its TOML key, its flag, its environment variable, its default and
its documentation, so that the reader, the page that shows a file and the template cannot disagree.
"""

import difflib
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beamprof.errors import SweepError


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: ``key`` in TOML, BEAM_<KEY> in the environment, ``field`` where it ends.

    ``read`` is given the value as written and a name for its message; it raises SweepError.
    """

    key: str
    field: str
    read: Callable[[object, str], Any]
    default: object
    doc: str
    example: str

    @property
    def flag(self) -> str:
        """As the command line spells it."""
        return f"--{self.key.replace('_', '-')}"

    @property
    def variable(self) -> str:
        """As the environment spells it."""
        return f"BEAM_{self.key.upper()}"


def resolve(
    settings: Sequence[Setting],
    flags: Mapping[str, object],
    environment: Mapping[str, str],
    path: Path | None,
    hint: str,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Merge flags, BEAM_* variables, a TOML file and defaults.

    Args:
        settings: what there is to set.
        flags: by setting key, None = not given.
        environment: usually os.environ; only BEAM_<KEY> of known settings is read.
        path: of the file; None = none.
        hint: the command that shows how such a file is written.

    Returns:
        The values by field, and where each came from by key.

    Raises:
        SweepError: an unknown key, a wrong unit, a missing or broken file.
    """
    written = _read_file(path, settings, hint) if path else {}
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for setting in settings:
        if flags.get(setting.key) is not None:
            value, origin = setting.read(flags[setting.key], setting.flag), setting.flag
        elif environment.get(setting.variable):
            value = setting.read(environment[setting.variable], setting.variable)
            origin = setting.variable
        elif path and setting.key in written:
            value = setting.read(written[setting.key], f"{path.name}: {setting.key}")
            origin = path.name
        else:
            value, origin = setting.default, "default"
        values[setting.field], origins[setting.key] = value, origin
    return values, origins


def a_name(value: object, name: str) -> str:
    """A name. Raises SweepError where it is none."""
    if not isinstance(value, str) or not value.strip():
        raise SweepError(f"{name}: expected a name, found {value!r}")
    return value.strip()


def whole(least: int) -> Callable[[object, str], int]:
    """A reader of whole numbers of ``least`` or more. It raises SweepError."""

    def read(value: object, name: str) -> int:
        if isinstance(value, str) and value.strip().removeprefix("-").isdecimal():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise SweepError(f"{name}: expected a whole number of {least} or more, found {value!r}")
        return value

    return read


def template(settings: Sequence[Setting], heading: Sequence[str]) -> str:
    """A commented file: every key with its meaning, commented out."""
    lines = [f"# {line}" for line in heading]
    for setting in settings:
        lines += ["", f"# {setting.doc}", f"# {setting.key} = {setting.example}"]
    return "\n".join(lines) + "\n"


def _read_file(path: Path, settings: Sequence[Setting], hint: str) -> dict[str, object]:
    """The keys of a TOML file, still as written."""
    try:
        written = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SweepError(f"cannot read {path}", cause=error.strerror, hint=hint) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SweepError(f"{path} is not TOML", cause=str(error), hint=hint) from None
    known = [setting.key for setting in settings]
    for key in written:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            raise SweepError(
                f"{path}: unknown key {key!r}",
                cause=f"keys are {', '.join(known)}",
                hint=f"did you mean {close[0]!r}?" if close else hint,
            )
    return written
