"""zeusd's client against a daemon that is a real HTTP server on a real Unix socket."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_zeusd import Zeusd, serving

from beam_runtime.clocks import zeusd_client
from beam_runtime.clocks.lock import ClockLock
from beam_runtime.clocks.nvml import NvmlGpus
from beam_runtime.clocks.zeusd import ZeusdGpus
from beam_runtime.clocks.zeusd_client import ZeusdClient
from beam_runtime.clocks.zeusd_offer import Offer, OfferedGpu
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
        "/discover",
        "/gpu/set_gpu_locked_clocks?gpu_ids=1%2C3&min_clock_mhz=1005&max_clock_mhz=1005&block=true",
        "/discover",
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


@pytest.mark.parametrize("status", [200, 302, 401, 500])
def test_a_page_of_another_server_is_told_in_one_plain_line(zeusd: Zeusd, status: int) -> None:
    page = "<html>\r\n<head>\x1b[2J\x1b]0;you\x07\u202e\n" + "<p>moved</p>\n" * 9000
    zeusd.answer = (status, page)
    actuator = ZeusdGpus(NvmlGpus([0], nvml=zeusd.nvml), zeusd.place)
    with pytest.raises(ClockError) as caught:
        actuator.set(1005)
    assert "<html>" in str(caught.value.cause)
    assert str(caught.value).count("\n") <= 2, "message, cause and hint"
    assert str(caught.value).replace("\n", "").isprintable()
    assert len(str(caught.value)) < 2000
    assert zeusd.nvml.locked[0] is None


def test_the_token_travels(zeusd: Zeusd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZEUSD_TOKEN", "secret")
    actuator = ZeusdGpus(NvmlGpus([0], nvml=zeusd.nvml), zeusd.place)
    actuator.set(1005)
    actuator.release()
    assert zeusd.tokens == ["Bearer secret"] * 4


def test_no_daemon(tmp_path: Path) -> None:
    actuator = ZeusdGpus(NvmlGpus([0], nvml=FakeNvml()), str(tmp_path / "nobody.sock"))
    with pytest.raises(ClockError, match="does not answer") as caught:
        actuator.set(1005)
    assert type(caught.value) is ClockError, "it may come back: nothing is given up for good"


def in_a_container(host: FakeNvml, at: int) -> NvmlGpus:
    """One of the host's GPUs, which is the only one there is, and so has index 0."""
    return NvmlGpus([host.gpus[at].uuid], nvml=FakeNvml(gpus=[host.gpus[at]]))


@pytest.mark.parametrize("idle", [False, True])
def test_a_containers_gpu_is_found_by_its_pci_address(zeusd: Zeusd, idle: bool) -> None:
    if idle:  # whatever is set, it reads low and says why: nothing is proved by it
        zeusd.nvml.gpus[2].sm_clock_mhz, zeusd.nvml.gpus[2].reasons = 345, 1
    with ClockLock(ZeusdGpus(in_a_container(zeusd.nvml, 2), zeusd.place)) as lock:
        lock.set(1005)
        assert zeusd.nvml.locked == [None, None, 1005, None]
    assert not [path for path in zeusd.requests if "gpu_ids" in path and "gpu_ids=2&" not in path]


def discover(gpus: object, **more: object) -> str:
    return json.dumps(
        {"gpus": gpus, "enabled_api_groups": ["gpu-control"], "auth_required": False, **more}
    )


A100 = "NVIDIA A100-SXM4-80GB"
TEXT = discover([{"id": 0, "name": A100, "pci_address": "0000:10:00.0"}])


@pytest.mark.parametrize(
    "gpus",
    [
        [{"id": at, "name": A100} for at in range(4)],  # it tells no addresses
        [{"id": 0, "name": A100, "pci_address": "0000:77:00.0"}],  # another machine's
        [],
    ],
)
def test_a_daemon_that_does_not_know_the_gpu_sets_nothing(zeusd: Zeusd, gpus: object) -> None:
    actuator = ZeusdGpus(in_a_container(zeusd.nvml, 2), zeusd.place)
    zeusd.answer = (200, discover(gpus))
    with pytest.raises(ClockUnavailableError, match="does not know GPU GPU-2"):
        actuator.set(1005)
    assert {path.partition("?")[0] for path in zeusd.requests} == {"/discover"}


def test_an_older_daemon_is_used_where_both_sides_see_the_same_gpus() -> None:
    offer = Offer(tuple(OfferedGpu(at, A100, "") for at in range(2)), True, False)
    own = NvmlGpus([1], nvml=FakeNvml(fake_gpus(2)))
    assert offer.indices_of(own.identities(), own.count(), "x") == "1"


@pytest.mark.parametrize(
    "answer",
    [
        TEXT.replace('"id": 0', '"id": Infinity'),
        TEXT.replace('"id": 0', '"id": NaN'),
        TEXT.replace('"id": 0', '"id": 0.0'),
        TEXT.replace('"id": 0', '"id": true'),
        TEXT.replace('"id": 0', '"id": ' + "9" * 5000),
        TEXT.replace('"id": 0', '"id": "0"'),
        TEXT.replace("0000:10:00.0", "zz"),
        TEXT.replace("0000:10:00.0", "\\u0000:10:00.0"),
        TEXT.replace('"auth_required": false', '"auth_required": 1'),
        discover([{"id": 0, "name": A100}] * 2),
        discover({"0": 1}),
        discover([["id", 0]]),
        "[" * 30_000,
        "{" * 30_000,
        '"\\ud800"',
        "",
        "null",
        "\x00",
    ],
)
def test_an_answer_that_no_zeusd_gives_is_told(zeusd: Zeusd, answer: str) -> None:
    actuator = ZeusdGpus(NvmlGpus([0], nvml=zeusd.nvml), zeusd.place)
    zeusd.answer = (200, answer)
    with pytest.raises(ClockError, match="zeusd at"):
        actuator.set(1005)
    assert zeusd.nvml.locked == [None] * 4


def test_a_daemon_that_sends_a_byte_now_and_then_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zeusd_client, "TIMEOUT_S", 0.3)
    place = str(tmp_path / "drip.sock")
    ended = threading.Event()

    def drip(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            while not ended.is_set():
                connection.sendall(b"H")
                time.sleep(0.05)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(place)
        listener.listen()
        threading.Thread(target=drip, args=(listener,), daemon=True).start()
        with pytest.raises(ClockError, match="does not answer"):
            ZeusdClient(place).get("/discover")
        ended.set()
