"""The sign that an owner lives: whatever lies in its place, nobody waits and nobody raises."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from beam_runtime.clocks import claims, presence, state_file
from beam_runtime.clocks.claims import change, gone, orphans, restore, take
from beam_runtime.clocks.file_gpus import FileGpus
from beam_runtime.clocks.guarded import GuardedActuator
from beam_runtime.clocks.owner import Owner
from beam_runtime.clocks.presence import Presence, shows
from beam_runtime.clocks.spec import ActuatorKind, ActuatorSpec
from beam_runtime.clocks.state_file import Holding, StateFile
from beam_runtime.errors import ClockError

ASKED_FROM_ELSEWHERE = """
import sys
from pathlib import Path
from beam_runtime.clocks.presence import shows
print(shows(Path(sys.argv[1])))
"""


@pytest.fixture
def state(tmp_path: Path) -> StateFile:
    return StateFile(tmp_path / "state")


def asked_from_elsewhere(path: Path) -> str:
    """What another process sees; one that waits for ever is an error here."""
    done = subprocess.run(
        [sys.executable, "-c", ASKED_FROM_ELSEWHERE, str(path)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stdout.strip()


class QuietGuard:
    """One that cannot write to the record either."""

    ended = ""
    released = False

    def beat(self) -> bool:
        return True

    def __getattr__(self, word: str) -> object:
        return lambda *_: None


def test_it_shows_while_it_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "lease-1.lock"
    sign = Presence.show(path, 0o600)
    assert sign is not None
    assert Presence.show(path, 0o600) is None, "there is one already"
    assert asked_from_elsewhere(path) == "True"
    sign.end()
    sign.end()
    assert not path.exists()
    assert shows(path) is None


@pytest.mark.parametrize("odd", ["pipe", "folder", "link", "nothing", "device"])
def test_what_is_no_sign_says_nothing(tmp_path: Path, odd: str) -> None:
    path = tmp_path / "lease-1.lock"
    match odd:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "link":
            (tmp_path / "far").touch()
            path.symlink_to(tmp_path / "far")
        case "device":
            path = Path("/dev/null")
    assert asked_from_elsewhere(path) == "None"


@pytest.mark.parametrize("lives", [True, False])
def test_a_pipe_in_its_place_keeps_nobody_waiting(state: StateFile, lives: bool) -> None:
    """Another container's lease: whether it lives cannot be told, so it is left alone."""
    owner = replace(Owner.current(), pid=7 if lives else 1 << 30, namespace=1, host="box")
    change(state, Holding(owner, ("GPU-0",), 960, "nvml", generation=5))
    os.mkfifo(state.presence(5))
    assert not gone(state, state.read()[0])
    assert restore(state, lambda holding: None) == []
    assert len(state.read()) == 1


def test_a_dead_owner_s_sign_that_cannot_be_removed_is_in_nobody_s_way(state: StateFile) -> None:
    dead = replace(Owner.current(), started_ticks=1)
    for generation, clock_mhz in ((5, 960), (6, None)):
        change(
            state, Holding(dead, (f"GPU-{generation}",), clock_mhz, "nvml", generation=generation)
        )
        state.presence(generation).mkdir()  # unlink() raises
    released: list[Holding] = []

    def release(holding: Holding) -> None:
        released.append(holding)

    (done,) = restore(state, release)
    assert done.error is None
    assert [one.generation for one in released] == [5]
    assert state.read() == ()


class TestALeaseWhoseEndCannotBeWritten:
    """A full disk, a folder that is read-only by now."""

    def lease(
        self, tmp_path: Path, state: StateFile, monkeypatch: pytest.MonkeyPatch
    ) -> tuple[GuardedActuator, Path]:
        """Locked, and given back while nothing could be written."""
        gpus = tmp_path / "gpus.json"
        FileGpus.create(gpus)
        actuator = self.actuator(gpus, state)
        actuator.set(735)
        with monkeypatch.context() as broken:
            broken.setattr(state_file.os, "open", _read_only(os.open))
            broken.setattr(presence.Path, "unlink", _refuses)
            actuator.close()
        assert state.read() != (), "it is still on record"
        assert FileGpus.locked(gpus) == {}
        return actuator, gpus

    def actuator(self, gpus: Path, state: StateFile) -> GuardedActuator:
        return GuardedActuator(
            FileGpus(gpus),
            ActuatorSpec(ActuatorKind.FILE, file=str(gpus)),
            state,
            guard=lambda *_: QuietGuard(),  # type: ignore[arg-type, return-value]
        )

    def test_the_same_process_may_lock_again(
        self, tmp_path: Path, state: StateFile, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, gpus = self.lease(tmp_path, state, monkeypatch)
        second = self.actuator(gpus, state)
        second.set(960)
        assert FileGpus.locked(gpus) == {"GPU-file-0": 960}
        (holding,) = state.read()
        assert holding.clock_mhz == 960
        second.close()
        first.close()
        assert (FileGpus.locked(gpus), state.read()) == ({}, ())

    def test_others_leave_it_until_the_process_is_dead(
        self, tmp_path: Path, state: StateFile, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They cannot know more than the record says: it lives."""
        self.lease(tmp_path, state, monkeypatch)
        asked = "import sys; from pathlib import Path\n" \
            "from beam_runtime.clocks.claims import gone\n" \
            "from beam_runtime.clocks.state_file import StateFile\n" \
            "state = StateFile(Path(sys.argv[1]))\n" \
            "print([gone(state, one) for one in state.read()])"  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", asked, str(state.folder)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.strip() == "[False]"
        assert all(gone(state, one) for one in state.read())
        assert orphans(state, state.read()) == list(state.read())


def test_a_lease_that_cannot_be_put_on_record_leaves_no_sign_behind(
    state: StateFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    before = len(list(Path("/proc/self/fd").iterdir()))
    with monkeypatch.context() as broken:
        broken.setattr(state_file.os, "fsync", full)
        for _ in range(3):
            with pytest.raises(ClockError, match="cannot write"):
                take(state, Owner.current(), ["GPU-0"], "nvml")
    assert list(state.folder.glob("lease-*")) == []
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    lease, sign = claims.take(state, Owner.current(), ["GPU-0"], "nvml")
    assert lease.generation == 1
    sign.end()


def _read_only(real):  # type: ignore[no-untyped-def]
    def opened(path, flags, *mode, **more):  # type: ignore[no-untyped-def]
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(30, "Read-only file system")
        return real(path, flags, *mode, **more)

    return opened


def _refuses(path: Path, missing_ok: bool = False) -> None:
    raise OSError(30, "Read-only file system")
