"""Whether something fits into memory, asked before it is allocated.

An allocator that gives up, or a kernel that kills the process, says less than this does.
"""

import os

import torch

from beamprof.errors import BackendError

HEADROOM = 0.95  # kernels' workspaces and fragmentation take the rest
GB = 1e9


def check_fits(device: torch.device, needed_bytes: float, what: str) -> None:
    """Refuse what does not fit.

    Raises:
        BackendError: needed and available, in GB.
    """
    available_bytes = available(device)
    if needed_bytes <= HEADROOM * available_bytes:
        return
    raise BackendError(
        f"{what} need {needed_bytes / GB:.1f} GB, {available_bytes / GB:.1f} GB are free "
        f"on {device}",
        cause=f"at most {HEADROOM:.0%} of it can be used",
        hint="give the model more GPUs with --tp, or shorten the passes with --max-tokens, "
        "--max-decodes or --max-context",
    )


def available(device: torch.device) -> int:
    """Bytes that a process could still take on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + kept)
    return _available_ram()


def _available_ram() -> int:
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:  # noqa: PTH123 - a stream of the kernel
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux: below
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
