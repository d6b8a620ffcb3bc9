import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from beam_runtime.clocks.base import ClockActuator, ClockReading
from beam_runtime.clocks.lock import ClockLock
from beam_runtime.clocks.nvml import NvmlGpus
from beam_runtime.errors import ClockError, ClockPermissionError, ClockUnavailableError
from beam_runtime.testing.actuator import FakeActuator
from beam_runtime.testing.nvml import FakeNvml, fake_gpus


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0

    def now_s(self) -> float:
        return self.now

    def sleep_s(self, seconds: float) -> None:
        self.now += seconds


def lock_of(actuator: ClockActuator, settle_s: float = 1.0) -> ClockLock:
    clock = Clock()
    return ClockLock(actuator, settle_s=settle_s, now_s=clock.now_s, sleep_s=clock.sleep_s)


def test_the_block_holds_the_clock_and_gives_it_back() -> None:
    actuator = FakeActuator(gpus=2)
    with lock_of(actuator) as lock:
        readings = lock.set(1005)
        assert [reading.clock_mhz for reading in readings] == [1005, 1005]
        assert actuator.locked_mhz == [1005, 1005]
        assert lock.clock_mhz == 1005
    assert actuator.locked_mhz == [None, None]
    assert lock.clock_mhz is None


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_any_exception_releases(error: type[BaseException]) -> None:
    actuator = FakeActuator()
    with pytest.raises(error), lock_of(actuator) as lock:
        lock.set(1005)
        raise error
    assert actuator.locked_mhz == [None]


def test_nothing_set_nothing_released() -> None:
    nvml = FakeNvml()
    nvml.gpus[0].lock_mhz = 1200  # somebody else's
    with lock_of(NvmlGpus([0], nvml=nvml)):
        pass
    assert nvml.locked == [1200]


def test_a_slow_set_is_waited_for() -> None:
    actuator = FakeActuator(slow_reads=40)  # 40 polls of 5 ms: the 200 ms of a slow driver
    waited = []
    with lock_of(actuator) as lock:
        readings = lock.set(1005, while_waiting=lambda: waited.append(1))
        assert readings[0].clock_mhz == 1005
    assert len(waited) == 40


def test_a_set_overtaken_by_the_next_ends_at_the_next() -> None:
    actuator = FakeActuator(slow_reads=3)
    with lock_of(actuator) as lock:
        lock.set(1005)
        lock.set(510)
        assert actuator.locked_mhz == [510]
        assert lock.clock_mhz == 510


def test_a_set_that_is_not_applied_is_an_error_and_releases() -> None:
    hot = ClockReading("", 705, ("thermal, hardware",))
    actuator = FakeActuator(gpus=2, stuck=hot)
    with lock_of(actuator) as lock:
        with pytest.raises(ClockError, match="not applied") as caught:
            lock.set(1005)
        assert actuator.locked_mhz == [None, None]
        assert lock.clock_mhz is None
    assert "705 MHz (thermal, hardware)" in str(caught.value.cause)


@pytest.mark.parametrize("reason", ["power cap", "gpu idle"])
def test_below_the_lock_is_in_order_at_the_power_cap_or_without_work(reason: str) -> None:
    actuator = FakeActuator(stuck=ClockReading("", 705, (reason,)))
    with lock_of(actuator) as lock:
        assert lock.set(1005)[0].clock_mhz == 705


def test_above_the_lock_is_never_in_order() -> None:
    actuator = FakeActuator(stuck=ClockReading("", 1410, ("power cap",)))
    with lock_of(actuator) as lock, pytest.raises(ClockError, match="not applied"):
        lock.set(1005)


def test_a_repeated_clock_is_read_back_and_not_set_again() -> None:
    actuator = FakeActuator()
    with lock_of(actuator) as lock:
        lock.set(1005)
        lock.set(1005)
        assert actuator.calls == [("set", 1005)]
        actuator.locked_mhz = [1410]  # another tool took it away
        lock.set(1005)
        assert actuator.calls == [("set", 1005), ("set", 1005)]
        assert actuator.locked_mhz == [1005]


def test_a_refused_clock_or_user_leaves_nothing_locked() -> None:
    actuator = FakeActuator(gpus=8)
    with lock_of(actuator) as lock:
        lock.set(1410)
        with pytest.raises(ClockUnavailableError, match="1000 MHz"):
            lock.set(1000)
        assert actuator.locked_mhz == [None] * 8
        actuator.refuse = ClockPermissionError("no")
        with pytest.raises(ClockPermissionError):
            lock.set(1005)
    assert actuator.locked_mhz == [None] * 8


def test_one_gpu_of_eight_that_fails_releases_all_through_nvml() -> None:
    nvml = FakeNvml(fake_gpus(8))
    with lock_of(NvmlGpus(list(range(8)), nvml=nvml)) as lock:
        lock.set(1410)
        nvml.fail("nvmlDeviceSetGpuLockedClocks", 15, gpu=5)
        with pytest.raises(ClockUnavailableError, match="GPU-5"):
            lock.set(1005)
        assert nvml.locked == [None] * 8


def test_a_read_back_that_fails_releases() -> None:
    nvml = FakeNvml(fake_gpus(2))
    nvml.fail("nvmlDeviceGetClockInfo", 15, gpu=1)
    with lock_of(NvmlGpus([0, 1], nvml=nvml)) as lock, pytest.raises(ClockError):
        lock.set(1005)
    assert nvml.locked == [None, None]


def test_a_release_that_failed_is_tried_again() -> None:
    nvml = FakeNvml()
    lock = lock_of(NvmlGpus([0], nvml=nvml))
    lock.set(1005)
    nvml.fail("nvmlDeviceResetGpuLockedClocks", 999, times=2)
    with pytest.raises(ClockError):
        lock.close()
    assert nvml.locked == [1005]
    lock.close()
    assert nvml.locked == [None]


def test_a_forked_child_leaves_its_parents_clocks_alone() -> None:
    actuator = FakeActuator()
    with lock_of(actuator) as lock:
        lock.set(1005)
        lock._owner_pid = os.getpid() + 1  # what a child sees
        lock.release()
        assert actuator.locked_mhz == [1005]
        with pytest.raises(ClockError, match="the process that forked"):
            lock.set(1200)
        assert actuator.locked_mhz == [1005]
        lock._owner_pid = os.getpid()
    assert actuator.locked_mhz == [None]


def test_it_works_from_another_thread() -> None:
    actuator = FakeActuator()
    seen = []

    def work() -> None:
        with lock_of(actuator) as lock:
            lock.set(1005)
            seen.append(list(actuator.locked_mhz))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [[1005]]
    assert actuator.locked_mhz == [None]


def test_handlers_are_put_back_and_own_ones_respected() -> None:
    def mine(number: int, frame: object) -> None: ...

    # A lock that another test left behind, as a killed process does, may have its handler here.
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with lock_of(FakeActuator()) as lock:
            assert signal.getsignal(signal.SIGTERM) == lock._signals.on_signal
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        signal.signal(signal.SIGTERM, mine)
        with lock_of(FakeActuator()):
            assert signal.getsignal(signal.SIGTERM) is mine
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


PROGRAM = """
    import os, signal, sys, time
    from pathlib import Path
    from beam_runtime.testing.actuator import FakeActuator
    from beam_runtime.clocks.lock import ClockLock

    class OnDisk(FakeActuator):
        # what the "driver" remembers after the process has gone
        def set(self, clock_mhz):
            super().set(clock_mhz)
            Path(sys.argv[1]).write_text(str(clock_mhz))
        def release(self, *, orphans=False):
            {in_release}
            super().release()
            Path(sys.argv[1]).write_text("free")

    lock = ClockLock(OnDisk())
    {body}
"""


def end_of(tmp_path: Path, body: str, in_release: str = "pass") -> tuple[str, int]:
    """Run a program that locks; what is left of its lock, and how it ended."""
    driver = tmp_path / "driver"
    code = textwrap.dedent(PROGRAM).format(body=body, in_release=in_release)
    done = subprocess.run(
        [sys.executable, "-c", code, str(driver)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert driver.exists(), done.stderr
    return driver.read_text(), done.returncode


@pytest.mark.usefixtures("mortal_children")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_deadly_signal_releases_and_still_kills(tmp_path: Path, number: signal.Signals) -> None:
    body = f"lock.__enter__(); lock.set(1005); os.kill(os.getpid(), {int(number)}); time.sleep(30)"
    assert end_of(tmp_path, body) == ("free", -number)


@pytest.mark.usefixtures("mortal_children")
def test_sigint_releases(tmp_path: Path) -> None:
    body = "lock.__enter__(); lock.set(1005); os.kill(os.getpid(), 2); time.sleep(30)"
    left, _ = end_of(tmp_path, body)
    assert left == "free"


@pytest.mark.usefixtures("mortal_children")
def test_a_second_sigint_during_the_release_does_not_cut_it_short(tmp_path: Path) -> None:
    body = "with lock: lock.set(1005); os.kill(os.getpid(), 2); time.sleep(30)"
    left, code = end_of(tmp_path, body, in_release="os.kill(os.getpid(), 2); time.sleep(0.2)")
    assert left == "free"
    assert code == -signal.SIGINT


def test_sigterm_during_the_release_does_not_cut_it_short(tmp_path: Path) -> None:
    body = "with lock: lock.set(1005)"
    left, code = end_of(tmp_path, body, in_release="os.kill(os.getpid(), 15); time.sleep(0.2)")
    assert left == "free"
    assert code == -signal.SIGTERM


@pytest.mark.parametrize("ending", ["sys.exit(3)", "raise ValueError", "pass"])
def test_a_lock_that_nobody_closed_is_released_at_exit(tmp_path: Path, ending: str) -> None:
    left, _ = end_of(tmp_path, f"lock.__enter__(); lock.set(1005); {ending}")
    assert left == "free"


def test_a_child_that_ends_does_not_release_its_parents_lock(tmp_path: Path) -> None:
    # The child leaves through sys.exit, so its exit handlers run; the parent looks, then is killed.
    body = (
        "lock.__enter__(); lock.set(1005); pid = os.fork(); "
        "sys.exit(0) if pid == 0 else os.waitpid(pid, 0); os.kill(os.getpid(), 9)"
    )
    assert end_of(tmp_path, body) == ("1005", -signal.SIGKILL)
