"""zeusd's client against a daemon that is a real HTTP server on a real Unix socket."""

import http.server
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from beam_runtime.clocks.fake_nvml import FakeNvml, fake_gpus
from beam_runtime.clocks.lock import ClockLock
from beam_runtime.clocks.nvml import NvmlGpus
from beam_runtime.clocks.zeusd import ZeusdGpus
from beam_runtime.errors import ClockError, ClockPermissionError, ClockUnavailableError


class Zeusd(socketserver.ThreadingUnixStreamServer):
    """Locks the clocks of a FakeNvml for whoever asks over HTTP."""

    daemon_threads = True

    def __init__(self, path: Path, nvml: FakeNvml) -> None:
        self.nvml = nvml
        self.requests: list[str] = []
        self.tokens: list[str | None] = []
        self.answer: tuple[int, str] | None = None
        super().__init__(str(path), _Handler)
        self.path = str(path)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Zeusd

    def do_POST(self) -> None:
        self.server.requests.append(self.path)
        self.server.tokens.append(self.headers.get("Authorization"))
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        status, text = self.server.answer or self._obey(url.path, query)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def _obey(self, path: str, query: dict[str, str]) -> tuple[int, str]:
        for index in query["gpu_ids"].split(","):
            gpu = self.server.nvml.gpus[int(index)]
            if path == "/gpu/set_gpu_locked_clocks":
                low, high = int(query["min_clock_mhz"]), int(query["max_clock_mhz"])
                self.server.nvml.nvmlDeviceSetGpuLockedClocks(gpu, low, high)
            elif path == "/gpu/reset_gpu_locked_clocks":
                self.server.nvml.nvmlDeviceResetGpuLockedClocks(gpu)
            else:
                return 404, "no such endpoint"
        return 200, ""

    def address_string(self) -> str:
        return "unix"

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


@pytest.fixture
def zeusd(tmp_path: Path) -> Iterator[Zeusd]:
    server = Zeusd(tmp_path / "zeusd.sock", FakeNvml(fake_gpus(4)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_it_locks_reads_back_and_frees_the_gpus_it_was_given(zeusd: Zeusd) -> None:
    actuator = ZeusdGpus(NvmlGpus(["GPU-1", "GPU-3"], nvml=zeusd.nvml), zeusd.path)
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
    actuator = ZeusdGpus(NvmlGpus([0], nvml=zeusd.nvml), zeusd.path)
    with pytest.raises(ClockUnavailableError, match="do not offer 1000 MHz"):
        actuator.set(1000)
    assert zeusd.requests == []


def test_a_lock_that_is_not_ours_stays(zeusd: Zeusd) -> None:
    zeusd.nvml.gpus[0].lock_mhz = 1200
    actuator = ZeusdGpus(NvmlGpus([0], nvml=zeusd.nvml), zeusd.path)
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
    actuator = ZeusdGpus(NvmlGpus([0], nvml=zeusd.nvml), zeusd.path)
    with pytest.raises(error, match="zeusd") as caught:
        actuator.set(1005)
    assert "not today" in str(caught.value.cause)
    assert type(caught.value) is error
    assert zeusd.nvml.locked[0] is None


def test_the_token_travels(zeusd: Zeusd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZEUSD_TOKEN", "secret")
    actuator = ZeusdGpus(NvmlGpus([0], nvml=zeusd.nvml), zeusd.path)
    actuator.set(1005)
    actuator.release()
    assert zeusd.tokens == ["Bearer secret"] * 2


def test_no_daemon(tmp_path: Path) -> None:
    actuator = ZeusdGpus(NvmlGpus([0], nvml=FakeNvml()), str(tmp_path / "nobody.sock"))
    with pytest.raises(ClockUnavailableError, match="does not answer"):
        actuator.set(1005)
