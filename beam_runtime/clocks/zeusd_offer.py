"""What a zeusd says of itself in /discover, checked: it comes from another process.

The daemon counts the GPUs of its own machine; a container counts those that it was given. So a GPU
is found there by its PCI address, never by an index of this side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from beam_runtime.clocks.gpu_identity import GpuIdentity, normal_pci_address
from beam_runtime.clocks.holding import text, whole_number
from beam_runtime.clocks.zeusd_client import ZeusdClient
from beam_runtime.errors import ClockError, ClockUnavailableError

CONTROL = "gpu-control"
_MOST_GPUS = 1024


@dataclass(frozen=True, slots=True)
class OfferedGpu:
    """A GPU as the daemon knows it; the PCI address is empty where it does not tell."""

    index: int
    name: str
    pci_address: str


@dataclass(frozen=True, slots=True)
class Offer:
    """What a daemon can do.

    Attributes:
        gpus: its GPUs.
        controls: whether it sets clocks.
        auth_required: whether it wants a token.
    """

    gpus: tuple[OfferedGpu, ...]
    controls: bool
    auth_required: bool

    def indices_of(self, own: Sequence[GpuIdentity], count: int, place: str) -> str:
        """The daemon's indices for GPUs of this side, as it takes them: "0,2".

        Where the daemon tells no addresses its count is trusted only if it has as many GPUs as
        this side has, and of the same names in the same order.

        Args:
            own: GPUs of this machine or container.
            count: how many GPUs this side sees in all.
            place: where the daemon listens, for the error.

        Raises:
            ClockUnavailableError: one of them is not there, or it cannot be told which one it is.
        """
        by_address = {gpu.pci_address: gpu.index for gpu in self.gpus if gpu.pci_address}
        by_index = {gpu.index: gpu.name for gpu in self.gpus}
        found: list[int] = []
        for gpu in own:
            if by_address and gpu.pci_address in by_address:
                found.append(by_address[gpu.pci_address])
            elif not by_address and count == len(by_index) and by_index.get(gpu.index) == gpu.name:
                found.append(gpu.index)
            else:
                raise ClockUnavailableError(
                    f"zeusd at {place} does not know GPU {gpu.uuid}",
                    cause=f"it is at {gpu.pci_address or 'an unknown PCI address'} here; the "
                    f"daemon has {', '.join(sorted(by_address)) or 'told no PCI addresses'}",
                    hint="a daemon of another machine cannot set this one's clocks; one that "
                    "tells no addresses is too old to be used from a container",
                )
        return ",".join(map(str, found))


def ask_offer(zeusd: ZeusdClient, place: str) -> Offer:
    """What the daemon at ``place`` offers. Raises ClockError where it does not say so sensibly."""
    answer = zeusd.get("/discover")
    try:
        return _parsed(answer)
    except ValueError as error:
        raise senseless(place, error) from error


def ask_scopes(zeusd: ZeusdClient, place: str) -> tuple[str, ...]:
    """What the token in use is good for. Raises ClockError as ask_offer."""
    answer = zeusd.get("/auth/whoami")
    try:
        return tuple(text(scope, "scopes") for scope in _list(_field(answer, "scopes"), "scopes"))
    except ValueError as error:
        raise senseless(place, error) from error


def senseless(place: str, error: Exception) -> ClockError:
    """An answer that no zeusd gives."""
    return ClockError(
        f"zeusd at {place} does not say what it offers",
        cause=str(error),
        hint="BEAM knows the daemon of zeus 0.16",
    )


def _parsed(answer: Any) -> Offer:
    gpus = []
    for gpu in _list(_field(answer, "gpus"), "gpus"):
        address = gpu.get("pci_address") if isinstance(gpu, dict) else None
        gpus.append(
            OfferedGpu(
                whole_number(_field(gpu, "id"), "id", most=_MOST_GPUS),
                text(_field(gpu, "name"), "name"),
                normal_pci_address(text(address, "pci_address")) if address else "",
            )
        )
    if len({gpu.index for gpu in gpus}) != len(gpus):
        raise ValueError("gpus: an id is there twice")
    addresses = [gpu.pci_address for gpu in gpus if gpu.pci_address]
    if len(set(addresses)) != len(addresses):
        raise ValueError("gpus: a pci_address is there twice")
    groups = _list(_field(answer, "enabled_api_groups"), "enabled_api_groups")
    required = _field(answer, "auth_required")
    if not isinstance(required, bool):
        raise ValueError("auth_required: expected true or false")  # noqa: TRY004
    return Offer(tuple(gpus), CONTROL in groups, required)


def _field(answer: Any, name: str) -> Any:
    if not isinstance(answer, dict) or name not in answer:
        raise ValueError(f"{name} is missing")
    return answer[name]


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list) or len(value) > _MOST_GPUS:
        raise ValueError(f"{name}: expected a list of at most {_MOST_GPUS}")
    return value
