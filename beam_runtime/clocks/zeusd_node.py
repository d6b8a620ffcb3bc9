"""The GPUs of another node, through the zeusd that listens there on TCP.

zeusd sets and resets locks and names GPUs. It reads no clock, lists no supported ones and knows
no UUIDs, so a lock is in force when the daemon says so, and GPUs go by their index.
"""

from collections.abc import Callable, Sequence

from beam_runtime.clocks.places import index_on_node, node_of
from beam_runtime.clocks.zeusd import RESET_PATH, SET_PATH, reset_query, set_query
from beam_runtime.clocks.zeusd_client import ZeusdClient
from beam_runtime.clocks.zeusd_offer import CONTROL, ask_offer, ask_scopes
from beam_runtime.errors import ClockPermissionError, ClockUnavailableError


class ZeusdNode:
    """Some GPUs of one other node.

    A daemon that is down is heard of when it is asked, not here.

    Args:
        gpus: their names, HOST:PORT/INDEX, of one address.

    Raises:
        ClockUnavailableError: it is no such name.
    """

    def __init__(self, gpus: Sequence[str]) -> None:
        self.gpus = tuple(gpus)
        self._address = node_of(self.gpus[0])
        self._zeusd = ZeusdClient(self._address)
        self._indices = ",".join(str(index_on_node(gpu)) for gpu in self.gpus)
        self._touched = False

    def check(self, models: Sequence[str]) -> None:
        """Ask the daemon whether it can do it, on GPUs like these.

        Raises:
            ClockUnavailableError: it has no such GPU, another kind of GPU, or does not set clocks.
            ClockPermissionError: it wants a token, another one, or one for control.
            ClockError: it does not answer, or not as zeusd.
        """
        offer = ask_offer(self._zeusd, self._address)
        names = {f"{self._address}/{gpu.index}": gpu.name for gpu in offer.gpus}
        if not offer.controls:
            raise ClockUnavailableError(
                f"zeusd at {self._address} sets no clocks",
                hint=f"start it with its API group {CONTROL}",
            )
        scopes = ask_scopes(self._zeusd, self._address) if offer.auth_required else (CONTROL,)
        if CONTROL not in scopes:
            raise ClockPermissionError(
                f"the token is not for clocks of {self._address}",
                cause=f"its scopes are {', '.join(scopes) or 'none'}",
                hint=f"set ZEUSD_TOKEN to one with the scope {CONTROL}",
            )
        for gpu in self.gpus:
            if names.get(gpu) not in models:
                raise ClockUnavailableError(
                    f"{gpu} is {names.get(gpu, 'not there')}, expected {' or '.join(models)}",
                    hint="a replica's GPUs are of one kind: its clocks are read off this node's",
                )

    def begin_set(self, clock_mhz: int) -> Callable[[], object]:
        """Ask for a lock; what is returned waits for it. Both raise ClockError."""
        self._touched = True
        return self._zeusd.begin("POST", SET_PATH, **set_query(self._indices, clock_mhz))

    def begin_release(self, *, orphans: bool = False) -> Callable[[], object]:
        """Ask for a release, if there may be a lock of ours or ``orphans`` are meant."""
        if not self._touched and not orphans:
            return lambda: None
        answer = self._zeusd.begin("POST", RESET_PATH, **reset_query(self._indices))

        def wait() -> None:
            answer()
            self._touched = False

        return wait

    def release(self, *, orphans: bool = False) -> None:
        """Undo our lock, or with ``orphans`` any. Raises ClockError."""
        self.begin_release(orphans=orphans)()
