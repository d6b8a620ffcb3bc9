import pytest

from beam_runtime.table.schema import RowKind
from beam_runtime.types import Source
from beamprof.backends.base import Measurement
from beamprof.backends.cell import Cell
from beamprof.cli import bar as bar_module
from beamprof.cli.bar import Bar
from beamprof.cli.progress import SweepProgress, describe
from beamprof.profiler.plan import Trial
from beamprof.profiler.prepare import ProfileRequest, prepare
from beamprof.profiler.spec import resolve_spec

TRIAL = Trial(Cell(RowKind.FORWARD, 1410, 128, 4096, 8, 800), 0)


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (TRIAL.cell, "1410 MHz: chunk 128 after 4,096 + 8 decodes over 800"),
        (Cell(RowKind.FORWARD, 0, 64), "current clock: chunk 64"),
        (Cell(RowKind.IDLE, 510), "510 MHz: idle power"),
    ],
)
def test_a_cell_in_words(cell: Cell, words: str) -> None:
    assert describe(Trial(cell, 0)) == words


def sweep(monkeypatch: pytest.MonkeyPatch, seconds_per_trial: float) -> None:
    """A hundred trials without a terminal, on a clock of our own."""
    now_s = [0.0]
    monkeypatch.setattr(bar_module.time, "monotonic", lambda: now_s[0])
    spec = resolve_spec({"model": "llama3-8b", "backend": "modelled"})
    with Bar("trials") as bar:
        watcher = SweepProgress(bar)
        watcher.begin(prepare(ProfileRequest(spec)), done=10, total=110)
        for _ in range(100):
            watcher.trial(TRIAL)
            now_s[0] += seconds_per_trial
            watcher.finished(TRIAL, Measurement(12.345, 6.0, Source.MEASURED))


def test_without_a_terminal_one_plain_line_every_half_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep(monkeypatch, seconds_per_trial=1.0)
    out, err = capsys.readouterr()
    going_on, *lines = [line for line in err.splitlines() if "trials" in line]
    assert going_on.startswith("going on: 10 of 110 trials")
    assert len(lines) == 3
    assert lines[0].startswith("40 of 110 trials, about 70 s left")
    assert "12.35 ms" in err
    assert out == ""
    assert "\x1b" not in err


def test_a_quick_sweep_says_nothing_in_between(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep(monkeypatch, seconds_per_trial=0.1)
    assert len(capsys.readouterr().err.splitlines()) <= 2
