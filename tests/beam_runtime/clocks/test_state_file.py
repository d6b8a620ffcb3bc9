"""The record of locks: private, whole, never emptied by an error, exact about who is alive."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from beam_runtime.clocks import state_file
from beam_runtime.clocks.claims import claim, give_up, orphans, restore, unlock
from beam_runtime.clocks.owner import Owner
from beam_runtime.clocks.state_file import Holding, StateFile, state_folder
from beam_runtime.errors import ClockError

GPUS = ("GPU-a", "GPU-b")


@pytest.fixture
def state(tmp_path: Path) -> StateFile:
    return StateFile(tmp_path / "state")


@pytest.fixture
def dead() -> Owner:
    """A process that was alive a moment ago."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = Owner(child.pid, _started(child.pid), Owner.current().boot_id)
    assert owner.alive()
    child.communicate(b"\n")
    return owner


def _started(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[19])


def test_nothing_is_held_where_nobody_wrote(state: StateFile) -> None:
    assert state.read() == ()


def test_what_was_written_is_read_again(state: StateFile) -> None:
    holding = Holding(Owner.current(), GPUS, 1005, "nvml")
    with state.change() as holdings:
        holdings.append(holding)
    assert StateFile(state.folder).read() == (holding,)


def test_only_the_user_may_read_it(state: StateFile) -> None:
    with state.change() as holdings:
        holdings.append(Holding(Owner.current(), GPUS, None, "nvml"))
    assert state.path.stat().st_mode & 0o777 == 0o600
    assert state.folder.stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in state.folder.iterdir()) == ["clocks.json", "clocks.lock"]


def test_an_exception_leaves_it_as_it_was(state: StateFile) -> None:
    with state.change() as holdings:
        holdings.append(Holding(Owner.current(), GPUS, 1005, "nvml"))
    before = state.path.read_bytes()
    with pytest.raises(KeyError), state.change() as holdings:
        holdings.clear()
        raise KeyError
    assert state.path.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"version": 9, "holdings": []}', '{"version": 1, "holdings": [{}]}'],
)
def test_a_file_that_cannot_be_read_is_never_emptied(state: StateFile, content: str) -> None:
    state.folder.mkdir(parents=True)
    state.path.write_text(content)
    with pytest.raises(ClockError, match="left as it is"):
        claim(state, Owner.current(), GPUS, "nvml", 1005)
    with pytest.raises(ClockError, match="left as it is"):
        restore(state, lambda holding: None)
    assert state.path.read_text() == content


def test_a_write_that_fails_keeps_the_old_file(
    state: StateFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim(state, Owner.current(), GPUS, "nvml", 1005)
    before = state.path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state_file.os, "fsync", full)
    with pytest.raises(ClockError, match="cannot write") as caught, state.change() as holdings:
        holdings.clear()
    assert caught.value.cause == "No space left on device"
    assert state.path.read_bytes() == before
    assert not list(state.folder.glob("*.tmp"))


def test_another_users_folder_is_refused(state: StateFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_file.os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(ClockError, match="belongs to user"):
        claim(state, Owner.current(), GPUS, "nvml", 1005)


def test_a_writer_that_sits_on_the_lock_is_not_waited_for_for_ever(
    state: StateFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_file, "LOCK_TIMEOUT_S", 0.05)
    with (
        state.change(),
        pytest.raises(ClockError, match="in use"),
        StateFile(state.folder).change(),
    ):
        pass


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/somewhere")
    monkeypatch.delenv("BEAM_STATE_DIR", raising=False)
    assert state_folder() == Path("/somewhere/beam")
    monkeypatch.setenv("BEAM_STATE_DIR", "/elsewhere")
    assert state_folder() == Path("/elsewhere")


def test_an_owner_is_not_its_pid_alone(dead: Owner) -> None:
    me = Owner.current()
    assert me.alive()
    assert not dead.alive()
    assert not replace(me, started_ticks=me.started_ticks - 1).alive(), "the number was reused"
    assert not replace(me, boot_id="another boot").alive()


def test_one_writer_per_gpu(state: StateFile) -> None:
    me = Owner.current()
    other = Owner(os.getppid(), _started(os.getppid()), me.boot_id)
    claim(state, other, ["GPU-b"], "nvml", None)
    with pytest.raises(ClockError, match=f"GPU-b is held by process {other.pid}"):
        claim(state, me, GPUS, "nvml", 1005)
    claim(state, me, ["GPU-a"], "nvml", 1005)  # its own GPUs are free
    assert len(state.read()) == 2


def test_a_claim_changes_its_own_clock(state: StateFile) -> None:
    me = Owner.current()
    for clock_mhz in (None, 1005, 1200):
        claim(state, me, GPUS, "nvml", clock_mhz)
        assert state.read() == (Holding(me, GPUS, clock_mhz, "nvml"),)
    unlock(state, me)
    assert state.read() == (Holding(me, GPUS, None, "nvml"),)
    give_up(state, me)
    assert state.read() == ()


def test_a_dead_owners_lock_is_an_orphan_and_in_the_way(state: StateFile, dead: Owner) -> None:
    claim(state, dead, GPUS, "nvml", 1005)
    assert [holding.gpus for holding in orphans(state, state.read())] == [GPUS]
    with pytest.raises(ClockError, match="beam doctor --restore"):
        claim(state, Owner.current(), ["GPU-a"], "nvml", 1200)


def test_restore_releases_orphans_and_nothing_else(state: StateFile, dead: Owner) -> None:
    me = Owner.current()
    rebooted = replace(dead, boot_id="before the reboot")
    with state.change() as holdings:
        holdings += [
            Holding(dead, ("GPU-a",), 1005, "nvml"),
            Holding(dead, ("GPU-b",), None, "nvml"),  # held, not locked
            Holding(rebooted, ("GPU-c",), 1005, "nvml"),  # the lock died with the boot
            Holding(me, ("GPU-d",), 1005, "nvml"),
        ]
    released: list[Holding] = []
    restored = restore(state, released.append)
    assert [holding.gpus for holding in released] == [("GPU-a",)]
    assert [(done.holding.gpus, done.error) for done in restored] == [(("GPU-a",), None)]
    assert [holding.gpus for holding in state.read()] == [("GPU-d",)]


def test_an_orphan_that_cannot_be_released_stays_on_record(state: StateFile, dead: Owner) -> None:
    claim(state, dead, GPUS, "nvml", 1005)

    def fail(holding: Holding) -> None:
        raise ClockError("GPU is lost")

    (restored,) = restore(state, fail)
    assert restored.error is not None
    assert orphans(state, state.read()) == [restored.holding]


def test_the_folder_stays_where_it_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine may change its directory between a lock and its release."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BEAM_STATE_DIR", "locks")
    state = StateFile()
    claim(state, Owner.current(), GPUS, "nvml", 1005)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert [one.clock_mhz for one in state.read()] == [1005]
    assert (tmp_path / "locks" / "clocks.json").exists()


def test_a_user_without_a_home_names_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("BEAM_STATE_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(state_file, "SYSTEM_FOLDER", Path("/nowhere"))
    monkeypatch.setattr(state_file.Path, "home", homeless)
    with pytest.raises(ClockError, match="no folder to keep a record") as caught:
        StateFile()
    assert "BEAM_STATE_DIR" in str(caught.value.hint)
    monkeypatch.setenv("BEAM_STATE_DIR", "/somewhere")
    assert StateFile().folder == Path("/somewhere")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("generation", 1 << 63),
        ("actuator", "zeusd:/run/\udcff.sock"),  # of a socket that ZEUSD_SOCK_PATH names
        ("actuator", "zeusd:/run/\x1b[2J.sock"),
        ("gpus", ("GPU-a" * 4000,)),
        ("clock_mhz", 10**6),
    ],
)
def test_what_nobody_could_read_again_is_not_written(
    state: StateFile, field: str, value: object
) -> None:
    claim(state, Owner.current(), GPUS, "nvml", 1005)
    before = state.path.read_bytes()
    odd = Holding(Owner.current(), ("GPU-c",), 735, "nvml", generation=3)
    with pytest.raises(ClockError, match="not fit to be on record"), state.change() as record:
        record.append(replace(odd, **{field: value}))  # type: ignore[arg-type]
    assert state.path.read_bytes() == before


def test_a_record_that_would_grow_too_large_is_not_written(state: StateFile) -> None:
    claim(state, Owner.current(), GPUS, "nvml", 1005)
    before = state.path.read_bytes()
    many = [
        Holding(Owner.current(), (f"GPU-{at}" + "x" * 900,), 735, "nvml", generation=at + 2)
        for at in range(1000)
    ]
    with pytest.raises(ClockError, match="larger than"), state.change() as record:
        record.extend(many)
    assert state.path.read_bytes() == before


@pytest.mark.parametrize("odd", ["folder", "pipe", "link", "device"])
def test_a_record_that_is_no_file_cannot_be_read(state: StateFile, odd: str) -> None:
    state.folder.mkdir(mode=0o700)
    match odd:
        case "folder":
            state.path.mkdir()
        case "pipe":
            os.mkfifo(state.path)
        case "link":
            state.path.symlink_to("/etc/hosts")
        case "device":
            state.path.symlink_to("/dev/zero")
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(ClockError, match="left as it is"):
        state.read()
    with pytest.raises(ClockError, match="left as it is"):
        claim(state, Owner.current(), GPUS, "nvml", 1005)
    assert len(list(Path("/proc/self/fd").iterdir())) == open_files


def test_a_file_system_without_modes_is_said(
    state: StateFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(descriptor: int, mode: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "fchmod", unsupported)
    with pytest.raises(ClockError, match="cannot write"):  # who reads it could not be told
        claim(state, Owner.current(), GPUS, "nvml", 1005)
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(ClockError):
        claim(state, Owner.current(), GPUS, "nvml", 1005)
    assert len(list(Path("/proc/self/fd").iterdir())) == open_files


def test_a_host_of_any_name_keeps_a_record(
    state: StateFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.node", lambda: "no\x1b[2Jde\udcff\n7")
    claim(state, Owner.current(), GPUS, "nvml", 1005)
    (holding,) = state.read()
    assert holding.owner.host == "no[2Jde7"
