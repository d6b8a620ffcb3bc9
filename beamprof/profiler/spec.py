"""What a sweep should measure: flag > BEAM_* variable > TOML > config.toml > default.

A setting left at None is chosen later, where the device and model are known (plan.py).
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from beamprof.errors import SweepError
from beamprof.files import STDIN, there_is, user_path
from beamprof.settings import Setting, a_name, resolve, template, whole
from beamprof.units import ClockMode, Clocks, parse_clocks, parse_duration_s, parse_power_w


@dataclass(frozen=True, slots=True)
class SweepSpec:
    """The settings of one sweep, resolved; times in seconds, power in watts.

    ``origins`` names for each setting where its value came from.
    """

    model: str | None
    tp: int
    pp: int
    ep: int
    dp: int
    dtype: str | None
    kv_cache_dtype: str
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


# Beyond it no interval narrows by what the hours cost: it goes with the root of their number.
MOST_TRIALS = 100

SETTINGS: tuple[Setting, ...] = (
    Setting("model", "model", a_name, None,
            "registry name, Hugging Face id or directory with config.json",
            '"llama3-70b"'),
    Setting("tp", "tp", whole(1), 1, "tensor-parallel GPUs of a stage", "2"),
    Setting("pp", "pp", whole(1), 1, "pipeline stages", "4"),
    Setting("ep", "ep", whole(1), 1,
            "GPUs that share a layer's experts whole; with 1 they are cut by width like an MLP",
            "2"),
    Setting("dp", "dp", whole(1), 1,
            "groups of tp GPUs with requests of their own that share a layer's experts", "2"),
    Setting("dtype", "dtype", a_name, None,
            "what is not quantised is served in this; as engines choose, 16 bit", '"bfloat16"'),
    Setting("kv_cache_dtype", "kv_cache_dtype", a_name, "auto",
            "format of the KV cache: auto, bfloat16, fp8", '"fp8"'),
    Setting("backend", "backend", a_name, None,
            "modelled, torch or vllm; chosen by what is found here", '"modelled"'),
    Setting("device", "device", a_name, None,
            "device file, e.g. a100-sxm4-80gb; the GPU found here", '"a100-sxm4-80gb"'),
    Setting("clocks", "clocks", parse_clocks, Clocks(mode=ClockMode.AUTO),
            "SM clocks in MHz: 510:1410:120, a list, auto (nine over the useful range), all, or "
            "current (touch nothing)", '"510:1410:120"'),
    Setting("max_tokens", "max_tokens", whole(8), 1024,
            "largest step, in new tokens: the largest chunk a controller may then choose", "1024"),
    Setting("max_decodes", "max_decodes", whole(1), 256,
            "largest decode batch, in requests (vLLM's max_num_seqs)", "256"),
    Setting("max_context", "max_context", whole(16), None,
            "longest context of one request, in tokens; the model's own up to 8192", "8192"),
    Setting("cells_per_clock", "cells_per_clock", whole(12), 60,
            "at most so many passes are told apart at each clock", "60"),
    Setting("trials", "trials", whole(1, MOST_TRIALS), None,
            "how often each cell is measured; 2, and 1 where modelled", "2"),
    Setting("window", "window_s", parse_duration_s, None,
            "how long one trial repeats its pass; 0.8s to 2.5s, what the budget leaves", '"1s"'),
    Setting("budget", "budget_s", parse_duration_s, 900.0,
            "time for the whole sweep; fewer clocks and cells are measured to keep it", '"15m"'),
    Setting("seed", "seed", whole(0), 0, "order in which cells are measured", "0"),
    Setting("assume_power", "assume_power_w", parse_power_w, None,
            "power to record where no energy counter can be read; marked as assumed", '"65W"'),
)  # fmt: skip


_HINT = "see: beam sweep init"


def resolve_spec(
    flags: Mapping[str, object] | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    sweep: str | None = None,
) -> SweepSpec:
    """Merge flags, BEAM_* variables, a sweep file, the user's config.toml and defaults.

    Args:
        flags: by setting key, None = not given.
        environment: usually os.environ; only BEAM_<KEY> of known settings is read.
        sweep: name of a sweep that BEAM ships, or a path to a TOML file.

    Raises:
        SweepError: an unknown key, a wrong unit, a missing or broken file.
    """
    path = find_sweep(sweep) if sweep is not None else None
    values, origins = resolve(
        SETTINGS, flags or {}, environment or {}, path, _HINT, section="profile"
    )
    return SweepSpec(**values, origins=origins)


def find_sweep(name: str) -> Path:
    """The file of a shipped sweep, or the path that ``name`` is.

    Raises:
        SweepError: neither exists; the hint lists the shipped ones.
    """
    path = user_path(name)
    if path == STDIN:
        return path
    if path.suffix == ".toml" or len(path.parts) > 1:
        if there_is(path):
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


def sweep_template() -> str:
    """A commented sweep file: every key with its meaning, commented out."""
    return template(
        SETTINGS,
        (
            "A sweep for beam profile --sweep THIS-FILE. Every line is optional;",
            "flags and BEAM_* variables go before it. Times and powers carry units.",
        ),
    )
