"""A guard that cannot start, an owner that cannot beat: nothing is locked or left behind."""

import os
import signal
import sys
import threading
from pathlib import Path

import pytest
from lock_bench import HOLDER, LockBench, bench, children, wait_for

from beam_runtime.clocks import guard, guarded
from beam_runtime.clocks.file_gpus import FileGpus
from beam_runtime.clocks.guarded import GuardedActuator
from beam_runtime.clocks.spec import ActuatorKind, ActuatorSpec
from beam_runtime.clocks.state_file import StateFile
from beam_runtime.errors import ClockError

__all__ = ["bench"]  # a fixture


@pytest.fixture
def gpus(tmp_path: Path) -> Path:
    path = tmp_path / "gpus.json"
    FileGpus.create(path, 2)
    return path


def refused(gpus: Path, words: str) -> None:
    """A set is refused with these words, and leaves nothing; the next one works."""
    state = StateFile(gpus.parent / "state")
    actuator = GuardedActuator(
        FileGpus(gpus), ActuatorSpec(ActuatorKind.FILE, file=str(gpus)), state
    )
    with pytest.raises(ClockError, match=words):
        actuator.set(735)
    assert FileGpus.locked(gpus) == {}
    assert state.read() == ()
    assert list(state.folder.glob("lease-*")) == []


@pytest.mark.parametrize("python", ["/nowhere/python", "", None, "/dev/null", "/bin/true"])
def test_no_python_to_run_it_with(
    gpus: Path, monkeypatch: pytest.MonkeyPatch, python: str | None
) -> None:
    """Gone after an upgrade, or a program that holds Python within itself."""
    monkeypatch.setattr(sys, "executable", python)
    refused(gpus, "did not start")


@pytest.mark.parametrize("number", [11, 12, 24])
def test_no_process_memory_or_descriptor_is_left(
    gpus: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise OSError(number, "no more of these")

    monkeypatch.setattr(guard.subprocess, "Popen", exhausted)
    refused(gpus, "did not start")


def test_no_thread_is_left_for_its_heartbeat(gpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    before = children(os.getpid())
    with monkeypatch.context() as broken:
        broken.setattr(guarded.threading.Thread, "start", none_left)
        refused(gpus, "without a heartbeat")
    # Guards of other tests may still be on their way.
    assert set(children(os.getpid())) <= set(before), "its guard went home"


def test_the_next_set_finds_all_in_order(gpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(sys, "executable", "/nowhere/python")
        refused(gpus, "did not start")
    actuator = GuardedActuator(
        FileGpus(gpus),
        ActuatorSpec(ActuatorKind.FILE, file=str(gpus)),
        StateFile(gpus.parent / "state"),
    )
    actuator.set(960)
    assert set(FileGpus.locked(gpus).values()) == {960}
    actuator.close()
    assert FileGpus.locked(gpus) == {}


def test_a_killed_guard_is_no_end_of_an_engine_that_sigpipe_would_kill(bench: LockBench) -> None:
    """Some programs give SIGPIPE its default action back."""
    begin = "\n    import signal\n    signal.signal(signal.SIGPIPE, signal.SIG_DFL)"
    owner = bench.start(begin + HOLDER, 735)
    assert bench.heard(owner) == "set 735"
    (guard_pid,) = children(owner.pid)
    os.kill(guard_pid, signal.SIGKILL)
    assert bench.heard(owner).startswith("ClockError None the guard that releases clocks")
    wait_for(lambda: not bench.board.locked())
    assert bench.wish(owner, 960) == "set 960", "under another guard"
    assert owner.poll() is None


@pytest.mark.parametrize("before", ["", "/somewhere"])
def test_what_lies_beside_an_installed_package_hides_no_standard_module(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, before: str
) -> None:
    """A backport of dataclasses, say: Python looks in its own folder of packages last."""
    monkeypatch.setenv("PYTHONPATH", before)
    monkeypatch.setattr(guard, "__file__", str(tmp_path / "beam_runtime" / "clocks" / "guard.py"))
    beside = f"{tmp_path}{os.pathsep}{before}" if before else str(tmp_path)
    assert guard._python_path() == beside, "a checkout"
    monkeypatch.setattr(guard.site, "getsitepackages", lambda: ["/usr/lib", str(tmp_path)])
    assert guard._python_path() == before


@pytest.mark.parametrize("error", [RuntimeError, OSError, SystemExit, KeyboardInterrupt])
def test_what_an_actuator_raises_at_the_end_leaves_the_release_to_the_guard(
    gpus: Path, error: type[BaseException]
) -> None:
    class Broken(FileGpus):
        def release(self, *, orphans: bool = False) -> None:
            raise error("not now")

    actuator = GuardedActuator(
        Broken(gpus),
        ActuatorSpec(ActuatorKind.FILE, file=str(gpus)),
        StateFile(gpus.parent / "state"),
    )
    actuator.set(735)
    with pytest.raises(error):
        actuator.close()
    wait_for(lambda: FileGpus.locked(gpus) == {})
