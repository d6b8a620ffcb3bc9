"""`beam study` as a function: a grid of replays, over processes or a Ray cluster, into one Parquet.

    spec -> jobs (one for each cell) -> place (local | ray) -> store (one file a cell) -> Parquet

What is done is never played again: a study that was stopped, killed or grown goes on where it
is. What changed since (a table's rows, a trace's, BEAM itself) makes other cells, so old numbers
are never mixed with new ones.
"""

import json
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

import polars as pl
import pyarrow.parquet as pq

from beam_runtime.table.perf_table import PerfTable
from beamprof.files import check_writable, written_whole
from beamprof.interrupt import Stop
from beamprof.replay.model_length import beyond_the_model
from beamprof.replay.policies.registry import STATIC_BEST, VANILLA
from beamprof.replay.site import site_of
from beamprof.replay.study_cells import PROVENANCE, RESULTS, Failure, Job, jobs_of, play_job
from beamprof.replay.study_places import On, Outcome, Place, open_place, usable_cpus
from beamprof.replay.study_spec import StudySpec
from beamprof.replay.study_store import Store
from beamprof.slo import slo_text
from beamprof.traces.importing import open_trace

SCHEMA = "beam.study/1"
METADATA_KEY = "beam.study"
# Beside vanilla and static:best of the same table, trace, SLO, noise and seed; null without them.
RELATIVE: Mapping[str, pl.DataType] = {
    "energy_to_vanilla": pl.Float64(), "energy_to_static": pl.Float64(),
    "goodput_points": pl.Float64(), "ttft_points": pl.Float64(), "stream_points": pl.Float64(),
    "slowdown": pl.Float64(),
}  # fmt: skip
_LOOK_EVERY_S = 0.2
_REHEARSED_REQUESTS = 200


class Watcher(Protocol):
    """Told how a study goes."""

    def begin(self, done: int, total: int) -> None:
        """Once: of ``total`` cells, ``done`` are there already."""

    def finished(self, cell: str, failure: Failure | None) -> None:
        """After each cell that was played."""


@dataclass(frozen=True, slots=True)
class StudyResult:
    """A study, done or on its way.

    Attributes:
        output: the Parquet file written; None where the study was stopped or no cell worked.
        folder: where every finished cell lies.
        cells: how many the grid has.
        played, kept: finished now, and before.
        failures: cells that could not be played.
        remaining: cells neither finished nor failed.
        stopped_by: the signal that stopped it.
        notes: what was assumed, and what was found on the way.
        duration_s: what it took.
        frame: one row for each finished cell: PROVENANCE, RESULTS and RELATIVE columns.
    """

    output: Path | None
    folder: Path
    cells: int
    played: int
    kept: int
    failures: tuple[Failure, ...]
    remaining: int
    stopped_by: str | None
    notes: tuple[str, ...]
    duration_s: float
    frame: pl.DataFrame


@dataclass(frozen=True, slots=True)
class PlannedCell:
    """One cell of the grid, and whether it is done."""

    policy: str
    slo: str
    noise_share: float
    seed: int
    trace: str
    table: str
    done: bool


@dataclass(frozen=True, slots=True)
class StudyPlan:
    """What a study would do.

    Attributes:
        output: the file it would write.
        cells: every cell of the grid.
        workers: how many would be played at a time.
        duration_s: about what those take that are not done, on processors as busy as now.
        notes: what was assumed, and what was found on the way.
    """

    output: Path
    cells: tuple[PlannedCell, ...]
    workers: int
    duration_s: float
    notes: tuple[str, ...]


def study(
    spec: StudySpec,
    output: str | Path,
    *,
    force: bool = False,
    on: On = On.LOCAL,
    workers: int | None = None,
    watcher: Watcher | None = None,
    stop: Stop | None = None,
) -> StudyResult:
    """Play every cell of the grid that is not done yet, and write all of them to one file.

    On local processes the caller's module is imported again in each of them: call this below
    ``if __name__ == "__main__":``.

    Args:
        spec: the grid.
        output: the Parquet file; finished cells lie beside it, in ``<output>.cells``.
        force: replace ``output``; finished cells stay.
        on: local processes or Ray.
        workers: how many cells at a time; None = one for each CPU.
        watcher: told how it goes.
        stop: asked between cells; those under way are finished.

    Raises:
        TableError, TraceError, ImportFormatError: a file of the grid that cannot be read.
        ReplayError: a policy that no table knows; Ray asked for and not there.
        OutputError: the output exists, or cannot be written.
    """
    output = Path(output)
    began_s = time.monotonic()
    stop = stop or Stop()
    check_writable(output, force=force)
    jobs, store, notes = _prepared(spec, output)
    store.prepare()
    # Two names of one trace are one cell.
    todo = {job.cell_id: job for job in jobs if job.cell_id not in store.rows}
    kept = sum(job.cell_id in store.rows for job in jobs)
    if watcher:
        watcher.begin(kept, len(jobs))
    failures: dict[str, Failure] = {}
    if todo and not stop.requested:
        place = open_place(on, None if workers is None else min(workers, len(todo)))
        try:
            _compile(todo.values())
            for cell_id, outcome in _outcomes(todo, place, stop):
                failure = outcome if isinstance(outcome, Failure) else None
                if failure:
                    failures[cell_id] = failure
                elif isinstance(outcome, dict):
                    store.add(cell_id, outcome)
                if watcher:
                    watcher.finished(str(todo[cell_id]), failure)
        finally:
            place.close()
    finished = [job for job in jobs if job.cell_id in store.rows]
    frame = _frame(finished, store.rows)
    remaining = sum(cell_id not in store.rows for cell_id in todo) - len(failures)
    written = not remaining and not frame.is_empty()
    if written:
        _write(frame, output, force=force)
    return StudyResult(
        output=output if written else None,
        folder=store.folder,
        cells=len(jobs),
        played=len(finished) - kept,
        kept=kept,
        failures=tuple(failures[cell_id] for cell_id in todo if cell_id in failures),
        remaining=remaining,
        stopped_by=stop.signal_name,
        notes=notes,
        duration_s=time.monotonic() - began_s,
        frame=frame,
    )


def plan_study(spec: StudySpec, output: Path, *, workers: int | None = None) -> StudyPlan:
    """What study() would do; the time is from a rehearsal of each policy's first requests here.

    Raises:
        TableError, TraceError, ImportFormatError, ReplayError: as study.
    """
    jobs, store, notes = _prepared(spec, output)
    todo = {job.cell_id: job for job in jobs if job.cell_id not in store.rows}
    place_workers = max(1, min(workers or usable_cpus(), len(todo)))
    per_request_s = _compile(todo.values(), _REHEARSED_REQUESTS)
    total_s = sum(job.trace.requests * per_request_s[job.policy] for job in todo.values())
    return StudyPlan(
        output=output,
        cells=tuple(_planned(job, done=job.cell_id in store.rows) for job in jobs),
        workers=place_workers,
        duration_s=total_s / place_workers,
        notes=notes,
    )


def _planned(job: Job, *, done: bool) -> PlannedCell:
    values = {**job.provenance, "slo": slo_text(job.options.slo), "done": done}
    return PlannedCell(**{field.name: values[field.name] for field in fields(PlannedCell)})


def _prepared(spec: StudySpec, output: Path) -> tuple[tuple[Job, ...], Store, tuple[str, ...]]:
    tables = [PerfTable.load(path) for path in spec.tables]
    traces = [open_trace(path) for path in spec.traces]
    jobs = jobs_of(spec, tables, traces)
    store = Store(output.with_name(f"{output.name}.cells"))
    options = jobs[0].options
    plants = (", ".join(site_of(table, table, options)[1]) for table in tables)
    notes = [f"plant: {plant}" for plant in dict.fromkeys(plants)]
    notes += [
        f"{path}: {words}"
        for path, trace in zip(spec.traces, traces, strict=True)
        for words in dict.fromkeys(beyond_the_model(table, trace, options) for table in tables)
        if words
    ]
    notes += [f"{path} is damaged: its cell is played again" for path in store.damaged]
    outdated = store.outdated(jobs)
    if outdated:
        changed = ", ".join(f"{name} ({cells} cells)" for name, cells in outdated.items())
        notes.append(f"changed since cells of this grid were played: {changed}; played again")
    return jobs, store, tuple(notes)


def _outcomes(todo: Mapping[str, Job], place: Place, stop: Stop) -> Iterable[tuple[str, Outcome]]:
    """Every cell as it comes in; after a stop only those under way."""
    waiting = deque(todo)
    under_way: dict[Future[Outcome], str] = {}
    while under_way or (waiting and not stop.requested):
        while waiting and len(under_way) < place.workers and not stop.requested:
            cell_id = waiting.popleft()
            under_way[place.submit(todo[cell_id])] = cell_id
        # A signal does not end the wait: look for it now and then.
        done, _ = wait(under_way, timeout=_LOOK_EVERY_S, return_when=FIRST_COMPLETED)
        for future in done:
            cell_id = under_way.pop(future)
            lost = future.exception()
            if lost is None:
                yield cell_id, future.result()
            elif not stop.requested:
                yield cell_id, _lost(todo[cell_id], lost)


def _lost(job: Job, error: BaseException) -> Failure:
    return Failure(
        str(job),
        "its worker ended, or that of a cell beside it",
        (str(error) or type(error).__name__).splitlines()[0],
        "killed for memory? Run the same command again, with fewer --workers",
    )


def _compile(jobs: Iterable[Job], requests: int = 2) -> dict[str, float]:
    """Seconds per request by policy; and workers find the machine code on disk from now on."""
    per_request_s = {}
    for job in {job.policy: job for job in jobs}.values():
        head = job.trace.frame.head(requests)
        last_s = float(head["arrival_s"][-1])
        short = replace(
            job, trace=job.trace.transformed(head, "head", {}, {}, duration_s=last_s + 1)
        )
        play_job(short)
        began_s = time.monotonic()
        play_job(short)  # a cell that fails tells when it is played in earnest
        per_request_s[job.policy] = (time.monotonic() - began_s) / head.height
    return per_request_s


def _frame(jobs: Sequence[Job], rows: Mapping[str, Mapping[str, Any]]) -> pl.DataFrame:
    """Finished cells in the grid's order, under the names of this grid's files."""
    named = [{**rows[job.cell_id], **job.provenance} for job in jobs]
    at_place = {(_place(row), row["policy"]): row for row in named}
    for row in named:
        vanilla = at_place.get((_place(row), VANILLA))
        static = at_place.get((_place(row), STATIC_BEST))
        row.update(_beside(row, vanilla, static))
    return pl.DataFrame(named, schema={**PROVENANCE, **RESULTS, **RELATIVE}, orient="row")


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in PROVENANCE if name != "policy")


def _beside(
    row: Mapping[str, Any], vanilla: Mapping[str, Any] | None, static: Mapping[str, Any] | None
) -> dict[str, float | None]:
    def points(name: str) -> float | None:
        known = vanilla is not None and row[name] is not None
        return 100 * (row[name] - vanilla[name]) if vanilla and known else None

    slowdown = None
    if vanilla and row["request_mean_ms"] is not None:
        slowdown = row["request_mean_ms"] / vanilla["request_mean_ms"]
    return {
        "energy_to_vanilla": row["energy_j"] / vanilla["energy_j"] if vanilla else None,
        "energy_to_static": row["energy_j"] / static["energy_j"] if static else None,
        "goodput_points": points("goodput"),
        "ttft_points": points("ttft_kept_share"),
        "stream_points": points("stream_kept_share"),
        "slowdown": slowdown,
    }


def _write(frame: pl.DataFrame, output: Path, *, force: bool) -> None:
    table = frame.to_arrow().replace_schema_metadata({METADATA_KEY: json.dumps({"schema": SCHEMA})})
    with written_whole(output, force=force) as temporary:
        pq.write_table(table, temporary, compression="zstd")
