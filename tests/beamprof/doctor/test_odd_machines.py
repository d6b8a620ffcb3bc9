"""beam doctor looks on whatever a machine is like: a driver that hangs, folders that are shut."""

import threading
from pathlib import Path

import pytest

from beam_runtime.clocks.claims import change
from beam_runtime.clocks.owner import Owner
from beam_runtime.clocks.state_file import Holding, StateFile
from beam_runtime.testing.nvml import FakeGpu, FakeNvml, fake_gpus
from beamprof.doctor import diagnose as doctor
from beamprof.doctor import gpus as doctor_gpus
from beamprof.doctor.diagnose import diagnose


@pytest.fixture
def state(tmp_path: Path) -> StateFile:
    return StateFile(tmp_path / "state")


def hung(function: str, over: threading.Event, only: str = "") -> FakeNvml:
    """GPUs behind a driver of which one function does not return, for one GPU or all."""
    real = getattr(FakeNvml, function)

    def call(self: FakeNvml, *arguments: object) -> object:
        (handle, *_) = (*arguments, None)
        if not only or (isinstance(handle, FakeGpu) and handle.uuid == only):
            over.wait()
        return real(self, *arguments)

    made: FakeNvml = type("Hung", (FakeNvml,), {function: call})(fake_gpus(3))
    return made


def test_a_gpu_that_does_not_answer_is_shown_beside_the_others(
    state: StateFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_gpus, "_PATIENCE_S", 2.0)
    over = threading.Event()
    found = diagnose(state=state, nvml=hung("nvmlDeviceGetName", over, "GPU-1"))
    over.set()
    assert [bool(gpu.sick) for gpu in found.gpus] == [False, True, False]
    assert "does not return" in found.gpus[1].sick
    (line,) = (check for check in found.checks if check.name == "GPU 1" and check.ok is False)
    assert "dmesg" in line.remedy
    assert not found.controls


def test_a_driver_that_does_not_start_is_no_driver(
    state: StateFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_gpus, "_PATIENCE_S", 0.05)
    over = threading.Event()
    found = diagnose(state=state, nvml=hung("nvmlInit", over))
    over.set()
    assert found.gpus == ()
    assert "does not return" in found.no_gpus
    assert not found.controls


def test_an_orphan_that_cannot_be_freed_in_time_is_stuck(
    state: StateFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = Owner(1 << 30, 1, Owner.current().boot_id)
    change(state, Holding(dead, ("GPU-0",), 735, "nvml", generation=3))
    over = threading.Event()
    monkeypatch.setattr(doctor, "_PATIENCE_S", 0.05)
    monkeypatch.setattr(doctor, "release_orphan", lambda *_: over.wait())
    found = diagnose(restore_orphans=True, state=state, nvml=FakeNvml(fake_gpus(1)))
    over.set()
    (lock,) = found.locks
    assert (lock.state, lock.gpus) == ("stuck", ("GPU-0",))
    assert "does not return" in lock.error
    assert state.read(), "it stays on record"


@pytest.mark.parametrize("variable", ["ZEUSD_SOCK_PATH", "NUMBA_CACHE_DIR"])
@pytest.mark.parametrize("place", ["hidden", "x" * 5000, "a\udcffb", "\x1b[2J"])
def test_a_place_that_cannot_be_looked_at(
    state: StateFile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, place: str
) -> None:
    """Of another user's, too long for any file, or of no text."""
    if place == "hidden":
        place = str(tmp_path / "hidden" / "thing")

        def forbidden(path: Path, **_: object) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(Path, "stat", forbidden)
    monkeypatch.setenv(variable, place)
    found = diagnose(state=state, nvml=FakeNvml(fake_gpus(1)))
    assert len(found.checks) > 3
    assert any(check.name == "zeusd" for check in found.checks)


def test_a_user_without_a_home(state: StateFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(*_: object) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setattr(Path, "expanduser", homeless)
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    found = diagnose(state=state, nvml=FakeNvml(fake_gpus(1)))
    assert any(check.name == "numba's cache" for check in found.checks)
