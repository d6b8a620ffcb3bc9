"""Where a GPU is: in this machine, by UUID or NVML index, or in another one.

    GPU-8f3c...     in this machine
    node2:4938/3    GPU 3 of another machine, where a zeusd listens at node2:4938

What it cannot tell: that an address is this machine's own, or two addresses one machine.
"""

from collections.abc import Sequence
from typing import TypeVar

from beam_runtime.errors import ClockUnavailableError

_MOST_DIGITS = 4
Gpu = TypeVar("Gpu", str, str | int)


def node_of(gpu: str | int) -> str:
    """The address of the zeusd that has this GPU; empty for a GPU of this machine."""
    address = "" if isinstance(gpu, int) else gpu.rpartition("/")[0]
    return address if ":" in address else ""  # MIG-GPU-UUID/1/0 is a slice of this machine's


def on_node(address: str, index: int) -> str:
    """The name of a GPU of another machine."""
    return f"{address}/{index}"


def index_on_node(gpu: str) -> int:
    """Its index there. Raises ClockUnavailableError where the name has none."""
    index = gpu.rpartition("/")[2]
    if not (index.isascii() and index.isdecimal() and len(index) <= _MOST_DIGITS):
        raise ClockUnavailableError(
            f"{gpu} is no GPU of another node", hint="expected HOST:PORT/INDEX, as node2:4938/0"
        )
    return int(index)


def by_place(gpus: Sequence[Gpu]) -> dict[str, tuple[Gpu, ...]]:
    """GPUs by the address of their node, this machine ("") first, in the order given."""
    addresses = sorted({node_of(gpu): None for gpu in gpus}, key=lambda address: address != "")
    return {address: tuple(gpu for gpu in gpus if node_of(gpu) == address) for address in addresses}
