"""A zeusd of one's own: real HTTP on real sockets over a fake NVML, with faults on demand."""

import http.server
import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from beam_runtime.testing.nvml import FakeNvml

SET, RESET = "/gpu/set_gpu_locked_clocks", "/gpu/reset_gpu_locked_clocks"


class Zeusd:
    """One daemon: what it has, what it heard, and how it misbehaves.

    Args:
        nvml: its GPUs.
        socket: where it listens; a free TCP port by default.

    Attributes:
        requests: paths asked for, with their queries.
        tokens: Authorization headers, likewise.
        token: the only one it takes; None = any, and none.
        scopes: what that token is good for.
        groups: API groups it offers.
        answer: given instead of obeying.
        hung: while clear, requests for a clock wait, and are obeyed afterwards.
        dies: it locks its first GPU only and says nothing.
        babbles: it answers with something that is not HTTP.
    """

    def __init__(self, nvml: FakeNvml, socket: Path | None = None) -> None:
        self.nvml = nvml
        self.socket = socket
        self.requests: list[str] = []
        self.tokens: list[str | None] = []
        self.token: str | None = None
        self.scopes = ["gpu-control"]
        self.groups = ["gpu-control", "gpu-read"]
        self.answer: tuple[int, str] | None = None
        self.hung = threading.Event()
        self.hung.set()
        self.dies = self.babbles = False
        self.port = 0
        self._server: socketserver.BaseServer | None = None

    @property
    def place(self) -> str:
        """Its socket, or HOST:PORT."""
        return str(self.socket) if self.socket else f"127.0.0.1:{self.port}"

    @property
    def listens(self) -> bool:
        """Whether it is there."""
        return self._server is not None

    def names(self, *indices: int) -> tuple[str, ...]:
        """BEAM's names for its GPUs."""
        return tuple(f"{self.place}/{index}" for index in indices)

    def start(self) -> None:
        """Listen; at the same port as before, if it did."""
        handler = type("Handler", (_Handler,), {"daemon": self})
        if self.socket:
            self._server = _UnixServer(str(self.socket), handler)
        else:
            self._server = _TcpServer(("127.0.0.1", self.port), handler)
            self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Be gone: connections are refused."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


@contextmanager
def serving(*daemons: Zeusd) -> Iterator[None]:
    """Have them listen, and let none hang at the end."""
    for daemon in daemons:
        daemon.start()
    try:
        yield
    finally:
        for daemon in daemons:
            daemon.hung.set()
            daemon.stop()


class _UnixServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


class _TcpServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


class _Handler(http.server.BaseHTTPRequestHandler):
    daemon: Zeusd

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        zeusd, url = self.daemon, urlsplit(self.path)
        zeusd.requests.append(self.path)
        zeusd.tokens.append(self.headers.get("Authorization"))
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        given = zeusd.answer or self._refusal(url.path) or self._obey(url.path, query)
        if given is None:
            return  # died over it
        if zeusd.babbles:
            self.wfile.write(b"220 mail ready\r\n")
            return
        status, text = given
        try:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())
        except OSError:
            pass  # nobody waits any more

    def _refusal(self, path: str) -> tuple[int, str] | None:
        wanted = self.daemon.token
        if path == "/discover" or wanted is None:
            return None
        given = self.headers.get("Authorization")
        return None if given == f"Bearer {wanted}" else (401, "who are you?")

    def _obey(self, path: str, query: dict[str, str]) -> tuple[int, str] | None:
        zeusd = self.daemon
        if path == "/discover":
            gpus = [
                {"id": at, "name": gpu.name, "pci_address": gpu.pci_bus_id[4:].lower()}
                for at, gpu in enumerate(zeusd.nvml.gpus)
            ]
            return 200, json.dumps(
                {
                    "gpus": gpus,
                    "cpus": [],
                    "enabled_api_groups": zeusd.groups,
                    "auth_required": zeusd.token is not None,
                }
            )
        if path == "/auth/whoami":
            return 200, json.dumps({"sub": "beam", "scopes": zeusd.scopes})
        zeusd.hung.wait()
        for index in query["gpu_ids"].split(","):
            gpu = zeusd.nvml.gpus[int(index)]
            if path == SET:
                low, high = int(query["min_clock_mhz"]), int(query["max_clock_mhz"])
                zeusd.nvml.nvmlDeviceSetGpuLockedClocks(gpu, low, high)
            elif path == RESET:
                zeusd.nvml.nvmlDeviceResetGpuLockedClocks(gpu)
            else:
                return 404, "no such endpoint"
            if zeusd.dies:
                return None
        return 200, ""

    def address_string(self) -> str:
        return "somewhere"

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass
