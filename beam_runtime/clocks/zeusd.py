"""Clocks through zeusd, the Zeus project's privileged daemon, for users who may not lock them.

It listens on a Unix socket and counts the GPUs of its machine; which of them are ours it is asked
before every request (zeusd_offer.py). Reading needs no rights and goes to NVML directly.
"""

from beam_runtime.clocks.base import all_or_none, check_supported
from beam_runtime.clocks.nvml import NvmlGpus
from beam_runtime.clocks.nvml_reader import NvmlReader
from beam_runtime.clocks.zeusd_client import ZeusdClient
from beam_runtime.clocks.zeusd_offer import ask_offer

SOCKET_VARIABLE = "ZEUSD_SOCK_PATH"
# Where the packaged service listens, and where zeusd did before.
DEFAULT_SOCKETS = ("/run/zeusd/zeusd.sock", "/var/run/zeusd.sock")
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
        self._place = socket_path
        self._zeusd = ZeusdClient(socket_path)
        self._own = gpus.identities()
        self._count = gpus.count()
        self._touched = False

    def set(self, clock_mhz: int) -> None:
        """Lock all GPUs in one request; release all if it fails (see ClockActuator)."""
        check_supported(clock_mhz, self.supported_clocks_mhz())
        indices = self._indices()
        self._touched = True
        with all_or_none(self.release):
            self._zeusd.begin("POST", SET_PATH, **set_query(indices, clock_mhz))()

    def release(self, *, orphans: bool = False) -> None:
        """Undo our lock, or with ``orphans`` any (see ClockActuator)."""
        if self._touched or orphans:
            self._zeusd.begin("POST", RESET_PATH, **reset_query(self._indices()))()
            self._touched = False

    def _indices(self) -> str:
        """What the daemon calls our GPUs; it may have been started anew, and count otherwise."""
        offer = ask_offer(self._zeusd, self._place)
        return offer.indices_of(self._own, self._count, self._place)


def set_query(indices: str, clock_mhz: int) -> dict[str, str]:
    """What a lock of these GPUs, "0,1,2", is asked for with; answered once it is done."""
    clock = str(clock_mhz)
    return {"gpu_ids": indices, "min_clock_mhz": clock, "max_clock_mhz": clock, "block": "true"}


def reset_query(indices: str) -> dict[str, str]:
    """The same for its release."""
    return {"gpu_ids": indices, "block": "true"}
