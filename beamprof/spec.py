"""What a sweep should measure: flag > BEAM_* variable > TOML > default, origins remembered.

One record per setting gives its TOML key, its environment variable, its default and its
documentation, so that `beam sweep show`, `beam sweep init` and the reader cannot disagree.
A setting left at None is chosen later, where the device and model are known (beamprof.plan).
"""

import difflib
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from beamprof.errors import SweepError
from beamprof.units import ClockMode, Clocks, parse_clocks, parse_duration_s, parse_power_w


@dataclass(frozen=True, slots=True)
class SweepSpec:
    """The settings of one sweep, resolved; times in seconds, power in watts.

    ``origins`` names for each setting where its value came from.
    """

    model: str | None
    tp: int
    pp: int
    backend: str | None
    device: str | None
    clocks: Clocks
    max_tokens: int
    max_decodes: int
    max_context: int | None
    cells_per_clock: int
    trials: int | None
    window_s: float | None
    budget_s: float
    seed: int
    assume_power_w: float | None
    origins: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: ``key`` in TOML, BEAM_<KEY> in the environment, ``field`` in SweepSpec."""

    key: str
    field: str
    read: Callable[[object, str], Any]
    default: object
    doc: str
    example: str


def _text(value: object, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise SweepError(f"{name}: expected a name, found {value!r}")
    return value.strip()


def _whole(least: int) -> Callable[[object, str], int]:
    def read(value: object, name: str) -> int:
        if isinstance(value, str) and value.strip().removeprefix("-").isdecimal():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise SweepError(f"{name}: expected a whole number of {least} or more, found {value!r}")
        return value

    return read


SETTINGS: tuple[Setting, ...] = (
    Setting("model", "model", _text, None, "registry name or directory with config.json",
            '"llama3-70b"'),
    Setting("tp", "tp", _whole(1), 1, "tensor-parallel GPUs of a stage", "2"),
    Setting("pp", "pp", _whole(1), 1, "pipeline stages", "4"),
    Setting("backend", "backend", _text, None, "modelled or torch; chosen by what is found here",
            '"modelled"'),
    Setting("device", "device", _text, None, "device file, e.g. a100-sxm4-80gb; the GPU found here",
            '"a100-sxm4-80gb"'),
    Setting("clocks", "clocks", parse_clocks, Clocks(mode=ClockMode.AUTO),
            "SM clocks in MHz: 510:1410:120, a list, auto (nine over the useful range), all, or "
            "current (touch nothing)", '"510:1410:120"'),
    Setting("max_tokens", "max_tokens", _whole(8), 1024,
            "largest step, in new tokens: the largest chunk a controller may then choose", "1024"),
    Setting("max_decodes", "max_decodes", _whole(1), 256,
            "largest decode batch, in requests (vLLM's max_num_seqs)", "256"),
    Setting("max_context", "max_context", _whole(16), None,
            "longest context of one request, in tokens; the model's own up to 8192", "8192"),
    Setting("cells_per_clock", "cells_per_clock", _whole(12), 60,
            "at most so many passes are told apart at each clock", "60"),
    Setting("trials", "trials", _whole(1), None,
            "how often each cell is measured; 2, and 1 where modelled", "2"),
    Setting("window", "window_s", parse_duration_s, None,
            "how long one trial repeats its pass; 0.8s to 2.5s, what the budget leaves", '"1s"'),
    Setting("budget", "budget_s", parse_duration_s, 900.0,
            "time for the whole sweep; fewer clocks and cells are measured to keep it", '"15m"'),
    Setting("seed", "seed", _whole(0), 0, "order in which cells are measured", "0"),
    Setting("assume_power", "assume_power_w", parse_power_w, None,
            "power to record where no energy counter can be read; marked as assumed", '"65W"'),
)  # fmt: skip


def resolve_spec(
    flags: Mapping[str, object] | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    sweep: str | None = None,
) -> SweepSpec:
    """Merge flags, BEAM_* variables, a sweep file and defaults.

    Args:
        flags: by setting key, None = not given.
        environment: usually os.environ; only BEAM_<KEY> of known settings is read.
        sweep: name of a sweep that BEAM ships, or a path to a TOML file.

    Raises:
        SweepError: an unknown key, a wrong unit, a missing or broken file.
    """
    flags, environment = flags or {}, environment or {}
    path = find_sweep(sweep) if sweep is not None else None
    written = read_sweep(path) if path else {}
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for setting in SETTINGS:
        flag = f"--{setting.key.replace('_', '-')}"
        variable = f"BEAM_{setting.key.upper()}"
        if flags.get(setting.key) is not None:
            value, origin = setting.read(flags[setting.key], flag), flag
        elif environment.get(variable):
            value, origin = setting.read(environment[variable], variable), variable
        elif path and setting.key in written:
            value = setting.read(written[setting.key], f"{path.name}: {setting.key}")
            origin = path.name
        else:
            value, origin = setting.default, "default"
        values[setting.field], origins[setting.key] = value, origin
    return SweepSpec(**values, origins=origins)


def find_sweep(name: str) -> Path:
    """The file of a shipped sweep, or the path that ``name`` is.

    Raises:
        SweepError: neither exists; the hint lists the shipped ones.
    """
    path = Path(name).expanduser()
    if path.suffix == ".toml" or len(path.parts) > 1:
        if path.is_file():
            return path
        raise SweepError(f"no sweep file {path}", hint="write one: beam sweep init")
    shipped = shipped_sweeps()
    if name in shipped:
        return shipped[name]
    close = difflib.get_close_matches(name, shipped, n=1)
    raise SweepError(
        f"unknown sweep {name!r}",
        cause=f"did you mean {close[0]}?" if close else None,
        hint=f"known sweeps: {', '.join(sorted(shipped))}; or give a path to a .toml file",
    )


def shipped_sweeps() -> dict[str, Path]:
    """Sweeps by name: inside the package where installed, beside it in a checkout."""
    package = Path(str(resources.files("beamprof")))
    for folder in (package / "sweeps", package.parent / "sweeps"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.toml"))}
    return {}


def read_sweep(path: Path) -> dict[str, object]:
    """The keys of a sweep file, still as written.

    Raises:
        SweepError: unreadable, not TOML, or a key that is no setting.
    """
    try:
        written = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SweepError(f"cannot read {path}", cause=error.strerror) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SweepError(
            f"{path} is not TOML", cause=str(error), hint="see: beam sweep init"
        ) from None
    known = [setting.key for setting in SETTINGS]
    for key in written:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            raise SweepError(
                f"{path}: unknown key {key!r}",
                cause=f"keys are {', '.join(known)}",
                hint=f"did you mean {close[0]!r}?" if close else "see: beam sweep init",
            )
    return written


def sweep_template() -> str:
    """A commented sweep file: every key with its meaning, commented out."""
    lines = [
        "# A sweep for beam profile --sweep THIS-FILE. Every line is optional;",
        "# flags and BEAM_* variables go before it. Times and powers carry units.",
    ]
    for setting in SETTINGS:
        lines += ["", f"# {setting.doc}", f"# {setting.key} = {setting.example}"]
    return "\n".join(lines) + "\n"
