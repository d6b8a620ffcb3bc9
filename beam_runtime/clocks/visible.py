"""Which GPUs CUDA shows to this process, by UUID, in CUDA's order.

CUDA_VISIBLE_DEVICES names them by CUDA's index, or by the beginning of a UUID, GPUs and MIG
slices alike (CUDA C++ Programming Guide, "CUDA Environment Variables"): the first entry that is
none ends the list. NVML knows nothing of it, and counts by PCI address; CUDA does, too, with
CUDA_DEVICE_ORDER=PCI_BUS_ID, and by default puts the fastest GPU first. What this cannot tell:
which of several unlike GPUs CUDA thinks is the fastest.
"""

import os
from collections.abc import Mapping
from typing import Any

from beam_runtime.clocks.gpu_identity import GpuIdentity
from beam_runtime.clocks.nvml import NvmlGpus, gpu_count
from beam_runtime.errors import ClockError, ClockUnavailableError

_MOST_DIGITS = 9
VISIBLE, _ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"


def visible_gpus(environment: Mapping[str, str] | None = None, *, nvml: Any = None) -> list[str]:
    """UUIDs of the GPUs, or MIG slices, that CUDA gives to this process; lost ones are left out.

    Args:
        environment: os.environ by default.
        nvml: a module like pynvml; imported when None.

    Raises:
        ClockUnavailableError: no NVML; or unlike GPUs, and nothing says how CUDA counts them.
    """
    environment = os.environ if environment is None else environment
    gpus = _gpus(nvml)
    named = environment.get(VISIBLE)
    if named is None:
        return [gpu.uuid for gpu in gpus]
    found: list[str] = []
    for entry in (part.strip() for part in named.split(",")):
        uuid = _named(entry, gpus, environment)
        if uuid is None:
            break
        if uuid in found:
            raise ClockUnavailableError(
                f"{VISIBLE} names a GPU twice", cause=f"it is {named[:200]!r}"
            )
        found.append(uuid)
    return found


def _named(entry: str, gpus: list[GpuIdentity], environment: Mapping[str, str]) -> str | None:
    if entry.isascii() and entry.isdecimal():
        if len({gpu.name for gpu in gpus}) > 1 and environment.get(_ORDER) != "PCI_BUS_ID":
            raise ClockUnavailableError(
                f"which GPU {VISIBLE}={entry} means cannot be told",
                cause=f"there are {', '.join(sorted({gpu.name for gpu in gpus}))}, and CUDA "
                "counts the fastest first",
                hint=f"name it by UUID (nvidia-smi -L), or set {_ORDER}=PCI_BUS_ID",
            )
        index = int(entry) if len(entry) <= _MOST_DIGITS else len(gpus)
        return gpus[index].uuid if index < len(gpus) else None
    if entry.startswith("MIG-"):
        return entry
    matches = [gpu.uuid for gpu in gpus if entry and gpu.uuid.startswith(entry)]
    return matches[0] if len(matches) == 1 else None


def _gpus(nvml: Any) -> list[GpuIdentity]:
    found: list[GpuIdentity] = []
    for index in range(gpu_count(nvml)):
        try:
            with NvmlGpus([index], nvml=nvml) as one:
                found += one.identities()
        except ClockError:
            continue  # fell off the bus: CUDA does not count it either
    return found
