"""The guard gives back what it knows of, whatever has become of the record and its folder."""

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from lock_bench import LockBench, bench

from beam_runtime.clocks import watch
from beam_runtime.clocks.owner import Owner
from beam_runtime.clocks.state_file import Holding, StateFile
from beam_runtime.errors import ClockError
from beam_runtime.testing.actuator import FakeActuator

__all__ = ["bench"]  # a fixture


@pytest.fixture
def state(tmp_path: Path) -> StateFile:
    made = StateFile(tmp_path / "state")
    made.prepare()
    return made


def freed(state: StateFile) -> bool:
    """Whether a lock of a dead owner is given back at the first try."""
    actuator = FakeActuator()
    actuator.set(735)
    lease = Holding(Owner.current(), actuator.gpus, 735, "nvml", generation=1)

    def pause(seconds: float) -> None:
        assert seconds == 0.0, "it is not tried again"

    done = watch.release([actuator], state, lease, lambda gpus: [], sleep_s=pause)
    return done and actuator.locked_mhz == [None]


@pytest.mark.parametrize("odd", ["folder", "pipe", "link into nowhere"])
def test_something_else_in_the_records_place(state: StateFile, odd: str) -> None:
    match odd:
        case "folder":
            state.path.mkdir()
        case "pipe":
            os.mkfifo(state.path)
        case _:
            state.path.symlink_to("/nowhere/at/all")
    assert freed(state)


def test_a_folder_that_is_a_file_by_now(state: StateFile) -> None:
    state.folder.rmdir()
    state.folder.touch()
    assert freed(state)


@pytest.mark.parametrize("number", [5, 13, 116])
def test_a_folder_of_a_file_system_that_fails(
    state: StateFile, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Forbidden, stale, broken."""

    def fails(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    for name in ("stat", "open", "mkdir"):
        monkeypatch.setattr(os, name, fails)
    assert freed(state)


def test_a_folder_of_a_file_system_that_hangs(
    state: StateFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server of the network is gone, and whoever touches its files waits for it."""
    over, real = threading.Event(), os.stat

    def hangs(path: object, *more: object, **named: object) -> object:
        if str(path).startswith(str(state.folder)):
            over.wait()
        return real(path, *more, **named)  # type: ignore[arg-type]

    def untouched(*_: object) -> None:
        raise AssertionError("the record is out of reach")

    monkeypatch.setattr(os, "stat", hangs)
    monkeypatch.setattr(watch, "turn", untouched)
    monkeypatch.setattr(StateFile, "read", untouched)
    assert freed(state)
    over.set()


def test_a_guard_that_cannot_tell_frees_by_what_it_was_told(state: StateFile) -> None:
    state.path.write_text("{")
    with pytest.raises(ClockError):
        state.read()
    assert freed(state)


def a_folder_at(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def a_pipe_at(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def a_file_for(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.touch()


def a_link_for(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to("/nowhere/at/all")


ODD: list[tuple[str, Callable[[Path], None]]] = [
    ("clocks.json", a_folder_at),
    ("clocks.json", a_pipe_at),
    ("clocks.lock", a_folder_at),
    ("gpu-GPU-0.lock", a_folder_at),
    ("lease-1.lock", a_folder_at),
    ("lease-1.lock", a_pipe_at),
    ("", a_file_for),
    ("", a_link_for),
    ("", lambda folder: folder.chmod(0o777)),
    ("", lambda folder: folder.chmod(0)),
]


@pytest.mark.parametrize(("name", "change"), ODD)
@pytest.mark.parametrize("killed", [True, False])
def test_a_lock_in_force_while_something_odd_takes_the_records_place(
    bench: LockBench, name: str, change: Callable[[Path], None], killed: bool
) -> None:
    """Whether its owner dies then or wishes for another clock: both GPUs at one clock, or free."""
    owner = bench.holder(735, "GPU-0", "GPU-1")
    folder = bench.state.folder
    change(folder / name if name else folder)
    if not killed:
        said = bench.wish(owner, 960)
        locked = bench.board.locked()
        assert len(locked) in (0, 2)
        assert len(set(locked.values())) < 2
        assert locked != {} or said != "set 960"
    owner.kill()
    owner.wait()
    bench.free()
    if folder.is_dir():
        folder.chmod(0o700)
