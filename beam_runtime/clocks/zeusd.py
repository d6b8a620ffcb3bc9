"""Clocks through zeusd, the Zeus project's privileged daemon, for users who may not lock them.

It listens on a Unix socket and names GPUs by NVML index. Reading needs no rights and goes to
NVML directly.
"""

from beam_runtime.clocks.base import all_or_none, check_supported
from beam_runtime.clocks.nvml import NvmlGpus
from beam_runtime.clocks.nvml_reader import NvmlReader
from beam_runtime.clocks.zeusd_client import ZeusdClient

SOCKET_VARIABLE = "ZEUSD_SOCK_PATH"
DEFAULT_SOCKET = "/var/run/zeusd.sock"
SET_PATH = "/gpu/set_gpu_locked_clocks"
RESET_PATH = "/gpu/reset_gpu_locked_clocks"


class ZeusdGpus(NvmlReader):
    """A ClockActuator that asks zeusd.

    Args:
        gpus: the same GPUs through NVML, for reading.
        socket_path: zeusd's socket.
    """

    def __init__(self, gpus: NvmlGpus, socket_path: str) -> None:
        super().__init__(gpus)
        self._zeusd = ZeusdClient(socket_path)
        self._indices = ",".join(str(gpu.index) for gpu in gpus.identities())
        self._touched = False

    def set(self, clock_mhz: int) -> None:
        """Lock all GPUs in one request; release all if it fails (see ClockActuator)."""
        check_supported(clock_mhz, self.supported_clocks_mhz())
        self._touched = True
        with all_or_none(self.release):
            self._zeusd.begin("POST", SET_PATH, **set_query(self._indices, clock_mhz))()

    def release(self, *, orphans: bool = False) -> None:
        """Undo our lock, or with ``orphans`` any (see ClockActuator)."""
        if self._touched or orphans:
            self._zeusd.begin("POST", RESET_PATH, **reset_query(self._indices))()
            self._touched = False


def set_query(indices: str, clock_mhz: int) -> dict[str, str]:
    """What a lock of these GPUs, "0,1,2", is asked for with; answered once it is done."""
    clock = str(clock_mhz)
    return {"gpu_ids": indices, "min_clock_mhz": clock, "max_clock_mhz": clock, "block": "true"}


def reset_query(indices: str) -> dict[str, str]:
    """The same for its release."""
    return {"gpu_ids": indices, "block": "true"}
