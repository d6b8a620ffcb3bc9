"""Whatever ends the owner, its GPUs are free soon after: real processes, GPUs in a file."""

import os
import select
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from beam_runtime.clocks.claims import claim
from beam_runtime.clocks.file_gpus import FileGpus
from beam_runtime.clocks.guard import Guard, Watch, release
from beam_runtime.clocks.guarded import GuardedActuator
from beam_runtime.clocks.lock import ClockLock
from beam_runtime.clocks.owner import Owner
from beam_runtime.clocks.spec import ActuatorKind, ActuatorSpec
from beam_runtime.clocks.state_file import StateFile
from beam_runtime.errors import ClockError
from beam_runtime.testing.actuator import FakeActuator

# How long a test waits for what takes well under a second before it calls it missing.
PATIENCE_S = 20.0

OWNER = """
    import sys, time
    from pathlib import Path
    from beam_runtime.clocks.guard import Guard
    from beam_runtime.clocks.guarded import GuardedActuator
    from beam_runtime.clocks.file_gpus import FileGpus
    from beam_runtime.clocks.lock import ClockLock
    from beam_runtime.clocks.spec import ActuatorKind, ActuatorSpec
    from beam_runtime.clocks.state_file import StateFile

    gpus, folder, timeout_s = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])

    def guard(spec, state, owner):
        return Guard(spec, state, owner, heartbeat_timeout_s=timeout_s)

    spec = ActuatorSpec(ActuatorKind.FILE, FileGpus(gpus).gpus, file=gpus)
    actuator = GuardedActuator(spec.open(), spec, StateFile(folder), guard=guard)
    try:
        lock = ClockLock(actuator)
        lock.set(1005)
        print("locked", flush=True)
        {end}
    except BaseException as error:
        print(f"{{type(error).__name__}}: {{error}}", flush=True)
        raise
"""


class Bench:
    """A file of GPUs, a state folder, and owners to kill."""

    def __init__(self, folder: Path) -> None:
        self.gpus = folder / "gpus.json"
        self.state = StateFile(folder / "state")
        FileGpus.create(self.gpus, 2)

    def owner(self, end: str = "time.sleep(600)", timeout_s: float = 60.0) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                textwrap.dedent(OWNER).format(end=end),
                str(self.gpus),
                str(self.state.folder),
                str(timeout_s),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        return process

    def locked(self) -> dict[str, int]:
        return FileGpus.locked(self.gpus)

    def wait_until_free(self) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while (self.locked() or self.state.read()) and time.monotonic() < deadline_s:
            time.sleep(0.02)
        assert self.locked() == {}
        assert self.state.read() == ()

    def spec(self) -> ActuatorSpec:
        return ActuatorSpec(ActuatorKind.FILE, FileGpus(self.gpus).gpus, file=str(self.gpus))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT])
def test_a_killed_owner_leaves_no_gpu_locked(bench: Bench, number: signal.Signals) -> None:
    owner = bench.owner()
    assert bench.locked() == {"GPU-file-0": 1005, "GPU-file-1": 1005}
    (holding,) = bench.state.read()
    assert (holding.owner.pid, holding.clock_mhz) == (owner.pid, 1005)
    owner.send_signal(number)
    owner.communicate()
    bench.wait_until_free()


def test_an_owner_that_forgets_leaves_no_gpu_locked(bench: Bench) -> None:
    owner = bench.owner(end="pass")
    owner.communicate()
    bench.wait_until_free()


def test_a_child_that_keeps_the_pipe_open_does_not_hide_the_death(bench: Bench) -> None:
    owner = bench.owner(end="import os; os.fork() or time.sleep(3); time.sleep(600)")
    owner.kill()
    owner.wait()
    bench.wait_until_free()
    assert owner.stdout is not None
    owner.stdout.close()


def test_a_stopped_owner_is_released_and_learns_of_it(bench: Bench) -> None:
    owner = bench.owner("while True: actuator.beat(); time.sleep(0.01)", timeout_s=0.5)
    owner.send_signal(signal.SIGSTOP)
    bench.wait_until_free()
    owner.send_signal(signal.SIGCONT)
    out, _ = owner.communicate(timeout=PATIENCE_S)
    assert "ClockError: the guard that releases clocks after a crash has ended" in out
    bench.wait_until_free()


def test_a_second_controller_is_refused_with_the_first_ones_pid(bench: Bench) -> None:
    owner = bench.owner()
    try:
        second = GuardedActuator(FileGpus(bench.gpus), bench.spec(), bench.state)
        with pytest.raises(ClockError, match=f"held by process {owner.pid}"):
            second.set(1200)
        second.close()
        assert set(bench.locked().values()) == {1005}, "the first one's lock stands"
    finally:
        end(owner)
    bench.wait_until_free()


def test_the_next_start_releases_what_nobody_guarded(bench: Bench) -> None:
    owner = bench.owner()
    (guard_pid,) = _children(owner.pid)
    owner.send_signal(signal.SIGSTOP)  # keep it from noticing
    os.kill(guard_pid, signal.SIGKILL)  # as when a whole container is killed
    end(owner)
    assert set(bench.locked().values()) == {1005}
    ours = GuardedActuator(FileGpus(bench.gpus), bench.spec(), bench.state)
    ours.set(1200)
    assert set(bench.locked().values()) == {1200}
    ours.close()
    bench.wait_until_free()


def test_sigterm_to_the_guard_releases(bench: Bench) -> None:
    actuator = GuardedActuator(FileGpus(bench.gpus), bench.spec(), bench.state)
    actuator.set(1005)
    (guard_pid,) = _children(os.getpid())
    os.kill(guard_pid, signal.SIGTERM)
    bench.wait_until_free()
    with pytest.raises(ClockError, match="guard"):
        _beat_until_refused(actuator)
    actuator.set(1200)  # and a new guard is there
    assert set(bench.locked().values()) == {1200}
    actuator.close()
    bench.wait_until_free()


def test_ctrl_c_is_not_meant_for_the_guard(bench: Bench) -> None:
    actuator = GuardedActuator(FileGpus(bench.gpus), bench.spec(), bench.state)
    actuator.set(1005)
    (guard_pid,) = _children(os.getpid())
    assert os.getsid(guard_pid) == guard_pid
    os.kill(guard_pid, signal.SIGINT)
    os.kill(guard_pid, signal.SIGHUP)
    actuator.beat()
    assert set(bench.locked().values()) == {1005}
    actuator.close()
    assert _children(os.getpid()) == []
    bench.wait_until_free()


def test_no_lock_without_a_guard(bench: Bench) -> None:
    def broken(spec: ActuatorSpec, state: StateFile, owner: Owner) -> Guard:
        return Guard(ActuatorSpec(ActuatorKind.FILE, file="/nowhere"), state, owner)

    actuator = GuardedActuator(FileGpus(bench.gpus), bench.spec(), bench.state, guard=broken)
    with pytest.raises(ClockError, match="did not start") as caught:
        actuator.set(1005)
    assert "no GPUs in /nowhere" in str(caught.value.cause)
    assert bench.locked() == {}


def test_registered_before_it_is_set(bench: Bench) -> None:
    seen: list[int | None] = []

    class Spy(FileGpus):
        def set(self, clock_mhz: int) -> None:
            seen.extend(holding.clock_mhz for holding in bench.state.read())
            super().set(clock_mhz)

    actuator = GuardedActuator(Spy(bench.gpus), bench.spec(), bench.state)
    with ClockLock(actuator) as lock:
        lock.set(1005)
        lock.set(1200)
    assert seen == [1005, 1200]
    (holding,) = bench.state.read()
    assert holding.clock_mhz is None, "still held, not locked"
    actuator.close()
    bench.wait_until_free()


def test_a_fork_leaves_its_parents_clocks_alone(bench: Bench) -> None:
    actuator = GuardedActuator(FileGpus(bench.gpus), bench.spec(), bench.state)
    actuator.set(1005)
    child = os.fork()
    if child == 0:
        try:
            actuator.close()
            actuator.set(1200)
        except ClockError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert set(bench.locked().values()) == {1005}
    actuator.close()
    bench.wait_until_free()


def test_what_cannot_be_released_stays_on_record_and_guarded(bench: Bench) -> None:
    class Lost(FileGpus):
        def release(self, *, orphans: bool = False) -> None:
            raise ClockError("GPU is lost")

    actuator = GuardedActuator(Lost(bench.gpus), bench.spec(), bench.state)
    actuator.set(1005)
    with pytest.raises(ClockError, match="GPU is lost"):
        actuator.close()
    bench.wait_until_free()  # the guard could, with a driver of its own


class TestRelease:
    """The guard's last act, step by step."""

    def test_a_new_owners_lock_is_left_alone(self, bench: Bench) -> None:
        gone = Owner(1 << 22, 0, Owner.current().boot_id)
        claim(bench.state, Owner.current(), ["GPU-fake-0"], "nvml", 1200)
        actuator = FakeActuator()
        assert release([actuator], bench.state, gone, sleep_s=lambda seconds: None)
        assert actuator.calls == []
        assert len(bench.state.read()) == 1

    def test_it_tries_again(self, bench: Bench) -> None:
        class Slow(FakeActuator):
            failures = 2

            def release(self, *, orphans: bool = False) -> None:
                self.failures -= 1
                if self.failures >= 0:
                    raise ClockError("timeout")
                super().release(orphans=orphans)

        me = Owner.current()
        actuator = Slow()
        actuator.set(1005)
        claim(bench.state, me, actuator.gpus, "nvml", 1005)
        pauses: list[float] = []
        assert release([actuator], bench.state, me, sleep_s=pauses.append)
        assert actuator.locked_mhz == [None]
        assert len(pauses) == 3
        assert bench.state.read() == ()

    def test_an_unreadable_record_does_not_keep_it_from_releasing(self, bench: Bench) -> None:
        bench.state.folder.mkdir(parents=True)
        bench.state.path.write_text("{")
        actuator = FakeActuator()
        actuator.set(1005)
        assert release([actuator], bench.state, Owner.current(), sleep_s=lambda seconds: None)
        assert actuator.locked_mhz == [None]
        assert bench.state.path.read_text() == "{"

    def test_it_says_when_it_could_not(self, bench: Bench) -> None:
        class Lost(FakeActuator):
            def release(self, *, orphans: bool = False) -> None:
                raise ClockError("GPU is lost")

        me = Owner.current()
        claim(bench.state, me, ["GPU-fake-0"], "nvml", 1005)
        assert not release([Lost()], bench.state, me, sleep_s=lambda seconds: None)
        assert len(bench.state.read()) == 1, "doctor will find it"


class TestWatch:
    """What counts as an end."""

    def test_a_clean_end(self) -> None:
        reader, writer = os.pipe()
        os.write(writer, b"..q")
        assert Watch(Owner.current(), reader, 60.0).wait() == ""
        os.close(reader)
        os.close(writer)

    def test_silence(self) -> None:
        reader, writer = os.pipe()
        assert "no heartbeat" in Watch(Owner.current(), reader, 0.0).wait()
        os.close(reader)
        os.close(writer)

    def test_an_owner_that_was_dead_before(self) -> None:
        reader, writer = os.pipe()
        gone = Owner(1 << 22, 0, Owner.current().boot_id)
        assert "dead" in Watch(gone, reader, 60.0).wait()
        os.close(reader)
        os.close(writer)


def _beat_until_refused(actuator: GuardedActuator) -> None:
    """The pipe breaks when the guard's process is gone, a moment after its release."""
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        actuator.beat()
        select.select([], [], [], 0.01)


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]
