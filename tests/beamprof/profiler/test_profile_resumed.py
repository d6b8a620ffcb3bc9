"""A sweep that was stopped, killed or met a full disk goes on where it was.

Run as a program, this file is a sweep on a slow fake backend, to be killed from outside:

    python test_profile_resumed.py LOG [arguments of beam]
"""

import errno
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from fake_backend import FakeBackend, offer, request

from beam_runtime.table.perf_table import PerfTable
from beamprof.backends.base import Measurement
from beamprof.errors import JournalError, OutputError
from beamprof.interrupt import Stop
from beamprof.profiler import prepare as prepare_module
from beamprof.profiler.dry_run import dry_run
from beamprof.profiler.journal import journal_path, peek
from beamprof.profiler.plan import Trial
from beamprof.profiler.profile import ProfileRequest, ProfileResult, Unwatched, profile
from beamprof.profiler.spec import resolve_spec

ARGUMENTS = ["--model", "llama3-8b", "--clocks", "510,1410", "--max-tokens", "256"]


class StopAfter(Unwatched):
    """Asks to stop once ``count`` trials are in the journal."""

    def __init__(self, stop: Stop, count: int) -> None:
        self.stop, self.left = stop, count

    def finished(self, trial: Trial, measurement: Measurement) -> None:
        del trial, measurement
        self.left -= 1
        if self.left == 0:
            self.stop.signal_name = "SIGTERM"


def stopped(output: Path, after: int, **flags: object) -> ProfileResult:
    stop = Stop()
    return profile(
        request(output, **flags), choice=offer(FakeBackend()), watcher=StopAfter(stop, after),
        stop=stop,
    )  # fmt: skip


def test_a_stopped_sweep_goes_on_where_it_was(output: Path) -> None:
    first = stopped(output, after=7)
    assert (first.table, first.stopped_by, first.measured) == (None, "SIGTERM", 7)
    assert not output.exists()
    backend = FakeBackend()
    second = profile(request(output), choice=offer(backend))
    assert (second.resumed, len(backend.ran)) == (7, second.prepared.plan.trial_count - 7)
    assert second.table is not None
    assert output.exists()


def test_the_rerun_has_the_rows_of_an_undisturbed_run(tmp_path: Path) -> None:
    flags = {"model": "llama3-8b", "tp": 1, "max_tokens": 256, "backend": "modelled"}
    spec = resolve_spec(flags)
    whole = profile(ProfileRequest(spec, tmp_path / "whole.parquet"))
    stop = Stop()
    broken = ProfileRequest(spec, tmp_path / "broken.parquet")
    profile(broken, watcher=StopAfter(stop, 20), stop=stop)
    resumed = profile(broken)
    assert (whole.resumed, resumed.resumed) == (0, 20)
    assert whole.table is not None
    assert resumed.table is not None
    assert whole.table.metadata["rows_sha256"] == resumed.table.metadata["rows_sha256"]


def test_fresh_measures_everything_again(output: Path) -> None:
    stopped(output, after=7)
    assert profile(request(output, fresh=True), choice=offer(FakeBackend())).resumed == 0


def test_a_journal_of_another_sweep_stops_before_anything_is_measured(output: Path) -> None:
    stopped(output, after=3)
    backend = FakeBackend()
    with pytest.raises(JournalError, match="another sweep") as caught:
        profile(request(output, seed=5), choice=offer(backend))
    assert "seed is 0 there, 5 here" in str(caught.value.cause)
    assert (backend.ran, backend.closed) == ([], 1)


def test_a_full_disk_keeps_the_journal_and_closes_the_backend(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_fsync, calls = os.fsync, []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real_fsync(descriptor)

    backend = FakeBackend()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        with pytest.raises(OutputError, match="cannot write to the journal"):
            profile(request(output), choice=offer(backend))
    assert backend.closed == 1
    assert peek(journal_path(output))[1] == 4
    assert profile(request(output), choice=offer(FakeBackend())).resumed == 4


def test_a_disk_that_is_full_for_the_table_keeps_every_trial(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full)
        with pytest.raises(OutputError, match=r"cannot write .*table\.parquet"):
            profile(request(output), choice=offer(FakeBackend()))
    backend = FakeBackend()
    assert profile(request(output), choice=offer(backend)).measured == 0
    assert output.exists()
    assert backend.ran == []


def test_a_dry_run_knows_what_is_done_and_touches_nothing(output: Path) -> None:
    spec = resolve_spec({"model": "llama3-8b", "backend": "modelled", "max_tokens": 256})
    asked = ProfileRequest(spec, output)
    before = dry_run(asked)
    assert (before.done, list(output.parent.iterdir())) == (0, [])
    assert before.device_kwh is not None
    # An A100 draws between its idle 60 W and its cap of 400 W.
    mean_w = before.device_kwh * 3.6e6 / before.device_s
    assert 60 < mean_w < 400
    stop = Stop()
    profile(asked, watcher=StopAfter(stop, 11), stop=stop)
    assert dry_run(asked).done == 11
    assert dry_run(ProfileRequest(spec, output, fresh=True)).done == 0
    other = dry_run(ProfileRequest(resolve_spec({"model": "llama3-8b", "seed": 1}), output))
    assert (other.done, "seed" in other.other_journal) == (0, True)


# Killed from outside


def start(log: Path, output: Path, *more: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, __file__, str(log), "profile", *ARGUMENTS, "--output", str(output), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "BEAM_WINDOW": "1s", "BEAM_BUDGET": "1h"},
    )


def wait_for_trials(output: Path, count: int, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 60
    while peek(journal_path(output))[1] < count:
        if process.poll() is not None or time.monotonic() > deadline:
            out, err = process.communicate()
            pytest.fail(f"the sweep never got to {count} trials: {out} {err}")
        time.sleep(0.01)


def calls(log: Path, kind: str) -> Counter[str]:
    lines = log.read_text().splitlines()
    return Counter(line.removeprefix(kind).strip() for line in lines if line.startswith(kind))


def test_kill_9_in_the_middle_measures_no_cell_twice_and_loses_none(
    tmp_path: Path, output: Path
) -> None:
    log = tmp_path / "log"
    for wanted in (5, 20):
        process = start(log, output)
        wait_for_trials(output, wanted, process)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not output.exists()
    kept = peek(journal_path(output))[1]
    process = start(log, output)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert f"going on: {kept} of" in err
    assert "next: beam table inspect" in out
    lines = journal_path(output).read_text().splitlines()[1:]
    total = prepare_module.prepare(
        request(tmp_path / "other.parquet"), choice=offer(FakeBackend())
    ).plan.trial_count
    assert len(lines) == len(set(lines)) == total
    # Each cell ran once per trial (idle ones twice in each round); each kill may have cost the
    # one trial that was under way.
    begun = sum(calls(log, "begin").values())
    assert total <= begun <= total + 2
    assert len(PerfTable.load(output)) == len(calls(log, "begin"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_cell_closes_the_backend_and_says_how_to_go_on(
    tmp_path: Path, output: Path, number: signal.Signals
) -> None:
    log = tmp_path / "log"
    process = start(log, output)
    wait_for_trials(output, 3, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"Stopped by {number.name}" in out
    assert "run the same command again" in out
    assert "Traceback" not in err
    assert log.read_text().splitlines()[-1] == "close"
    begun = sum(calls(log, "begin").values())
    assert begun == peek(journal_path(output))[1], "the cell under way was finished and kept"
    assert not output.exists()


def test_modelled_cells_of_other_sources_are_not_taken_over(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an update of BEAM the old prices had come back from the journal."""
    modelled = request(output, force=True, backend="modelled")
    profile(modelled)
    assert profile(modelled).resumed > 0
    monkeypatch.setattr(prepare_module, "_prices_sha256", lambda: "0" * 12)
    with pytest.raises(JournalError, match="another sweep") as caught:
        profile(modelled)
    assert "prices is" in str(caught.value.cause)


if __name__ == "__main__":
    from beamprof.cli.main import main

    slow = FakeBackend(Path(sys.argv[1]), pause_s=0.02)
    prepare_module.choose_backend = lambda *_: offer(slow)
    sys.exit(main(sys.argv[2:]))
