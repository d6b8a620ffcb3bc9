"""Whatever ends the owner, its GPUs are free soon after: real processes, GPUs in a file."""

import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from beam_runtime.clocks.claims import claim
from beam_runtime.clocks.file_gpus import FileGpus
from beam_runtime.clocks.guard import Guard
from beam_runtime.clocks.guarded import GuardedActuator
from beam_runtime.clocks.lock import ClockLock
from beam_runtime.clocks.owner import Owner
from beam_runtime.clocks.spec import ActuatorKind, ActuatorSpec
from beam_runtime.clocks.state_file import Holding, StateFile
from beam_runtime.clocks.watch import Watch, release
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

    def guard(spec, state, lease):
        return Guard(spec, state, lease, heartbeat_timeout_s=timeout_s)

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
    others = set(_children(os.getpid()))
    actuator.set(1005)
    (guard_pid,) = set(_children(os.getpid())) - others
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
    others = set(_children(os.getpid()))
    actuator.set(1005)
    (guard_pid,) = set(_children(os.getpid())) - others
    assert os.getsid(guard_pid) == guard_pid
    os.kill(guard_pid, signal.SIGINT)
    os.kill(guard_pid, signal.SIGHUP)
    actuator.beat()
    assert set(bench.locked().values()) == {1005}
    actuator.close()
    assert guard_pid not in _children(os.getpid())
    bench.wait_until_free()


def test_no_lock_without_a_guard(bench: Bench) -> None:
    def broken(spec: ActuatorSpec, state: StateFile, lease: Holding) -> Guard:
        return Guard(ActuatorSpec(ActuatorKind.FILE, file="/nowhere"), state, lease)

    actuator = GuardedActuator(FileGpus(bench.gpus), bench.spec(), bench.state, guard=broken)
    with pytest.raises(ClockError, match="did not start") as caught:
        actuator.set(1005)
    assert "no GPUs in /nowhere" in str(caught.value.cause)
    assert bench.locked() == {}
    assert bench.state.read() == ()


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


def of(owner: Owner, clock_mhz: int | None, gpus: tuple[str, ...] = ("GPU-fake-0",)) -> Holding:
    return Holding(owner, gpus, clock_mhz, "nvml", generation=1)


def give_all_back(actuator: FakeActuator, state: StateFile, lease: Holding) -> bool:
    return release([actuator], state, lease, lambda gpus: [], sleep_s=lambda seconds: None)


class TestRelease:
    """The guard's last act, step by step."""

    def test_a_new_owners_lock_is_left_alone(self, bench: Bench) -> None:
        gone = Owner(1 << 22, 0, Owner.current().boot_id)
        claim(bench.state, Owner.current(), ["GPU-fake-0"], "nvml", 1200, generation=2)
        actuator = FakeActuator()
        actuator.set(1200)
        assert give_all_back(actuator, bench.state, of(gone, 1005))
        assert actuator.locked_mhz == [1200]
        assert len(bench.state.read()) == 1

    def test_the_same_process_with_a_newer_lease_is_another(self, bench: Bench) -> None:
        claim(bench.state, Owner.current(), ["GPU-fake-0"], "nvml", 1200, generation=2)
        actuator = FakeActuator()
        actuator.set(1200)
        assert give_all_back(actuator, bench.state, of(Owner.current(), 1200))
        assert actuator.locked_mhz == [1200]

    def test_of_several_gpus_only_those_that_are_left(self, bench: Bench) -> None:
        claim(bench.state, Owner.current(), ["GPU-fake-1"], "nvml", 1200, generation=2)
        gone = Owner(1 << 22, 0, Owner.current().boot_id)
        actuator, opened = FakeActuator(gpus=3), FakeActuator()
        asked: list[object] = []
        lease = of(gone, 1005, actuator.gpus)
        assert release(
            [actuator], bench.state, lease,
            lambda gpus: [asked.append(gpus), opened][1:],  # type: ignore[func-returns-value,list-item]
            sleep_s=lambda seconds: None,
        )  # fmt: skip
        assert asked == [["GPU-fake-0", "GPU-fake-2"]]
        assert opened.calls == [("release", 0)]
        assert actuator.calls == []

    def test_a_clock_that_was_not_set_here_is_left_alone(self, bench: Bench) -> None:
        actuator = FakeActuator()
        actuator.set(1200)  # by somebody who keeps no record here
        assert give_all_back(actuator, bench.state, of(Owner.current(), 1005))
        assert actuator.locked_mhz == [1200]

    def test_a_change_that_was_cut_short_is_undone(self, bench: Bench) -> None:
        actuator = FakeActuator()
        actuator.set(1200)  # the one before
        lease = replace(of(Owner.current(), 1005), before_mhz=1200)
        assert give_all_back(actuator, bench.state, lease)
        assert actuator.locked_mhz == [None]

    def test_what_is_not_locked_is_not_touched(self, bench: Bench) -> None:
        actuator = FakeActuator()
        assert give_all_back(actuator, bench.state, of(Owner.current(), None))
        assert actuator.calls == []

    def test_gpus_go_side_by_side(self, bench: Bench) -> None:
        """Each waits until both are at it, and the one that fails keeps the other no longer."""
        both = threading.Barrier(2, timeout=PATIENCE_S)

        class Met(FakeActuator):
            def __init__(self, gpu: str, failures: int) -> None:
                super().__init__()
                self._gpus, self.failures, self.tries = (gpu,), failures, 0

            def release(self, *, orphans: bool = False) -> None:
                self.tries += 1
                if self.tries == 1:
                    both.wait()
                if self.tries <= self.failures:
                    raise ClockError("timeout")
                super().release(orphans=orphans)

        me = Owner.current()
        one, other = Met("GPU-fake-0", 0), Met("GPU-fake-1", 1)
        gpus = (*one.gpus, *other.gpus)
        claim(bench.state, me, gpus, "nvml", 1005, generation=1)
        on_record: list[tuple[str, ...]] = []

        def pause(seconds: float) -> None:
            on_record.extend(lease.gpus for lease in bench.state.read())

        assert release(
            [one, other], bench.state, of(me, 1005, gpus), lambda gpus: [], at_once=2,
            sleep_s=pause,
        )  # fmt: skip
        assert (one.tries, other.tries) == (1, 2)
        assert on_record == [gpus, other.gpus], "each is off the record when it is free"
        assert bench.state.read() == ()

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
        claim(bench.state, me, actuator.gpus, "nvml", 1005, generation=1)
        pauses: list[float] = []
        assert release(
            [actuator], bench.state, of(me, 1005), lambda gpus: [], sleep_s=pauses.append
        )
        assert actuator.locked_mhz == [None]
        assert len(pauses) == 3
        assert bench.state.read() == ()

    @pytest.mark.parametrize(
        "text",
        [
            "", "{", "[" * 100_000, '{"version": 2, "holdings": []}', '{"version": 9}',
            '{"version": 1, "holdings": [{"owner": {"pid": 1e999}}]}',
        ],
    )  # fmt: skip
    def test_no_record_says_that_nothing_is_locked(self, bench: Bench, text: str) -> None:
        bench.state.folder.mkdir(parents=True, mode=0o700)
        bench.state.path.write_text(text)
        actuator = FakeActuator()
        actuator.set(1005)
        assert give_all_back(actuator, bench.state, of(Owner.current(), 1005))
        assert actuator.locked_mhz == [None]
        assert bench.state.path.read_text() == text

    def test_it_says_when_it_could_not(self, bench: Bench) -> None:
        class Lost(FakeActuator):
            def release(self, *, orphans: bool = False) -> None:
                raise ClockError("GPU is lost")

        me = Owner.current()
        claim(bench.state, me, ["GPU-fake-0"], "nvml", 1005, generation=1)
        assert not give_all_back(Lost(), bench.state, of(me, 1005))
        assert len(bench.state.read()) == 1, "doctor will find it"


class TestWatch:
    """What counts as an end."""

    def watch(self, owner: Owner, said: bytes, *, timeout_s: float = 60.0, **more: float) -> Watch:
        reader, self.writer = os.pipe()
        os.write(self.writer, said)
        return Watch(of(owner, None), reader, timeout_s, **more)

    def test_a_clean_end(self) -> None:
        assert self.watch(Owner.current(), b".\nset 1005\nreturned\nfree\nquit\n").wait() == ""

    def test_silence_while_something_is_locked(self) -> None:
        said = self.watch(Owner.current(), b"set 1005\nreturned\n", timeout_s=0.0).wait()
        assert "no heartbeat" in said

    def test_a_set_that_does_not_return(self) -> None:
        watch = self.watch(Owner.current(), b"set 735\nreturned\nset 1005\n", hang_s=0.05)
        assert "does not return" in watch.wait()
        assert watch.memory.lease.clocks_mhz == (1005, 735), "either may be in force"

    def test_what_is_no_message_changes_nothing(self) -> None:
        nonsense = b"set " + b"9" * 5000 + b"\nset -1\nset\nsets 5\n\xff\xfe\n"
        watch = self.watch(Owner.current(), b"set 735\nreturned\n" + nonsense + b"free\nquit\n")
        assert watch.wait() == ""
        said = self.watch(Owner.current(), b"set 735\nreturned\n" + nonsense, timeout_s=0.2)
        assert "no heartbeat" in said.wait()
        assert said.memory.lease.clock_mhz == 735

    def test_an_owner_that_was_dead_before(self) -> None:
        gone = Owner(1 << 22, 0, Owner.current().boot_id)
        assert "dead" in self.watch(gone, b"").wait()

    def test_the_last_words_of_the_dead_count(self) -> None:
        gone = Owner(1 << 22, 0, Owner.current().boot_id)
        watch = self.watch(gone, b".\n" * 20_000 + b"set 1005\n")
        assert "dead" in watch.wait()
        assert watch.memory.lease.clock_mhz == 1005

    def test_a_closed_pipe(self) -> None:
        watch = self.watch(Owner.current(), b"set 1005\n")
        os.close(self.writer)
        assert "closed its end" in watch.wait()

    def test_afterwards_it_waits_for_a_set_that_is_under_way(self) -> None:
        """Its owner may be stopped in the middle of a driver call, and killed then."""
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        ticks = int(Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19])
        owner = Owner(child.pid, ticks, Owner.current().boot_id)
        watch = self.watch(owner, b"set 1005\n", hang_s=0.0)
        assert "does not return" in watch.wait()
        child.kill()
        child.communicate()
        assert watch.linger()


def _beat_until_refused(actuator: GuardedActuator) -> None:
    """The pipe breaks when the guard's process is gone, a moment after its release."""
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        actuator.beat()
        select.select([], [], [], 0.01)


def _children(pid: int) -> list[int]:
    """Guards of all its threads: one is started by the thread that talks to the driver.

    Other tests may have left children that do other things.
    """
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for task in tasks for child in task.read_text().split()]
    return [child for child in children if b"beam_runtime.clocks.watch" in _words(child)]


def _words(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []
