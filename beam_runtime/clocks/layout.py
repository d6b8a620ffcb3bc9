"""Whether the GPUs that were named are the replica's, and the ones that its table was made on."""

import os
import re
from collections.abc import Sequence

from beam_runtime.clocks.calls import OPEN_LIMIT_S, within
from beam_runtime.clocks.nvml import NvmlGpus
from beam_runtime.clocks.places import by_place
from beam_runtime.clocks.visible import VISIBLE, visible_gpus
from beam_runtime.errors import ClockError, ClockUnavailableError, TableError


def check_layout(gpus: Sequence[str | int], tp: int, pp: int) -> None:
    """Hold the list of GPUs against the layout: one clock drives them all, or none.

    Raises:
        ClockUnavailableError: too few, too many, or one of them twice; both numbers are named.
    """
    twice = {gpu for gpu in gpus if list(gpus).count(gpu) > 1}
    if twice:
        raise ClockUnavailableError(
            f"GPU {min(map(str, twice))} is named twice",
            hint="name each of the replica's GPUs once",
        )
    if gpus and len(gpus) != tp * pp:
        raise ClockUnavailableError(
            f"{len(gpus)} GPUs are named for a replica of {tp * pp}",
            cause=f"its table is for tp {tp} x pp {pp}",
            hint="name all of them in [clock] gpus, or none",
        )


def models_of(gpus: Sequence[str | int]) -> tuple[str, ...]:
    """Product names of this machine's GPUs among these; none where nobody can tell them."""
    here = by_place(gpus).get("", ())

    def ask() -> tuple[str, ...]:
        with NvmlGpus(here) as found:
            return found.models()

    try:
        return within(OPEN_LIMIT_S, ask)
    except ClockError:
        return ()


def check_whole(gpus: Sequence[str | int]) -> None:
    """Refuse this machine's GPUs that are cut into slices: a lock holds for all who have one.

    Raises:
        ClockUnavailableError: one is; where it cannot be told, none.
    """
    here = by_place(gpus).get("", ())
    if not here:
        return
    try:
        with NvmlGpus(here) as found:
            sliced = [uuid for uuid, mig in zip(found.gpus, found.read_mig(), strict=True) if mig]
    except ClockError:
        return  # whatever it is: the first set says so
    if sliced:
        raise ClockUnavailableError(
            f"GPU {sliced[0]} is cut into MIG slices",
            cause="its clock is one for all slices, and others may have theirs",
            hint=f"nvidia-smi -i {sliced[0]} -mig 0, or leave the clocks alone",
        )


def check_visible(uuids: Sequence[str]) -> None:
    """Refuse this machine's GPUs that CUDA does not give to this process: they are another's.

    Where CUDA_VISIBLE_DEVICES is not set, is empty or does not say which, nothing is refused.

    Raises:
        ClockUnavailableError: one is not among them.
    """
    if VISIBLE not in os.environ:
        return
    try:
        seen = visible_gpus()
    except ClockError:
        return
    strangers = [gpu for gpu in by_place(uuids).get("", ()) if gpu not in seen]
    if seen and strangers:
        raise ClockUnavailableError(
            f"GPU {strangers[0]} is not one of this process's",
            cause=f"{VISIBLE} gives it {', '.join(seen)}",
            hint="name the GPUs that the engine runs on; nvidia-smi -L lists them by UUID",
        )


def check_model(names: Sequence[str], gpu_name: str, device: str = "") -> None:
    """Hold the GPUs' product names against the one that a table was made for.

    A table that was measured names its GPU as the driver does, and a PCIe board is no SXM one. A
    modelled table names a device file, of which only the chip is compared: "h100-sxm" stands for
    "NVIDIA H100 80GB HBM3".

    Args:
        names: as the driver has them; none = not known, and nothing is checked.
        gpu_name: of the table; empty where it was modelled.
        device: of the table.

    Raises:
        TableError: it is for another kind of GPU.
    """
    if gpu_name:
        others = {name for name in names if not _same_product(name, gpu_name)}
    else:
        chip = _chip(device)
        others = {name for name in names if chip and _chip(name) not in ("", chip)}
    if others:
        raise TableError(
            f"the GPUs here are {', '.join(sorted(others))}, the table is for {gpu_name or device}",
            hint="profile this kind of GPU: beam profile --model MODEL --tp T --pp P",
        )


def _same_product(one: str, other: str) -> bool:
    """Whether one name says no more than the other: a file's name may leave words out."""
    words, others = _words(one), _words(other)
    return (words <= others or others <= words) and ("mig" in words) == ("mig" in others)


def _chip(name: str) -> str:
    """A100 of an NVIDIA A100-SXM4-80GB: the first word with a digit in it."""
    return next((word for word in _split(name) if any(map(str.isdigit, word))), "")


def _words(name: str) -> set[str]:
    return set(_split(name)) - {"nvidia", "tesla"}


def _split(name: str) -> list[str]:
    return re.split(r"[\s_-]+", name.strip().lower())
