"""`beam profile` as a function: request in, table out.

    request -> prepare: model, backend, plan -> journal -> trials -> columns -> table

What a sweep that is stopped, killed or out of disk leaves behind is its journal; the next run of
the same request goes on from there.
"""

import time
from collections import Counter
from dataclasses import dataclass
from typing import Protocol

from beam_runtime.errors import ClockNotAppliedError
from beam_runtime.table.perf_table import PerfTable
from beamprof.backends.base import FollowingBackend, MeasureBackend, Measurement
from beamprof.errors import BackendError, UnheldClockError
from beamprof.interrupt import Stop
from beamprof.profiler.build import table_columns, table_metadata
from beamprof.profiler.choose_backend import Choice
from beamprof.profiler.journal import Journal
from beamprof.profiler.plan import Trial
from beamprof.profiler.prepare import Prepared, ProfileRequest, prepare, sweep_identity
from beamprof.tables.table_file import write_table

__all__ = ["ProfileRequest", "ProfileResult", "Watcher", "profile"]

# So many cells in a row that a backend cannot run mean that it cannot run at all.
REFUSALS_IN_A_ROW = 5
# So many cells of a clock, and none that could be measured at it, mean that the GPU lacks it.
UNHELD_CELLS = 3


@dataclass(frozen=True, slots=True)
class ProfileResult:
    """What a run did.

    Attributes:
        table: None where the run was stopped before every trial was done.
        measured, resumed, remaining: trials of this run, of earlier ones, still to do.
        refused: cells that the backend could not run, with its words.
        stopped_by: the signal that ended the run early.
        duration_s: of this run.
        follower: this process was a tensor-parallel rank above 0 and has nothing to say.
    """

    prepared: Prepared
    table: PerfTable | None = None
    measured: int = 0
    resumed: int = 0
    remaining: int = 0
    refused: tuple[str, ...] = ()
    stopped_by: str | None = None
    duration_s: float = 0.0
    follower: bool = False


class Watcher(Protocol):
    """Who wants to see a sweep go by."""

    def begin(self, prepared: Prepared, done: int, total: int) -> None:
        """The first trial is about to run; ``done`` of ``total`` are in the journal already."""
        ...

    def trial(self, trial: Trial) -> None:
        """A trial begins."""
        ...

    def finished(self, trial: Trial, measurement: Measurement) -> None:
        """A trial is in the journal."""
        ...

    def note(self, text: str) -> None:
        """Something worth a line."""
        ...


class Unwatched:
    """Nobody looks."""

    def begin(self, prepared: Prepared, done: int, total: int) -> None:
        """Say nothing."""

    def trial(self, trial: Trial) -> None:
        """Say nothing."""

    def finished(self, trial: Trial, measurement: Measurement) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""


def profile(
    request: ProfileRequest,
    *,
    choice: Choice | None = None,
    watcher: Watcher | None = None,
    stop: Stop | None = None,
) -> ProfileResult:
    """Measure what is not in the journal yet, then write the table.

    Args:
        request: what to profile.
        choice: a backend to use in place of an automatic choice.
        watcher: is told of every trial.
        stop: looked at between trials; see interrupt.stop_on_signals.

    Raises:
        BeamError: bad input, a backend that cannot run, a journal of another sweep, a full disk.
            Finished trials stay in the journal.
    """
    watcher, stop = watcher or Unwatched(), stop or Stop()
    began_s = time.monotonic()
    prepared = prepare(request, choice=choice)
    for text in prepared.notes:
        watcher.note(text)
    backend = prepared.choice.build(prepared.plan)
    try:
        environment = backend.open()
        if isinstance(backend, FollowingBackend) and backend.follows:
            # A tensor-parallel rank above 0: rank 0 decides, keeps the journal, writes the table.
            backend.follow()
            return ProfileResult(prepared, follower=True)
        sweep = sweep_identity(prepared, environment)
        with Journal.open(prepared.journal, sweep, fresh=request.fresh) as journal:
            for text in journal.notes:
                watcher.note(text)
            resumed = len(journal.entries)
            refused = run_trials(prepared, backend, journal, watcher, stop)
            entries = dict(journal.entries)
    finally:
        backend.close()
    remaining = len(prepared.plan.order()) - len(entries)
    table = None
    if entries and remaining == len(refused):
        metadata = table_metadata(
            prepared.model, prepared.stage, request.spec, prepared.plan, environment
        )
        table = write_table(
            table_columns(entries, running_mhz=prepared.choice.clocks.running_mhz),
            metadata,
            prepared.output,
            force=request.force,
        )
    return ProfileResult(
        prepared=prepared,
        table=table,
        measured=len(entries) - resumed,
        resumed=resumed,
        remaining=remaining,
        refused=tuple(refused),
        stopped_by=stop.signal_name,
        duration_s=time.monotonic() - began_s,
    )


def run_trials(
    prepared: Prepared, backend: MeasureBackend, journal: Journal, watcher: Watcher, stop: Stop
) -> list[str]:
    """Run every trial that the journal lacks; return those that the backend refused."""
    order = prepared.plan.order()
    todo = [trial for trial in order if trial not in journal.entries]
    watcher.begin(prepared, len(order) - len(todo), len(order))
    refused: list[str] = []
    in_a_row = 0
    unheld: Counter[int] = Counter()  # by clock: how many of its cells could not be measured at it
    measured_mhz = {trial.cell.clock_mhz for trial in journal.entries}
    for trial in todo:
        if stop.requested:
            break
        clock_mhz = trial.cell.clock_mhz
        if unheld[clock_mhz] == UNHELD_CELLS and clock_mhz not in measured_mhz:
            refused.append(f"{trial.cell}: {clock_mhz} MHz is not held")
            continue
        watcher.trial(trial)
        try:
            measurement = backend.run(trial.cell)
        except (UnheldClockError, ClockNotAppliedError) as error:
            # One clock that a GPU does not hold must not cost the others.
            unheld[clock_mhz] += 1
            refused.append(f"{trial.cell}: {error.message}")
            watcher.note(f"not measured: {refused[-1]}")
            if unheld[clock_mhz] == UNHELD_CELLS and clock_mhz not in measured_mhz:
                watcher.note(f"{clock_mhz} MHz is left out: {error.cause or error.message}")
                if not measured_mhz and set(unheld) >= set(prepared.plan.clocks_mhz):
                    raise  # no clock at all is held
            continue
        except BackendError as error:
            # One cell too large for the memory must not cost the hour of the others.
            in_a_row += 1
            if in_a_row == REFUSALS_IN_A_ROW:
                raise
            refused.append(f"{trial.cell}: {error.message}")
            watcher.note(f"not measured: {refused[-1]}")
            continue
        in_a_row = 0
        measured_mhz.add(clock_mhz)
        journal.append(trial, measurement)
        watcher.finished(trial, measurement)
    return refused
