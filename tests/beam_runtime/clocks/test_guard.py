"""Whatever ends the owner, its GPUs are free soon after: real processes, GPUs in a file."""

import os
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest
from guard_bench import Bench, bench
from lock_bench import PATIENCE_S

from beam_runtime.clocks.file_gpus import FileGpus
from beam_runtime.clocks.guard import Guard
from beam_runtime.clocks.guarded import GuardedActuator
from beam_runtime.clocks.lock import ClockLock
from beam_runtime.clocks.spec import ActuatorKind, ActuatorSpec
from beam_runtime.clocks.state_file import Holding, StateFile
from beam_runtime.errors import ClockError

__all__ = ["bench"]  # a fixture


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
