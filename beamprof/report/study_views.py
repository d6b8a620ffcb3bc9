"""A study as people see it: one sentence, then policies by trace beside vanilla and static:best."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from beamprof.replay.policies.registry import STATIC_BEST, VANILLA
from beamprof.replay.rivals import KEPT_AT_ALL
from beamprof.replay.study import StudyPlan, StudyResult
from beamprof.replay.study_cells import Failure, row_slo
from beamprof.report.page import (
    block,
    fitted_block,
    heading,
    next_command,
    plain_table,
    sentence,
    wrote,
)
from beamprof.report.replay_views import AS_GOOD_POINTS
from beamprof.units import format_duration

_GROUP = ("table", "slo_ttft_ms", "slo_kind", "slo_stream_ms", "slo_tbt_share", "noise_share")
_NUMBERS = ("goodput", "energy_to_vanilla", "energy_to_static", "goodput_points", "slowdown")
_MOST_CELLS = 60


def show_study(result: StudyResult, console: Console) -> None:
    """`beam study`."""
    sentence(console, _answer(result))
    block(
        console,
        "goodput: requests with every promise kept, and percentage points beside vanilla's; energy "
        "over vanilla's and over static:best's; mean request time over vanilla's; ± over seeds",
    )
    for key, rows in result.frame.group_by(_GROUP, maintain_order=True):
        noise = f", noise {key[-1]:g}" if key[-1] else ""
        slo = row_slo(rows.row(0, named=True))
        heading(console, str(key[0]), f"SLO {slo}{noise}")
        fitted_block(console, _grid(rows), ("points",))
    if result.output:
        wrote(console, result.output)
        next_command(console, f"beam report {result.output}")
    elif result.remaining:
        next_command(console, "the same command again: what is done is not played again")
    else:
        hints = dict.fromkeys(one.hint for one in result.failures if one.hint)
        mended = "; ".join(hints) or "mend what is told of the cells that failed"
        next_command(console, f"{mended}; then the same command again")


def failure_lines(failures: Sequence[Failure]) -> list[str]:
    """One line for all cells that failed for the same reason."""
    by_reason: dict[tuple[str | None, ...], list[str]] = {}
    for one in failures:
        by_reason.setdefault((one.message, one.cause, one.hint), []).append(one.cell)
    lines = []
    for reason, cells in by_reason.items():
        which = f"{len(cells)} cells, first {cells[0]}" if len(cells) > 1 else cells[0]
        lines.append(f"{which}: {'; '.join(part for part in reason if part)}")
    return lines


def show_plan(plan: StudyPlan, console: Console) -> None:
    """`beam study --dry-run`."""
    left = sum(not cell.done for cell in plan.cells)
    sentence(
        console,
        f"{len(plan.cells)} cells, {len(plan.cells) - left} done; the other {left} take about "
        f"{format_duration(plan.duration_s)} with {plan.workers} at a time.",
    )
    page = plain_table()
    for head in ("", "policy", "SLO", "noise", "seed", "trace", "table"):
        page.add_column(head, overflow="ellipsis", no_wrap=True)
    for cell in plan.cells[:_MOST_CELLS]:
        page.add_row(
            "done" if cell.done else "", cell.policy,
            cell.slo, f"{cell.noise_share:g}", str(cell.seed),
            Path(cell.trace).name, Path(cell.table).name,
        )  # fmt: skip
    block(console, page)
    if len(plan.cells) > _MOST_CELLS:
        block(console, f"and {len(plan.cells) - _MOST_CELLS} more: --json lists all")
    block(console, f"would write {plan.output}")
    next_command(console, "the same without --dry-run")


def _answer(result: StudyResult) -> str:
    done = result.played + result.kept
    if result.remaining:
        return (
            f"Stopped by {result.stopped_by}: {done} of {result.cells} cells are done, in "
            f"{result.folder}; {result.remaining} are left."
        )
    if not result.frame.height:
        return (
            f"No cell was played to its end, {len(result.failures)} failed: what saves energy is "
            "not known."
        )
    begun = f"{done} of {result.cells} cells in {format_duration(result.duration_s)}"
    if result.kept:
        begun += f" ({result.kept} were done before)"
    if result.failures:
        begun += f", {len(result.failures)} failed"
    if not comparable(result.frame).height:
        return f"{begun}: no policy can be compared with vanilla and static:best."
    where_kept = kept_at_all(result.frame)
    if not where_kept.height:
        return (
            f"{begun}: no policy keeps its SLO for half of the requests in any cell; what they "
            "save is no saving."
        )
    best = _best(where_kept)
    if best is None:
        return f"{begun}: nothing saves energy and keeps the promises that vanilla keeps."
    of_vanilla, of_static, slower = (
        _known(best, name) for name in ("energy_to_vanilla", "energy_to_static", "slowdown")
    )
    span = f" ({of_vanilla.min():.2f} to {of_vanilla.max():.2f})" if best.height > 1 else ""
    is_static = best["policy"][0] == STATIC_BEST
    beside = "" if is_static else f" and {of_static.mean():.2f} of the best static setting's"
    return (
        f"{begun}: {best['policy'][0]} needs {of_vanilla.mean():.2f} of vanilla's energy{span}"
        f"{beside}; its requests take "
        f"{slower.mean():.2f} times as long as vanilla's; {_beside_vanilla(best)}"
        f"{_left_out(result.frame, where_kept)}."
    )


def _left_out(frame: pl.DataFrame, where_kept: pl.DataFrame) -> str:
    """A saving where nobody keeps the SLO is none, and counts for nobody."""
    without = frame.height - where_kept.height
    told = f"; {without} of {frame.height} cells are left out: no policy keeps their SLO"
    return told if without else ""


def _beside_vanilla(best: pl.DataFrame) -> str:
    as_good = _as_good(best)
    if best.height == 1 and not as_good:
        return f"it keeps {-_known(best, 'goodput_points')[0]:.1f} points fewer promises"
    cells = f"in {as_good} of {best.height} cells " if best.height > 1 else ""
    return f"{cells}its goodput is at most {AS_GOOD_POINTS:g} points under vanilla's"


def _best(frame: pl.DataFrame) -> pl.DataFrame | None:
    """The rows of the policy that is as good as vanilla in most cells; of equals, with the least
    energy. None where even that saves nothing.
    """

    def energy(rows: pl.DataFrame) -> float:
        return float(_known(rows, "energy_to_vanilla").mean())

    rivals = [rows for _, rows in comparable(frame).group_by("policy", maintain_order=True)]
    best = min(rivals, key=lambda rows: (-_as_good(rows), energy(rows)), default=None)
    return best if best is not None and energy(best) < 1 else None


def comparable(frame: pl.DataFrame) -> pl.DataFrame:
    """Rows of policies whose cell, vanilla's and static:best's all were played."""
    return with_as_good(frame).drop_nulls(list(_NUMBERS)).filter(pl.col("policy") != VANILLA)


def with_as_good(frame: pl.DataFrame) -> pl.DataFrame:
    """Rows with ``as_good``: a policy loses no more than it may beside vanilla.

    Where vanilla keeps next to nothing that says little: a policy that keeps its SLO for less than
    half of the requests is as good as nobody.
    """
    beside = pl.col("goodput_points") >= -AS_GOOD_POINTS
    kept = pl.col("goodput") >= KEPT_AT_ALL
    return frame.with_columns(as_good=(beside & kept).fill_null(value=False))


def kept_at_all(frame: pl.DataFrame) -> pl.DataFrame:
    """Rows of a trace, an SLO and a seed where some policy keeps it for half of the requests."""
    most = pl.col("goodput").max().over(*_GROUP, "trace", "seed")
    return frame.filter(most.fill_null(1.0) >= KEPT_AT_ALL)


def _as_good(rows: pl.DataFrame) -> int:
    return int(rows["as_good"].sum())


def _known(rows: pl.DataFrame, name: str) -> NDArray[np.float64]:
    return rows[name].drop_nulls().to_numpy()


def _grid(rows: pl.DataFrame) -> Table:
    page = plain_table(
        ("trace", "policy"), ("goodput %", "of vanilla", "of static", "points", "request time")
    )
    last = ""
    for (trace, policy), seeds in rows.group_by("trace", "policy", maintain_order=True):
        name = Path(str(trace)).name
        numbers = [
            _spread(100 * _known(seeds, number), ".1f")
            if number == "goodput"
            else _spread(_known(seeds, number), "+.2f" if number.endswith("points") else ".3f")
            for number in _NUMBERS
        ]
        page.add_row("" if name == last else name, str(policy), *numbers)
        last = name
    return page


def _spread(values: NDArray[np.float64], form: str) -> str:
    """The mean, and how far seeds are from it."""
    if not len(values):
        return "-"
    text = f"{values.mean():{form}}"
    return f"{text} ± {values.std(ddof=1):{form.lstrip('+')}}" if len(values) > 1 else text
