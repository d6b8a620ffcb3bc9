"""zeusd's client against a daemon that is a real HTTP server on a real Unix socket."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_zeusd import Zeusd, serving

from beam_runtime.clocks.lock import ClockLock
from beam_runtime.clocks.nvml import NvmlGpus
from beam_runtime.clocks.zeusd import ZeusdGpus
from beam_runtime.errors import ClockError, ClockPermissionError, ClockUnavailableError
from beam_runtime.testing.nvml import FakeNvml, fake_gpus


@pytest.fixture
def zeusd(tmp_path: Path) -> Iterator[Zeusd]:
    daemon = Zeusd(FakeNvml(fake_gpus(4)), tmp_path / "zeusd.sock")
    with serving(daemon):
        yield daemon


def test_it_locks_reads_back_and_frees_the_gpus_it_was_given(zeusd: Zeusd) -> None:
    actuator = ZeusdGpus(NvmlGpus(["GPU-1", "GPU-3"], nvml=zeusd.nvml), zeusd.place)
    assert actuator.gpus == ("GPU-1", "GPU-3")
    assert 1005 in actuator.supported_clocks_mhz()
    with ClockLock(actuator) as lock:
        readings = lock.set(1005)
        assert [reading.clock_mhz for reading in readings] == [1005, 1005]
        assert zeusd.nvml.locked == [None, 1005, None, 1005]
    assert zeusd.nvml.locked == [None] * 4
    assert zeusd.requests == [
        "/gpu/set_gpu_locked_clocks?gpu_ids=1%2C3&min_clock_mhz=1005&max_clock_mhz=1005&block=true",
        "/gpu/reset_gpu_locked_clocks?gpu_ids=1%2C3&block=true",
    ]


def test_an_unsupported_clock_never_reaches_the_daemon(zeusd: Zeusd) -> None:
    actuator = ZeusdGpus(NvmlGpus([0], nvml=zeusd.nvml), zeusd.place)
    with pytest.raises(ClockUnavailableError, match="do not offer 1000 MHz"):
        actuator.set(1000)
    assert zeusd.requests == []


def test_a_lock_that_is_not_ours_stays(zeusd: Zeusd) -> None:
    zeusd.nvml.gpus[0].lock_mhz = 1200
    actuator = ZeusdGpus(NvmlGpus([0], nvml=zeusd.nvml), zeusd.place)
    actuator.release()
    assert zeusd.nvml.locked[0] == 1200
    actuator.release(orphans=True)
    assert zeusd.nvml.locked[0] is None


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, ClockPermissionError), (403, ClockPermissionError), (500, ClockError)],
)
def test_a_refusal_says_what_the_daemon_said(
    zeusd: Zeusd, status: int, error: type[ClockError]
) -> None:
    zeusd.answer = (status, "not today")
    actuator = ZeusdGpus(NvmlGpus([0], nvml=zeusd.nvml), zeusd.place)
    with pytest.raises(error, match="zeusd") as caught:
        actuator.set(1005)
    assert "not today" in str(caught.value.cause)
    assert type(caught.value) is error
    assert zeusd.nvml.locked[0] is None


def test_the_token_travels(zeusd: Zeusd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZEUSD_TOKEN", "secret")
    actuator = ZeusdGpus(NvmlGpus([0], nvml=zeusd.nvml), zeusd.place)
    actuator.set(1005)
    actuator.release()
    assert zeusd.tokens == ["Bearer secret"] * 2


def test_no_daemon(tmp_path: Path) -> None:
    actuator = ZeusdGpus(NvmlGpus([0], nvml=FakeNvml()), str(tmp_path / "nobody.sock"))
    with pytest.raises(ClockError, match="does not answer") as caught:
        actuator.set(1005)
    assert type(caught.value) is ClockError, "it may come back: nothing is given up for good"
