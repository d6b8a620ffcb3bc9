"""A study as part of a page: each policy over all settings, then every setting."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beamprof.replay.policies.registry import ORACLE, STATIC_BEST, VANILLA
from beamprof.replay.rivals import KEPT_AT_ALL
from beamprof.replay.study_cells import PROVENANCE, row_slo
from beamprof.report.html.bars import spread_bar
from beamprof.report.html.colours import colours
from beamprof.report.html.number_words import percent, points, significant
from beamprof.report.html.part import Bar, Bars, Facts, Grid, Part, Section
from beamprof.report.html.replay_part import ORACLE_NAME
from beamprof.report.replay_views import AS_GOOD_POINTS
from beamprof.units import format_duration

_MOST_SETTINGS = 40
_NAMES = {ORACLE: ORACLE_NAME}
_UNKEPT = (
    "No policy keeps its SLO for half of the requests in any setting; what they save is no saving."
)
_UNKNOWN = "\N{EN DASH}"
_GROUPS = (("", 1), ("Goodput", 2), ("Energy", 4), ("Request", 2), ("TTFT", 2), ("Stream", 3))
_ENERGY = "kWh"
_HEADS = (
    "policy", "kept", "points", _ENERGY, "of vanilla", "of static", "J/token", "mean s",
    "of vanilla", "p99 ms", "kept", "p99 ms", "tokens/s", "kept",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Setting:
    """All policies' rows of one table, trace and promise, over every seed."""

    rows: pl.DataFrame

    @property
    def one(self) -> dict[str, Any]:
        return self.rows.row(0, named=True)

    @property
    def title(self) -> str:
        one = self.one
        return f"{Path(one['trace']).name}, SLO {row_slo(one)}"

    @property
    def words(self) -> str:
        one, seeds = self.one, self.rows["seed"].n_unique()
        parts = [
            f"{one['model']} tp{one['tp']} pp{one['pp']} on {one['device']}: "
            f"{Path(one['table']).name}, {one['table_source']}",
            f"{one['requests']:,} requests in {format_duration(one['duration_s'])}",
            f"noise {percent(one['noise_share'])}" if one["noise_share"] else "",
            f"means over {seeds} seeds" if seeds > 1 else "",
        ]
        return "; ".join(part for part in parts if part) + "."

    def mean(self, policy: str, column: str) -> float:
        """Over seeds; NaN where nothing is known."""
        values = self.rows.filter(pl.col("policy") == policy)[column].drop_nulls().to_numpy()
        return float(values.mean()) if len(values) else float("nan")

    @property
    def kept_at_all(self) -> bool:
        """Whether some policy keeps the SLO for half of the requests: else nothing is saved."""
        policies = self.rows["policy"].unique().to_list()
        return any(self.mean(name, "goodput") >= KEPT_AT_ALL for name in policies)


def study_part(path: Path, frame: pl.DataFrame) -> Part:
    """All of a study.

    Args:
        path: its file.
        frame: as load_study gives it.
    """
    keys = [name for name in PROVENANCE if name not in ("policy", "seed")]
    settings = [_Setting(rows) for _, rows in frame.group_by(keys, maintain_order=True)]
    kept = [one for one in settings if one.kept_at_all]
    without = len(settings) - len(kept)
    policies = frame["policy"].unique(maintain_order=True).to_list()
    css = colours(policies)
    left_out = (
        f" In {without} of {len(settings)} settings no policy keeps its SLO: they are left out."
        if kept and without
        else ""
    )
    overall = Section(
        "Energy beside vanilla's, in every setting",
        "A dot for each setting, an upright stroke at their median; the broken line is vanilla. "
        "Worst: the setting in which a policy kept least of its promises, beside vanilla."
        f"{left_out}",
        Bars(
            tuple(
                _spread(name, css[name], kept or settings) for name in policies if name != VANILLA
            )
        ),
    )
    sections = [overall]
    sections += [
        Section(one.title, one.words, _grid(one, css)) for one in settings[:_MOST_SETTINGS]
    ]
    sections.append(Section("Where this comes from", "", _facts(path, frame, len(settings))))
    kicker = f"Study · {path.name} · {len(settings)} settings, {len(policies)} policies"
    answer = f"{_sentence(kept, policies)}{left_out}" if kept else _UNKEPT
    return Part(kicker, answer, _standing(frame), tuple(sections))


def _over(settings: Sequence[_Setting], policy: str, column: str) -> NDArray[np.float64]:
    values = (one.mean(policy, column) for one in settings)
    return np.array([value for value in values if np.isfinite(value)])


def _sentence(settings: Sequence[_Setting], policies: Sequence[str]) -> str:
    best, best_rank = "", (0, -np.inf)
    for name in policies:
        energy = _over(settings, name, "energy_to_vanilla")
        if name not in (VANILLA, ORACLE) and len(energy) and energy.mean() < 1.0:
            rank = (_as_good(settings, name), -float(energy.mean()))
            if not best or rank > best_rank:
                best, best_rank = name, rank
    if not best:
        return "No policy needs less energy than vanilla over these settings."
    energy = _over(settings, best, "energy_to_vanilla")
    static = _over(settings, best, "energy_to_static")
    beside = f" and {np.median(static):.2f} of the best static setting's" if len(static) else ""
    beside = "" if best == STATIC_BEST else beside
    slower = np.median(_over(settings, best, "slowdown"))
    return (
        f"{best} needs {np.median(energy):.2f} of vanilla's energy{beside} in the median of "
        f"{len(energy)} settings ({energy.min():.2f} to {energy.max():.2f} of vanilla's); requests "
        f"take {slower:.2f} times as long; its goodput is at most {AS_GOOD_POINTS:g} points under "
        f"vanilla's in {best_rank[0]} of them."
    )


def _as_good(settings: Sequence[_Setting], policy: str) -> int:
    return sum(_is_as_good(one, policy) for one in settings)


def _is_as_good(setting: _Setting, policy: str) -> bool:
    """As the terminal has it (study_views), over seeds; what is unknown is not as good."""
    beside = setting.mean(policy, "goodput_points") >= -AS_GOOD_POINTS
    return bool(beside and setting.mean(policy, "goodput") >= KEPT_AT_ALL)


def _standing(frame: pl.DataFrame) -> str:
    sources = ", ".join(sorted(set(frame["table_source"].to_list())))
    return (
        "This is simulated: a model of the serving engine plays every trace, and steps take and "
        f"cost what the tables say (their rows are {sources}). No server ran."
    )


def _spread(policy: str, css: str, settings: Sequence[_Setting]) -> Bar:
    energy = _over(settings, policy, "energy_to_vanilla")
    words = ["", ""]
    if len(energy):
        words = [f"{np.median(energy):.3f} of vanilla", f"{energy.min():.3f} to {energy.max():.3f}"]
    kept, slower = (_over(settings, policy, one) for one in ("goodput_points", "slowdown"))
    words.append(f"goodput at worst {points(kept.min())}" if len(kept) else "")
    words.append(f"requests at most {slower.max():.2f} times" if len(slower) else "")
    return spread_bar(_NAMES.get(policy, policy), css, energy.tolist(), words=words)


def _grid(setting: _Setting, css: dict[str, str]) -> Grid:
    policies = setting.rows["policy"].unique(maintain_order=True).to_list()
    energies = [setting.mean(name, "energy_kwh") for name in policies]
    unit, scale = ("Wh", 1e3) if np.nanmax([*energies, 0.0]) < 1.0 else ("kWh", 1.0)
    rows = []
    for name in policies:
        cells = [_NAMES.get(name, name)]
        for column, words in (
            ("goodput", _share), ("goodput_points", points),
            ("energy_kwh", lambda kwh: significant(scale * kwh)),
            ("energy_to_vanilla", _ratio), ("energy_to_static", _ratio),
            ("j_per_token", significant), ("request_mean_ms", _seconds), ("slowdown", _ratio),
            ("ttft_p99_ms", _ms), ("ttft_kept_share", _share), ("tbt_p99_ms", _ms),
            ("tokens_per_s_user", significant), ("stream_kept_share", _share),
        ):  # fmt: skip
            value = setting.mean(name, column)
            cells.append(words(value) if np.isfinite(value) else _UNKNOWN)
        rows.append(tuple(cells))
    heads = tuple(unit if head == _ENERGY else head for head in _HEADS)
    return Grid(_GROUPS, heads, tuple(rows), tuple(css[name] for name in policies))


def _ratio(value: float) -> str:
    return f"{value:.3f}"


def _ms(value: float) -> str:
    return f"{value:,.0f}"


def _seconds(value_ms: float) -> str:
    return f"{value_ms / 1e3:,.1f}"


def _share(value: float) -> str:
    return percent(value, 2)


def _facts(path: Path, frame: pl.DataFrame, settings: int) -> Facts:
    def each(*columns: str) -> list[dict[str, Any]]:
        return frame.select(columns).unique(maintain_order=True).to_dicts()

    facts = [
        ("File", f"{path.name}, {frame.height:,} cells"),
        ("Not shown", f"{settings - _MOST_SETTINGS:,} more settings: the file has them"
         if settings > _MOST_SETTINGS else ""),
    ]  # fmt: skip
    facts += [
        ("Table", f"{Path(one['table']).name}: {one['model']} tp{one['tp']} pp{one['pp']}, "
                  f"{one['table_source']}; rows {one['table_sha256'][:12]}")
        for one in each("table", "model", "tp", "pp", "table_source", "table_sha256")
    ]  # fmt: skip
    facts += [
        ("Trace", f"{Path(one['trace']).name}: {one['trace_source']}; "
                  f"rows {one['trace_sha256'][:12]}")
        for one in each("trace", "trace_source", "trace_sha256")
    ]  # fmt: skip
    engine = (
        "host_gap_ms",
        "front_end_ms",
        "idle_power_w",
        "clock_delay_ms",
        "kv_blocks",
        "max_num_seqs",
    )
    facts += [
        ("Engine", ", ".join(f"{name.replace('_', ' ')} {value:g}"
                             for name, value in one.items() if value is not None))
        for one in each(*engine)
    ]  # fmt: skip
    seeds = ", ".join(str(seed) for seed in frame["seed"].unique(maintain_order=True))
    facts.append(("Seeds", seeds))
    facts += [
        ("Made by", f"beamprof {one['beam_version']}, code {one['code_sha256'][:12]}")
        for one in each("beam_version", "code_sha256")
    ]
    return Facts(tuple((name, words) for name, words in facts if words))
