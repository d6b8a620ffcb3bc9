"""What a study plays: a grid, from flags, BEAM_* variables, a TOML file and defaults.

    tables = ["70b.parquet"]                       what the policies know, and what is true
    traces = ["evening.csv", "burst.parquet"]
    slos = ["1s/200ms", "1s/tpot=100ms"]           TTFT/TBT, or another kind of streaming
    slo_class = ["batch=10s/500ms"]                of the traces' classes, in every cell
    policies = ["vanilla", "static:best", "beam"]
    noises = [0.0, 0.03]                           without them, as the assumptions have it
    seeds = "0:4:1"

Paths are relative to the folder that the command is run in.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from beam_runtime.types import Slo
from beamprof.errors import SweepError
from beamprof.files import there_is, user_path
from beamprof.replay.assumptions import Assumptions
from beamprof.replay.options import ReplayOptions
from beamprof.settings import Setting, a_name, resolve, template, whole
from beamprof.slo import parse_classes, parse_slo
from beamprof.traces.policies import OverLimit
from beamprof.units import parse_duration_s, parse_power_w

Item = TypeVar("Item")
_MOST_SEEDS = 10_000


@dataclass(frozen=True, slots=True)
class StudySpec:
    """The grid (tables x traces x slos x policies x noises x seeds) and what all cells share.

    The rest is as in ReplayOptions, None = as the assumptions have it; ``origins`` names where
    each setting's value came from.
    """

    tables: tuple[Path, ...]
    traces: tuple[Path, ...]
    slos: tuple[Slo, ...]
    classes: tuple[tuple[str, Slo], ...]
    policies: tuple[str, ...]
    noises: tuple[float, ...]
    seeds: tuple[int, ...]
    assumptions: Assumptions
    host_gap_ms: float | None
    front_end_ms: float | None
    idle_power_w: float | None
    kv_blocks: int | None
    max_model_len: int | None
    over_limit: OverLimit
    concurrency: int | None
    origins: Mapping[str, str]


def _list_of(read: Callable[[object, str], Item]) -> Callable[[object, str], tuple[Item, ...]]:
    """A reader of TOML arrays and of text with commas; repeats count once."""

    def read_all(value: object, name: str) -> tuple[Item, ...]:
        items = value.split(",") if isinstance(value, str) else value
        items = list(items) if isinstance(items, list | tuple) else [items]
        if not items:
            raise SweepError(f"{name}: expected at least one value, found none")
        return tuple(dict.fromkeys(read(item, name) for item in items))

    return read_all


def _paths(value: object, name: str) -> tuple[Path, ...]:
    """Files; text with a comma is split where it does not name a file itself."""
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list | tuple) or not given:
        raise SweepError(f"{name}: expected files, found {value!r}")
    found: list[Path] = []
    for text in given:
        parts = [text] if there_is(user_path(a_name(text, name))) else text.split(",")
        found += [user_path(a_name(part, name)) for part in parts]
    return tuple(dict.fromkeys(found))


def _classes(value: object, name: str) -> tuple[tuple[str, Slo], ...]:
    return parse_classes(_list_of(a_name)(value, name), name)


def _ms(value: object, name: str) -> float:
    return parse_duration_s(value, name) * 1e3


def _share(value: object, name: str) -> float:
    try:
        share = float(value) if isinstance(value, int | float | str) else -1.0
    except ValueError:
        share = -1.0
    if isinstance(value, bool) or not 0.0 <= share < 1.0:
        raise SweepError(
            f"{name}: expected a share of a step's time from 0 up to 1, found {value!r}",
            hint="0.03 lets every step take 3 % more or less",
        )
    return share


def _seeds(value: object, name: str) -> tuple[int, ...]:
    """Whole numbers, or lo:hi:step with hi included."""
    if not isinstance(value, str) or ":" not in value:
        return _list_of(whole(0))(value, name)
    parts = value.split(":")
    if len(parts) not in (2, 3):
        raise SweepError(f"{name}: a range is lo:hi:step, found {value!r}", hint="such as 0:19:1")
    low, high = (whole(0)(part, name) for part in parts[:2])
    step = whole(1)(parts[2], name) if len(parts) == 3 else 1
    seeds = range(low, high + 1, step)
    count = max(0, (high - low) // step + 1)
    if not 0 < count <= _MOST_SEEDS:
        raise SweepError(f"{name}: {value!r} means {count:,} seeds")
    return tuple(seeds)


def _assumptions(value: object, name: str) -> Assumptions:
    if value not in tuple(Assumptions):
        raise SweepError(f"{name}: expected {' or '.join(Assumptions)}, found {value!r}")
    return Assumptions(str(value))


def _over_limit(value: object, name: str) -> OverLimit:
    if value not in tuple(OverLimit):
        raise SweepError(f"{name}: expected {', '.join(OverLimit)}, found {value!r}")
    return OverLimit(str(value))


USUAL_POLICIES = ("vanilla", "static:best", "window-dvfs", "beam-paper", "beam", "oracle")
SETTINGS: tuple[Setting, ...] = (
    Setting("tables", "tables", _paths, (), "perf-energy tables", '["70b.parquet"]'),
    Setting("traces", "traces", _paths, (), "requests, in any known format", '["evening.csv"]'),
    Setting("slos", "slos", _list_of(parse_slo), (Slo(),),
            "promises: TTFT/TBT, TTFT/TBT@SHARE%, TTFT/tpot=TIME or TTFT/e2e=TIME",
            '["1s/200ms", "1s/tpot=100ms"]'),
    Setting("slo_class", "classes", _classes, (),
            "what requests of a class are promised instead: NAME=TTFT/TBT",
            '["batch=10s/500ms"]'),
    Setting("policies", "policies", _list_of(a_name), USUAL_POLICIES,
            "as in beam replay; vanilla and static:best are always among them",
            '["vanilla", "static:best", "beam"]'),
    Setting("noises", "noises", _list_of(_share), (),
            "deviations of a step's time, as shares", "[0.0, 0.03]"),
    Setting("seeds", "seeds", _seeds, (0,),
            "of the noise: a list, or lo:hi:step; without noise only the first counts", '"0:4:1"'),
    Setting("assume", "assumptions", _assumptions, Assumptions.VALIDATED,
            "validated (smooth table, 3 % noise, fitted constants) or published (raw, 0, 45 W)",
            '"validated"'),
    Setting("host_gap", "host_gap_ms", _ms, None,
            "time per stage and step that no pass covers", '"6.8ms"'),
    Setting("front_end", "front_end_ms", _ms, None,
            "from a request's sending to the engine's queue", '"33ms"'),
    Setting("idle_power", "idle_power_w", parse_power_w, None,
            "of a waiting GPU, over the table's", '"45W"'),
    Setting("kv_blocks", "kv_blocks", whole(1), None,
            "KV-cache blocks of 16 tokens; default: what the GPUs leave beside the weights",
            "40000"),
    Setting("max_model_len", "max_model_len", whole(2), None,
            "most input + output tokens of one request", "8192"),
    Setting("over_limit", "over_limit", _over_limit, OverLimit.ERROR,
            "what happens to longer requests: error, drop or truncate", '"drop"'),
    Setting("concurrency", "concurrency", whole(1), None,
            "closed loop: so many requests in flight, the trace's arrivals not used", "64"),
)  # fmt: skip
_HINT = "see: beam study --help"


def resolve_study(
    flags: Mapping[str, object] | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> StudySpec:
    """Merge flags, BEAM_* variables, a study's TOML file and defaults.

    Args:
        flags: by setting key, None = not given.
        environment: usually os.environ; only BEAM_<KEY> of known settings is read.
        file: TOML with any of the settings.

    Raises:
        SweepError: an unknown key, a wrong value, a missing or broken file, no table or no trace.
    """
    values, origins = resolve(SETTINGS, flags or {}, environment or {}, file, _HINT)
    for key in ("tables", "traces"):
        if not values[key]:
            raise SweepError(
                f"a study needs at least one of its {key}",
                hint=f"--{key} FILE, or {key} = [...] in the study's TOML file",
            )
    values["noises"] = values["noises"] or (ReplayOptions.assuming(values["assumptions"]).noise,)
    return StudySpec(**values, origins=origins)


def study_template() -> str:
    """A commented study file: every key with its meaning, commented out."""
    return template(SETTINGS, ("A grid for beam study THIS-FILE. Flags and BEAM_* go before it.",))
