"""`profile()` and its way through kill -9, signals, full disks and reruns.

Run as a program, this file is a sweep on a slow fake backend, to be killed from outside:

    python test_profile.py LOG [arguments of beam]
"""

import errno
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from beam_runtime.clocks.lock import ClockLock
from beam_runtime.clocks.nvml import NvmlGpus
from beam_runtime.errors import BeamError
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.schema import RowKind
from beam_runtime.testing.nvml import FakeGpu, FakeNvml
from beam_runtime.types import Source
from beamprof.backends.base import Measurement
from beamprof.backends.cell import Cell
from beamprof.errors import BackendError, JournalError, ModelShapeError, OutputError, SweepError
from beamprof.interrupt import Stop
from beamprof.profiler import prepare as prepare_module
from beamprof.profiler.choose_backend import Choice
from beamprof.profiler.dry_run import dry_run
from beamprof.profiler.journal import journal_path, peek
from beamprof.profiler.plan import ClockChoice, Trial
from beamprof.profiler.profile import ProfileRequest, ProfileResult, Unwatched, profile
from beamprof.profiler.spec import resolve_spec

FLAGS = {"model": "llama3-8b", "clocks": "510,1410", "max_tokens": 256, "trials": 2,
         "window": "1s", "budget": "1h"}  # fmt: skip
ARGUMENTS = ["--model", "llama3-8b", "--clocks", "510,1410", "--max-tokens", "256"]


class FakeBackend:
    """Numbers from a formula, a log of every call, and a pause in each trial."""

    name = "fake"

    def __init__(self, log: Path | None = None, pause_s: float = 0.0) -> None:
        self.log = log
        self.pause_s = pause_s
        self.ran: list[Cell] = []
        self.closed = 0
        self.refuses: Callable[[Cell], bool] = lambda cell: False

    def open(self) -> Mapping[str, str]:
        self._say("open")
        return {"device": "fake", "energy_source": "nvml counter", "driver": "1.0",
                "engine": "fake", "engine_version": "1", "gpu_name": "Fake"}  # fmt: skip

    def run(self, cell: Cell) -> Measurement:
        if self.refuses(cell):
            raise BackendError(f"{cell.decode_requests} requests do not fit into memory")
        self._say(f"begin {cell}")
        self.ran.append(cell)
        time.sleep(self.pause_s)
        # Two trials of a cell differ by 2 % around the formula.
        wobble = 1.0 + (0.01 if Counter(self.ran)[cell] % 2 else -0.01)
        if cell.kind is RowKind.IDLE:
            return Measurement(1000.0, 80.0 * wobble, Source.MEASURED, clock_reached_mhz=1410.0)
        latency_ms = (1.0 + cell.shape.tokens / 50) * 1410 / (cell.clock_mhz or 1410) * wobble
        self._say(f"end {cell}")
        return Measurement(
            latency_ms,
            latency_ms * 0.3,
            Source.MEASURED,
            latency_ci_ms=0.001,
            clock_reached_mhz=float(cell.clock_mhz or 1395),
            passes=10,
        )

    def estimate_s(self, cell: Cell) -> float:
        del cell
        return self.pause_s

    def close(self) -> None:
        self.closed += 1
        self._say("close")

    def _say(self, text: str) -> None:
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(text + "\n")


def offer(backend: FakeBackend, device: str = "fake") -> Choice:
    clocks = ClockChoice(device, tuple(range(210, 1411, 15)))
    return Choice("fake", "fake, as this is a test", clocks, None, lambda plan: backend)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "table.parquet"


def request(
    output: Path, *, force: bool = False, fresh: bool = False, **flags: object
) -> ProfileRequest:
    return ProfileRequest(resolve_spec({**FLAGS, **flags}), output, force=force, fresh=fresh)


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


def test_every_cell_becomes_one_row_with_both_trials_behind_it(output: Path) -> None:
    backend = FakeBackend()
    result = profile(request(output), choice=offer(backend))
    plan = result.prepared.plan
    assert result.table is not None
    assert (result.measured, result.resumed, result.remaining) == (plan.trial_count, 0, 0)
    table = PerfTable.load(output, model="llama3-8b", tp=1, pp=1, device="fake")
    rows = table.rows(RowKind.FORWARD)
    assert table.clocks_mhz == (510, 1410)
    assert len(rows["latency_ms"]) == 2 * len(plan.steps)
    tokens = rows["prefill_tokens"] + rows["decode_requests"]
    # The trials are 1 % to both sides, so their median is the formula itself.
    np.testing.assert_allclose(rows["latency_ms"], (1 + tokens / 50) * 1410 / rows["clock_mhz"])
    np.testing.assert_array_equal(rows["passes"], 20)
    scatter = 1.96 * 0.01 * np.sqrt(2) / np.sqrt(2)
    np.testing.assert_allclose(rows["latency_ci_ms"] / rows["latency_ms"], scatter, rtol=0.2)
    assert sorted(set(table.rows(RowKind.IDLE)["clock_mhz"])) == [510, 1410]
    assert (table.metadata["driver"], table.stage_layers) == ("1.0", 32)
    assert backend.closed == 1


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


def test_an_existing_output_is_refused_before_anything_is_measured(output: Path) -> None:
    output.write_text("precious")
    backend = FakeBackend()
    with pytest.raises(OutputError, match="exists") as caught:
        profile(request(output), choice=offer(backend))
    assert "--force" in str(caught.value.hint)
    assert (output.read_text(), backend.ran, journal_path(output).exists()) == (
        "precious", [], False
    )  # fmt: skip
    assert profile(request(output, force=True), choice=offer(backend)).table is not None


def test_an_output_in_no_directory_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    backend = FakeBackend()
    with pytest.raises(OutputError, match="no directory"):
        profile(request(tmp_path / "none" / "table.parquet"), choice=offer(backend))
    assert backend.ran == []


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


def test_one_cell_that_cannot_run_does_not_cost_the_others(output: Path) -> None:
    backend = FakeBackend()
    backend.refuses = lambda cell: cell.decode_requests == 64 and cell.clock_mhz == 510
    result = profile(request(output), choice=offer(backend))
    assert result.table is not None
    assert result.remaining == len(result.refused) > 0
    assert "do not fit into memory" in result.refused[0]
    rows = result.table.rows(RowKind.FORWARD)
    assert not ((rows["decode_requests"] == 64) & (rows["clock_mhz"] == 510)).any()


def test_a_backend_that_refuses_everything_is_an_error(output: Path) -> None:
    backend = FakeBackend()
    backend.refuses = lambda cell: True
    with pytest.raises(BackendError, match="do not fit"):
        profile(request(output), choice=offer(backend))
    assert backend.closed == 1


def test_a_bug_in_the_backend_still_closes_it(output: Path) -> None:
    backend = FakeBackend()

    def broken(cell: Cell) -> bool:
        raise ZeroDivisionError(f"{cell}")

    backend.refuses = broken
    with pytest.raises(ZeroDivisionError):
        profile(request(output), choice=offer(backend))
    assert backend.closed == 1


def test_current_clocks_carry_the_clock_that_was_reached(output: Path) -> None:
    result = profile(request(output, clocks="current"), choice=offer(FakeBackend()))
    assert result.table is not None
    assert result.table.clocks_mhz == (1410,)
    assert set(result.table.rows(RowKind.FORWARD)["clock_reached_mhz"]) == {1395.0}


@pytest.mark.parametrize(
    ("flags", "error", "words"),
    [
        ({"model": None}, SweepError, "no model was named"),
        ({"model": "llama9"}, ModelShapeError, "unknown model"),
        ({"tp": 3}, ModelShapeError, "--tp 3 does not divide"),
        ({"pp": 500}, ModelShapeError, "--pp 500 is over"),
        ({"clocks": "511"}, SweepError, "no clock of 511 MHz"),
        ({"max_context": 100_000}, SweepError, "over the 8192 tokens"),
        ({"budget": "1s"}, SweepError, "fits into 1 s"),
    ],
)
def test_bad_requests_leave_nothing_behind(
    output: Path, flags: dict[str, object], error: type[BeamError], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        profile(request(output, **flags), choice=offer(FakeBackend()))
    assert caught.value.hint
    assert list(output.parent.iterdir()) == []


def test_modelling_keeps_every_cell_while_a_real_device_keeps_its_budget(tmp_path: Path) -> None:
    flags = {"model": "qwen3-32b", "tp": 2, "pp": 2, "backend": "modelled", "device": "h200-sxm"}
    prepared = prepare_module.prepare(ProfileRequest(resolve_spec(flags), tmp_path / "t.parquet"))
    assert prepared.measured_plan.duration_s <= 15 * 60
    assert len(prepared.plan.steps) >= len(prepared.measured_plan.steps)
    assert (prepared.plan.share, prepared.plan.rounds) == (1.0, 1)
    everything = prepare_module.prepare(
        ProfileRequest(resolve_spec({**flags, "clocks": "all"}), tmp_path / "t.parquet")
    )
    assert len(everything.plan.clocks_mhz) > 100


def test_a_following_rank_keeps_no_journal_and_writes_no_table(output: Path) -> None:
    class Rank(FakeBackend):
        follows = True
        followed = False

        def follow(self) -> None:
            self.followed = True

    rank = Rank()
    result = profile(request(output), choice=offer(rank))
    assert (rank.followed, rank.ran, rank.closed) == (True, [], 1)
    assert (result.follower, list(output.parent.iterdir())) == (True, [])


def test_the_default_name_tells_model_layout_and_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = resolve_spec({"model": "llama3-70b", "tp": 2, "pp": 4, "backend": "modelled"})
    result = profile(ProfileRequest(spec))
    assert result.prepared.output == Path("llama3-70b-tp2-pp4-a100-sxm4-80gb.parquet")
    assert result.prepared.output.exists()


def test_a_model_too_large_for_a_gpu_is_modelled_with_a_note(output: Path) -> None:
    flags = {"model": "llama3-70b", "backend": "modelled"}
    prepared = prepare_module.prepare(ProfileRequest(resolve_spec(flags), output))
    assert any("137 GB of weights" in note for note in prepared.notes)


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


if __name__ == "__main__":
    from beamprof.cli.main import main

    slow = FakeBackend(Path(sys.argv[1]), pause_s=0.02)
    prepare_module.choose_backend = lambda *_: offer(slow)
    sys.exit(main(sys.argv[2:]))


class Locking(FakeBackend):
    """A fake backend that locks a GPU for each cell, as the real ones do."""

    def __init__(self, nvml: FakeNvml) -> None:
        super().__init__()
        self.nvml = nvml

    def open(self) -> Mapping[str, str]:
        self.lock = ClockLock(NvmlGpus([0], nvml=self.nvml), settle_s=0.02)
        return super().open()

    def run(self, cell: Cell) -> Measurement:
        self.lock.set(cell.clock_mhz or 510)
        return super().run(cell)

    def close(self) -> None:
        self.lock.close()
        super().close()


def held_below(most_mhz: int) -> FakeNvml:
    """A GPU whose clock stays below what it is locked at, and that gives no reason."""

    class Low(FakeNvml):
        __slots__ = ()

        def nvmlDeviceSetGpuLockedClocks(  # noqa: N802
            self, handle: FakeGpu, minGpuClockMHz: int, maxGpuClockMHz: int
        ) -> None:
            super().nvmlDeviceSetGpuLockedClocks(handle, minGpuClockMHz, maxGpuClockMHz)
            handle.sm_clock_mhz = min(maxGpuClockMHz, most_mhz)

    return Low(gpus=[FakeGpu("GPU-0")])


@pytest.mark.parametrize(("most_mhz", "clocks"), [(1396, {510, 1410}), (1395, {510})])
def test_a_clock_that_is_not_reached_costs_its_cells_and_not_the_sweep(
    output: Path, most_mhz: int, clocks: set[int]
) -> None:
    """A window's mean may be 1 % off; 1395 for 1410, one step, is a little more."""
    backend = Locking(held_below(most_mhz))
    result = profile(request(output), choice=offer(backend))
    assert result.table is not None
    assert set(result.table.columns["clock_mhz"].tolist()) == clocks
    assert bool(result.refused) == (clocks == {510})
    assert all("1410 MHz" in words for words in result.refused)
    assert backend.nvml.locked == [None]
