"""Clocks through zeusd, the Zeus project's privileged daemon, for users who may not lock them.

zeusd listens on a Unix socket, speaks HTTP and names GPUs by NVML index. Endpoints as in
zeus 0.16's client: POST /gpu/set_gpu_locked_clocks and /gpu/reset_gpu_locked_clocks. Reading
needs no rights and goes to NVML directly. Authentication is a token, $ZEUSD_TOKEN.
"""

import http.client
import os
import socket
from urllib.parse import urlencode

from beam_runtime.clocks.base import all_or_none, check_supported
from beam_runtime.clocks.nvml import NvmlGpus
from beam_runtime.clocks.nvml_reader import NvmlReader
from beam_runtime.errors import ClockError, ClockPermissionError, ClockUnavailableError

SOCKET_VARIABLE = "ZEUSD_SOCK_PATH"
DEFAULT_SOCKET = "/var/run/zeusd.sock"
# A set takes 7-35 ms in the driver; a daemon that has not answered by then will not.
TIMEOUT_S = 5.0
_FORBIDDEN = (401, 403)


class ZeusdGpus(NvmlReader):
    """A ClockActuator that asks zeusd.

    Args:
        gpus: the same GPUs through NVML, for reading.
        socket_path: zeusd's socket.
    """

    def __init__(self, gpus: NvmlGpus, socket_path: str) -> None:
        super().__init__(gpus)
        self._socket_path = socket_path
        self._indices = ",".join(str(gpu.index) for gpu in gpus.identities())
        self._touched = False

    def set(self, clock_mhz: int) -> None:
        """Lock all GPUs in one request; release all if it fails (see ClockActuator)."""
        check_supported(clock_mhz, self.supported_clocks_mhz())
        self._touched = True
        with all_or_none(self.release):
            self._post(
                "/gpu/set_gpu_locked_clocks", min_clock_mhz=clock_mhz, max_clock_mhz=clock_mhz
            )

    def release(self, *, orphans: bool = False) -> None:
        """Undo our lock, or with ``orphans`` any (see ClockActuator)."""
        if self._touched or orphans:
            self._post("/gpu/reset_gpu_locked_clocks")
            self._touched = False

    def _post(self, path: str, **parameters: int) -> None:
        query = urlencode({"gpu_ids": self._indices, **parameters, "block": "true"})
        token = os.environ.get("ZEUSD_TOKEN")
        connection = _UnixConnection(self._socket_path)
        try:
            connection.request(
                "POST",
                f"{path}?{query}",
                headers={"Authorization": f"Bearer {token}"} if token else {},
            )
            with connection.getresponse() as answer:
                text = answer.read(1000).decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise ClockUnavailableError(
                f"zeusd does not answer at {self._socket_path}",
                cause=str(error) or type(error).__name__,
                hint="is the daemon running? see systemctl status zeusd",
            ) from error
        finally:
            connection.close()
        if answer.status in _FORBIDDEN:
            raise ClockPermissionError(
                f"zeusd refuses {path}", cause=text, hint="set ZEUSD_TOKEN to a token for control"
            )
        if answer.status != 200:
            raise ClockError(
                f"zeusd could not do {path}",
                cause=f"HTTP {answer.status}: {text}",
                hint="its log says more: journalctl -u zeusd",
            )


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(self._path)
