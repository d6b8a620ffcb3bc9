"""What a controller is opened with: an engine starts, whatever its machine is like."""

import os
import threading
from pathlib import Path

import pytest

from beam_runtime.clocks import layout, owner
from beam_runtime.control import resources
from beam_runtime.control.controller import Controller
from beam_runtime.control.resources import open_clocks
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.testing.nvml import FakeGpu, FakeNvml, fake_gpus
from beam_runtime.types import EngineLimits
from beamprof.tables.table_file import write_table


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeNvml:
    """Eight GPUs, and the right to lock them."""
    made = FakeNvml(fake_gpus(8))
    monkeypatch.setattr("beam_runtime.clocks.nvml._import_pynvml", lambda: made)
    monkeypatch.setattr("beam_runtime.clocks.choose.may_lock_clocks", lambda *_: True)
    monkeypatch.setenv("BEAM_STATE_DIR", str(tmp_path / "state"))
    return made


@pytest.fixture
def table(small_table: PerfTable, tmp_path: Path) -> Path:
    path = tmp_path / "t.parquet"
    write_table(small_table.columns, small_table.metadata, path)
    return path


def serves_without_clocks(table: Path) -> str:
    """Opened and closed; what it says of clocks."""
    controller = Controller.from_table(table, EngineLimits(pp=4), gpus=range(8))
    with controller:
        controller.arrival("r1", 100)
        controller.completion("r1")
    return controller.clocks


def test_it_would_lock_them(nvml: FakeNvml) -> None:
    actuator, why = open_clocks(range(8))
    assert actuator is not None
    assert why.startswith("clocks through nvml")
    assert actuator.gpus == tuple(gpu.uuid for gpu in nvml.gpus)


@pytest.mark.parametrize("function", ["nvmlInit", "nvmlDeviceGetSupportedGraphicsClocks"])
def test_a_driver_that_hangs_at_the_start(
    nvml: FakeNvml, table: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    over = threading.Event()
    hung = type("Hung", (FakeNvml,), {function: lambda *_: over.wait()})(gpus=nvml.gpus)
    monkeypatch.setattr("beam_runtime.clocks.nvml._import_pynvml", lambda: hung)
    for module in (resources, layout):
        monkeypatch.setattr(module, "OPEN_LIMIT_S", 0.05)
    assert "does not return" in serves_without_clocks(table)
    over.set()


def test_a_machine_that_shows_no_processes(
    nvml: FakeNvml, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without /proc nobody can tell who holds a lock."""

    def absent(pid: int) -> tuple[str, int]:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(owner, "_stat", absent)
    assert serves_without_clocks(table).startswith("clocks stay as they are: FileNotFoundError")


def test_a_user_without_a_home(
    nvml: FakeNvml, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("BEAM_STATE_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("beam_runtime.clocks.state_file.SYSTEM_FOLDER", Path("/nowhere"))
    monkeypatch.setattr(Path, "home", homeless)
    assert "no folder to keep a record" in serves_without_clocks(table)


@pytest.mark.parametrize("odd", ["everybody's", "a file", "cut", "newer", "no place for one"])
def test_a_record_that_cannot_be_kept_costs_the_clocks_alone(
    nvml: FakeNvml, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: str
) -> None:
    """A container whose files cannot be written: the other three knobs still turn."""
    folder = tmp_path / "state"
    folder.mkdir()
    match odd:
        case "everybody's":
            folder.chmod(0o777)
        case "a file":
            folder.rmdir()
            folder.touch()
        case "cut":
            (folder / "clocks.json").write_text('{"version": 2,')
        case "newer":
            (folder / "clocks.json").write_text('{"version": 3, "holdings": []}')
        case _:
            folder = Path("/proc/beam")
    monkeypatch.setenv("BEAM_STATE_DIR", str(folder))
    assert str(folder) in serves_without_clocks(table)
    assert "nvmlDeviceSetGpuLockedClocks" not in nvml.calls


def test_a_gpu_that_others_have_slices_of_is_not_locked(nvml: FakeNvml, table: Path) -> None:
    nvml.gpus[3].mig = 1
    assert "GPU-3 is cut into MIG slices" in serves_without_clocks(table)
    assert "nvmlDeviceSetGpuLockedClocks" not in nvml.calls


@pytest.mark.parametrize("visible", ["8,9", "0,1,2,3", "GPU-0", "MIG-5ca1ab1e-0000"])
def test_gpus_that_cuda_does_not_give_to_this_process_are_another_s(
    nvml: FakeNvml, table: Path, monkeypatch: pytest.MonkeyPatch, visible: str
) -> None:
    nvml.gpus += [FakeGpu("GPU-8"), FakeGpu("GPU-9")]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert "is not one of this process's" in serves_without_clocks(table)
    assert "nvmlDeviceSetGpuLockedClocks" not in nvml.calls


@pytest.mark.parametrize(
    "visible", ["", "0,1,2,3,4,5,6,7", "7,6,5,4,3,2,1,0,8", "-1", "none", "0,0"]
)
def test_a_variable_that_gives_them_or_says_nothing_is_no_reason(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, visible: str
) -> None:
    nvml.gpus.append(FakeGpu("GPU-8"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert open_clocks(range(8))[0] is not None


def test_without_the_variable_nothing_is_asked(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    nvml.fail("nvmlDeviceGetName", 999, gpu=2)  # nobody needs it to lock
    assert open_clocks(range(8))[0] is not None


def test_whether_a_gpu_is_sliced_need_not_be_told(nvml: FakeNvml) -> None:
    nvml.fail("nvmlDeviceGetMigMode", 3)  # NOT_SUPPORTED, as before Ampere
    assert open_clocks(range(8))[0] is not None


@pytest.mark.parametrize("log", ["pipe", "folder", "dangling link into nowhere"])
def test_a_log_that_is_no_file_is_not_waited_for(nvml: FakeNvml, table: Path, log: str) -> None:
    path = table.parent / "log"
    match log:
        case "pipe":
            os.mkfifo(path)  # nobody reads it
        case "folder":
            path.mkdir()
        case _:
            path.symlink_to("/nowhere/at/all")
    with Controller.from_table(table, EngineLimits(pp=4), decision_log=path) as controller:
        controller.arrival("r1", 100)
    assert controller.status.counts.events >= 0
