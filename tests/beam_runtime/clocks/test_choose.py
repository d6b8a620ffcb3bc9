"""Which way to set clocks is chosen without touching anything, and says why."""

import os
import socket
from pathlib import Path

import pytest

from beam_runtime.clocks.choose import choose_actuator, may_lock_clocks
from beam_runtime.clocks.file_gpus import FileGpus
from beam_runtime.clocks.spec import ActuatorKind, ActuatorSpec
from beam_runtime.errors import ClockUnavailableError

PLAIN = "Name:\tpython\nCapEff:\t0000000000000000\n"
ROOT = "Name:\tpython\nCapEff:\t000001ffffffffff\n"
ROOT_IN_A_CONTAINER = "Name:\tpython\nCapEff:\t00000000a80425fb\n"


def status(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "status"
    path.write_text(text)
    return path


@pytest.fixture
def no_zeusd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZEUSD_SOCK_PATH", str(tmp_path / "none.sock"))


@pytest.mark.parametrize(
    ("text", "may"), [(PLAIN, False), (ROOT, True), (ROOT_IN_A_CONTAINER, False)]
)
def test_the_capability_decides_not_the_user_id(tmp_path: Path, text: str, may: bool) -> None:
    assert may_lock_clocks(status(tmp_path, text)) is may


@pytest.mark.usefixtures("no_zeusd")
def test_root_goes_to_nvml(tmp_path: Path) -> None:
    choice = choose_actuator([0, 1], proc_status=status(tmp_path, ROOT))
    assert choice.spec == ActuatorSpec(ActuatorKind.NVML, (0, 1))
    assert "CAP_SYS_ADMIN" in str(choice)


@pytest.mark.usefixtures("no_zeusd")
def test_other_nodes_are_said_beside_it(tmp_path: Path) -> None:
    choice = choose_actuator([0, "node2:4938/0"], proc_status=status(tmp_path, ROOT))
    assert choice.spec == ActuatorSpec(ActuatorKind.NVML, (0, "node2:4938/0"))
    assert str(choice).endswith("; those of other nodes through zeusd at node2:4938")


def test_a_plain_user_goes_to_zeusd_where_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "zeusd.sock")
    monkeypatch.setenv("ZEUSD_SOCK_PATH", path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        choice = choose_actuator([0], proc_status=status(tmp_path, PLAIN))
    assert choice.spec == ActuatorSpec(ActuatorKind.ZEUSD, (0,), socket=path)


@pytest.mark.usefixtures("no_zeusd")
def test_nobody_else_gets_clocks_but_three_ways_out(tmp_path: Path) -> None:
    choice = choose_actuator([0], proc_status=status(tmp_path, PLAIN))
    assert choice.spec.kind is ActuatorKind.NONE
    for way in ("CAP_SYS_ADMIN", "zeusd", "leave the clocks alone"):
        assert way in choice.reason


def test_a_command_given_is_a_command_used(tmp_path: Path) -> None:
    choice = choose_actuator(
        [0],
        set_command=["lock", "{gpu}", "{clock_mhz}"],
        release_command=["free", "{gpu}"],
        proc_status=status(tmp_path, ROOT),
    )
    assert choice.spec.kind is ActuatorKind.COMMAND


def test_no_gpu_no_clocks(tmp_path: Path) -> None:
    assert choose_actuator([], proc_status=status(tmp_path, ROOT)).spec.kind is ActuatorKind.NONE


@pytest.mark.parametrize(
    "spec",
    [
        ActuatorSpec(ActuatorKind.NVML, ("GPU-1", 2)),
        ActuatorSpec(ActuatorKind.COMMAND, ("GPU-1",), "", ("a", "{gpu}"), ("b",)),
        ActuatorSpec(ActuatorKind.FILE, ("GPU-1",), file="/x y/gpus.json"),
    ],
)
def test_a_spec_survives_the_way_to_another_process(spec: ActuatorSpec) -> None:
    assert ActuatorSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    "spec",
    [
        ActuatorSpec(ActuatorKind.NVML, ("GPU-1",)),
        ActuatorSpec(ActuatorKind.ZEUSD, ("GPU-1",), socket="/run/a:b.sock"),
        ActuatorSpec(ActuatorKind.FILE, ("GPU-1",), file="/x/gpus.json"),
    ],
)
def test_a_record_names_what_can_release_it(spec: ActuatorSpec) -> None:
    assert ActuatorSpec.from_name(spec.name, ("GPU-1",)) == spec


def test_a_command_is_never_read_from_a_record() -> None:
    spec = ActuatorSpec(ActuatorKind.COMMAND, ("GPU-1",), "", ("a", "{gpu}"), ("rm", "{gpu}"))
    assert "rm" not in spec.name
    with pytest.raises(ClockUnavailableError, match="command"):
        ActuatorSpec.from_name(spec.name, ("GPU-1",))


def test_gpus_in_a_file_are_shared(tmp_path: Path) -> None:
    path = tmp_path / "gpus.json"
    FileGpus.create(path, 3)
    first = ActuatorSpec(ActuatorKind.FILE, (0, 2), file=str(path)).open()
    first.set(1005)
    assert FileGpus.locked(path) == {"GPU-file-0": 1005, "GPU-file-2": 1005}
    assert [r.clock_mhz for r in FileGpus(path).read_back()] == [1005, 1410, 1005]
    FileGpus(path).release()
    assert FileGpus.locked(path), "not this one's lock"
    FileGpus(path).release(orphans=True)
    assert FileGpus.locked(path) == {}
    with pytest.raises(ClockUnavailableError, match="no GPU GPU-9"):
        FileGpus(path, ["GPU-9"])


@pytest.mark.parametrize("place", ["/run/zeusd/zeusd.sock", "/var/run/zeusd.sock"])
def test_zeusd_is_found_where_its_package_and_its_older_self_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.delenv("ZEUSD_SOCK_PATH", raising=False)
    here = str(tmp_path / "zeusd.sock")
    real_stat, real_access = os.stat, os.access

    def moved(path: object) -> object:
        return here if str(path) == place else path

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(here)
        # Looked up here: nothing outside this folder is made.
        monkeypatch.setattr(os, "stat", lambda path, *a, **k: real_stat(moved(path), *a, **k))
        monkeypatch.setattr(os, "access", lambda path, *a, **k: real_access(moved(path), *a, **k))
        choice = choose_actuator([0], proc_status=status(tmp_path, PLAIN))
    assert choice.spec == ActuatorSpec(ActuatorKind.ZEUSD, (0,), socket=place)
