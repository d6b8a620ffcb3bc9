"""A sweep's steps on the bar: which pass is under way, and what the last one measured."""

from beam_runtime.table.schema import RowKind
from beamprof.backends.base import Measurement
from beamprof.cli.bar import Bar
from beamprof.console import note
from beamprof.profiler.plan import Trial
from beamprof.profiler.prepare import Prepared
from beamprof.tables.grid import describe_step


class SweepProgress:
    """A profile.Watcher for people."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar

    def begin(self, prepared: Prepared, done: int, total: int) -> None:
        """Draw the bar from ``done`` on."""
        if done:
            note(f"going on: {done} of {total} trials are in {prepared.journal}")
        self._bar.begin(prepared.model.name, done, total)

    def trial(self, trial: Trial) -> None:
        """Name the cell under way."""
        self._bar.now(describe(trial))

    def note(self, text: str) -> None:
        """A line above the bar."""
        self._bar.note(text)

    def finished(self, trial: Trial, measurement: Measurement) -> None:
        """Move the bar."""
        self._bar.advance(
            f"{describe(trial)}: {measurement.latency_ms:.2f} ms, {measurement.energy_j:.2f} J"
        )


def describe(trial: Trial) -> str:
    """A trial in words, e.g. '1410 MHz: chunk 128 after 4,096'."""
    cell = trial.cell
    clock = f"{cell.clock_mhz} MHz" if cell.clock_mhz else "current clock"
    step = "idle power" if cell.kind is RowKind.IDLE else describe_step(cell.shape)
    return f"{clock}: {step}"
