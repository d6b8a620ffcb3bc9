"""What a GPU is called: by index for people, by UUID or PCI address between processes."""

from dataclasses import dataclass

from beam_runtime.errors import ClockUnavailableError

_HIGHEST_INDEX = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class GpuIdentity:
    """What the driver calls a GPU.

    Attributes:
        index: NVML's, for people: another process, container or driver start counts otherwise.
        pci_address: as 0000:17:00.0; empty where the driver does not tell.
    """

    index: int
    uuid: str
    name: str
    pci_address: str = ""


def nvml_index(gpu: object) -> int:
    """An index as NVML takes one. The binding would cut a larger one to 32 bits: another GPU's.

    Raises:
        ClockUnavailableError: it is none.
    """
    if not isinstance(gpu, int) or isinstance(gpu, bool) or not 0 <= gpu <= _HIGHEST_INDEX:
        hint = "name one by index or UUID; nvidia-smi -L lists them"
        raise ClockUnavailableError(f"{gpu!r:.60} is no GPU", hint=hint)
    return gpu


def normal_pci_address(text: str) -> str:
    """As 0000:17:00.0, whatever the width of its domain and the case of its letters.

    Raises:
        ValueError: it is none.
    """
    domain, bus, rest = text.strip().lower().split(":")
    device, _, function = rest.partition(".")
    numbers = (int(part, 16) for part in (domain, bus, device, function or "0"))
    return "{:04x}:{:02x}:{:02x}.{:x}".format(*numbers)


def is_pci_address(name: str) -> bool:
    """Whether this names a GPU by its place on the bus."""
    try:
        normal_pci_address(name)
    except ValueError:
        return False
    return True
