"""beam doctor: tells what is here, and releases what the dead left locked, nothing else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from beam_runtime.clocks.claims import claim
from beam_runtime.clocks.file_gpus import FileGpus
from beam_runtime.clocks.owner import Owner
from beam_runtime.clocks.state_file import StateFile
from beam_runtime.testing.nvml import FakeNvml, fake_gpus
from beamprof.cli.main import main
from beamprof.doctor.diagnose import diagnose
from beamprof.report.doctor_view import show_diagnosis

PACKAGE_ROOT = Path(__file__).parents[3]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StateFile:
    monkeypatch.setenv("BEAM_STATE_DIR", str(tmp_path / "state"))
    return StateFile()


@pytest.fixture
def orphan(tmp_path: Path, state: StateFile) -> Path:
    """GPUs in a file, locked on record by a process that is dead."""
    gpus = tmp_path / "gpus.json"
    FileGpus.create(gpus, 2)
    script = (
        "import sys\n"
        "from beam_runtime.clocks.claims import claim\n"
        "from beam_runtime.clocks.file_gpus import FileGpus\n"
        "from beam_runtime.clocks.owner import Owner\n"
        "from beam_runtime.clocks.state_file import StateFile\n"
        "gpus = FileGpus(sys.argv[1])\n"
        "claim(StateFile(), Owner.current(), gpus.gpus, f'file:{sys.argv[1]}', 1005)\n"
        "gpus.set(1005)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(gpus)], check=True, cwd=PACKAGE_ROOT)
    assert FileGpus.locked(gpus)
    return gpus


@pytest.mark.parametrize("odd", ["everybody's", "a file", "below a file", "cut"])
def test_a_record_that_cannot_be_kept_is_no_control(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: str
) -> None:
    folder = tmp_path / "state"
    match odd:
        case "everybody's":
            folder.mkdir()
            folder.chmod(0o777)
        case "a file":
            folder.touch()
        case "below a file":
            folder.touch()
            folder = folder / "beam"
        case _:
            folder.mkdir()
            (folder / "clocks.json").write_text("{")
    found = diagnose(state=StateFile(folder), nvml=FakeNvml(fake_gpus(1)))
    (record,) = [check for check in found.checks if check.name == "record"]
    assert record.ok is False
    assert str(folder) in record.found
    assert record.remedy
    assert not found.controls


def test_a_record_that_could_be_made_is_not_made_by_looking(tmp_path: Path) -> None:
    found = diagnose(state=StateFile(tmp_path / "a" / "b"), nvml=FakeNvml(fake_gpus(1)))
    (record,) = [check for check in found.checks if check.name == "record"]
    assert record.ok
    assert not (tmp_path / "a").exists()


def test_gpus_are_listed(state: StateFile) -> None:
    nvml = FakeNvml(fake_gpus(2))
    found = diagnose(state=state, nvml=nvml)
    assert [(gpu.index, gpu.uuid) for gpu in found.gpus] == [(0, "GPU-0"), (1, "GPU-1")]
    assert (found.gpus[0].lowest_mhz, found.gpus[0].highest_mhz) == (210, 1410)
    assert found.no_gpus == ""
    assert found.driver == "580.159.03"
    assert found.well
    assert nvml.locked == [None, None]
    assert not {call for call in nvml.calls if "Set" in call or "Reset" in call}


def test_the_users_own_settings_are_named(
    state: StateFile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    nvml = FakeNvml(fake_gpus(1))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert diagnose(state=state, nvml=nvml).user_file is None
    file = tmp_path / "beam/config.toml"
    file.parent.mkdir()
    file.write_text('[profile]\nbudget = "5m"\n')
    monkeypatch.setenv("BEAM_TOKEN", "a secret")
    found = diagnose(state=state, nvml=nvml)
    assert found.user_file == str(file)
    assert "BEAM_TOKEN" in found.variables
    show_diagnosis(found, Console(width=200))
    out = "".join(capsys.readouterr().out.split())
    assert str(file) in out
    assert "BEAM_TOKEN" in out
    assert "asecret" not in out


def test_no_driver_is_no_failure(state: StateFile) -> None:
    nvml = FakeNvml()
    nvml.fail("nvmlInit", 12)
    found = diagnose(state=state, nvml=nvml)
    assert found.gpus == ()
    assert "code 12" in found.no_gpus
    assert found.well


def test_a_lock_left_behind_is_found_and_left_until_asked(
    orphan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "left locked by a process that is dead" in printed
    assert "next: beam doctor --restore" in printed
    assert FileGpus.locked(orphan)


def test_restore_releases_it(
    orphan: Path, state: StateFile, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--restore", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [lock["state"] for lock in printed["data"]["locks"]] == ["released"]
    assert FileGpus.locked(orphan) == {}
    assert state.read() == ()


def test_a_living_owners_lock_is_not_touched(tmp_path: Path, state: StateFile) -> None:
    gpus = tmp_path / "gpus.json"
    FileGpus.create(gpus)
    FileGpus(gpus).set(1005)
    claim(state, Owner.current(), FileGpus(gpus).gpus, f"file:{gpus}", 1005)
    found = diagnose(restore_orphans=True, state=state, nvml=FakeNvml())
    assert [lock.state for lock in found.locks] == ["held"]
    assert found.well
    assert FileGpus.locked(gpus)


def test_what_cannot_be_released_is_said(
    orphan: Path, state: StateFile, capsys: pytest.CaptureFixture[str]
) -> None:
    orphan.unlink()
    assert main(["doctor", "--restore"]) == 1
    assert "could not be released" in capsys.readouterr().out
    assert len(state.read()) == 1


def test_a_broken_record_is_an_answer_of_its_own(
    state: StateFile, capsys: pytest.CaptureFixture[str]
) -> None:
    state.folder.mkdir()
    state.path.write_text("{")
    assert main(["doctor", "--restore"]) == 1
    assert "record of locks cannot be read" in capsys.readouterr().out
    assert state.path.read_text() == "{"


def test_a_record_moves_no_cursor(state: StateFile, capsys: pytest.CaptureFixture[str]) -> None:
    state.folder.mkdir(mode=0o700)
    state.path.write_text('{"version": "\\u001b[31m\\u202e\\ud800", "holdings": []}')
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert r"version \x1b[31m\u202e\ud800" in printed
    assert "\x1b" not in printed and "\u202e" not in printed
