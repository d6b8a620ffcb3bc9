"""What a GPU is called: by index for people, by UUID or PCI address between processes."""

from dataclasses import dataclass


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
