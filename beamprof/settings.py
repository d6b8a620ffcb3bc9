"""Settings from five places: flag > BEAM_* variable > TOML > the user's file > default.

Where each value came from is remembered. The user's file is config.toml in $XDG_CONFIG_HOME/beam or
~/.config/beam, with one section for each command that has settings: [profile].

One record per setting gives its TOML key, its flag, its environment variable, its default and
its documentation, so that the reader, the page that shows a file and the template cannot disagree.
"""

import difflib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beam_runtime.engines import toml
from beamprof.errors import SweepError
from beamprof.files import STDIN

_WHOLE = re.compile(r"-?[0-9]{1,18}")


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
    section: str | None = None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Merge flags, BEAM_* variables, a TOML file, the user's file and defaults.

    Args:
        settings: what there is to set.
        flags: by setting key, None = not given.
        environment: usually os.environ; BEAM_<KEY> of known settings is read, and where the
            user's file lies.
        path: of the file; None = none.
        hint: the command that shows how such a file is written.
        section: of the user's file; None = it is not read.

    Returns:
        The values by field, and where each came from by key.

    Raises:
        SweepError: an unknown key, a wrong unit, a missing or broken file.
    """
    written = _read_file(path, settings, hint) if path else {}
    user = user_config(environment) if section else None
    usual = _section(user, section, settings) if user and section else {}
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for setting in settings:
        if flags.get(setting.key) is not None:
            value, origin = setting.read(flags[setting.key], setting.flag), setting.flag
        elif environment.get(setting.variable):
            value = setting.read(environment[setting.variable], setting.variable)
            origin = setting.variable
        elif path and setting.key in written:
            origin = "standard input" if path == STDIN else path.name
            value = setting.read(written[setting.key], f"{origin}: {setting.key}")
        elif user and setting.key in usual:
            value = setting.read(usual[setting.key], f"{user}: {setting.key}")
            origin = str(user)
        else:
            value, origin = setting.default, "default"
        values[setting.field], origins[setting.key] = value, origin
    return values, origins


def user_config(environment: Mapping[str, str]) -> Path | None:
    """The user's file, where there is one."""
    home = environment.get("HOME")
    folder = environment.get("XDG_CONFIG_HOME") or (f"{home}/.config" if home else "")
    path = Path(folder) / "beam" / "config.toml"
    try:
        return path if folder and path.is_file() else None
    except OSError:
        return None


def a_name(value: object, name: str) -> str:
    """A name. Raises SweepError where it is none."""
    if not isinstance(value, str) or not value.strip():
        raise SweepError(f"{name}: expected a name, found {value!r}")
    return value.strip()


def whole(least: int, most: int | None = None) -> Callable[[object, str], int]:
    """A reader of whole numbers from ``least`` up, to ``most`` at most. It raises SweepError."""

    def read(value: object, name: str) -> int:
        if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
            value = int(value.strip())
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise SweepError(f"{name}: expected a whole number of {least} or more, found {value!r}")
        if most is not None and value > most:
            raise SweepError(f"{name}: expected {most:,} at most, found {value:,}")
        return value

    return read


def template(settings: Sequence[Setting], heading: Sequence[str]) -> str:
    """A commented file: every key with its meaning, commented out."""
    lines = [f"# {line}" for line in heading]
    for setting in settings:
        lines += ["", f"# {setting.doc}", f"# {setting.key} = {setting.example}"]
    return "\n".join(lines) + "\n"


def _section(path: Path, section: str, settings: Sequence[Setting]) -> dict[str, object]:
    """One command's keys of the user's file, still as written."""
    hint = f"[{section}] and below it lines as beam sweep init writes them"
    written = _read_toml(path, hint)
    _check_keys(f"{path}: section", written, [section], hint)
    found = written.get(section, {})
    if not isinstance(found, dict):
        raise SweepError(f"{path}: {section} should be a section", hint=hint)
    _check_keys(f"{path}: [{section}]", found, [setting.key for setting in settings], hint)
    return found


def _read_file(path: Path, settings: Sequence[Setting], hint: str) -> dict[str, object]:
    """The keys of a TOML file, still as written."""
    written = _read_toml(path, hint)
    _check_keys(str(path), written, [setting.key for setting in settings], hint)
    return written


def _read_toml(path: Path, hint: str) -> dict[str, Any]:
    try:
        return toml.loads(sys.stdin.read()) if path == STDIN else toml.load(path)
    except OSError as error:
        raise SweepError(f"cannot read {path}", cause=error.strerror, hint=hint) from None
    except ValueError as error:  # no TOML, or no text
        raise SweepError(f"{path} is not TOML", cause=str(error), hint=hint) from None


def _check_keys(where: str, written: Mapping[str, object], known: list[str], hint: str) -> None:
    for key in written:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            raise SweepError(
                f"{where}: unknown key {key!r}",
                cause=f"keys are {', '.join(known)}",
                hint=f"did you mean {close[0]!r}?" if close else hint,
            )
