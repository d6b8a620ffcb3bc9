"""Whether the GPUs that were named are the replica's, and the ones that its table was made on."""

from collections.abc import Sequence

from beam_runtime.errors import ClockUnavailableError


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


def check_model(names: Sequence[str], measured: str) -> None:
    """Hold the GPUs' product names against the one that a table was measured on.

    Args:
        names: as the driver has them.
        measured: the table's gpu_name; empty where it was modelled, and nothing is checked.

    Raises:
        ClockUnavailableError: it was another kind of GPU.
    """
    others = sorted({name for name in names if _plain(name) != _plain(measured)})
    if measured and others:
        raise ClockUnavailableError(
            f"the GPUs here are {', '.join(others)}, the table was measured on {measured}",
            hint="profile this kind of GPU: beam profile --model MODEL --tp T --pp P",
        )


def _plain(name: str) -> str:
    return " ".join(name.removeprefix("NVIDIA ").lower().replace("-", " ").split())
