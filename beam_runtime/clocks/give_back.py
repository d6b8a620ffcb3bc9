"""Giving GPUs back, and only one's own: compare, then act. One rule for all who release.

Owner, guard and the next start come this way, in a turn (claims.turn). A GPU that is on record
under another lease, or that another's lock holds, is left alone and told of.
"""

from collections.abc import Callable, Sequence

from beam_runtime.clocks.base import Releaser
from beam_runtime.clocks.claims import taken_by_others
from beam_runtime.clocks.evidence import foreign_clocks, free_clock_mhz
from beam_runtime.clocks.state_file import Holding, StateFile
from beam_runtime.errors import ClockError


def give_back(
    releaser: Releaser,
    lease: Holding,
    state: StateFile,
    open_some: Callable[[Sequence[str]], Sequence[Releaser]],
    *,
    orphans: bool,
) -> dict[str, str]:
    """Release those of its GPUs that are still the lease's.

    Args:
        releaser: of all or some of the lease's GPUs.
        lease: the clocks that it may have in force, as known to whoever calls.
        state: the record; where it cannot be read, what is known counts.
        open_some: opens releasers of fewer GPUs.
        orphans: see ClockActuator.release.

    Returns:
        The GPUs that were left alone, and why.

    Raises:
        ClockError: a GPU did not answer.
    """
    others = not_ours(releaser, lease, state)
    own = [gpu for gpu in releaser.gpus if gpu not in others]
    if not others:
        releaser.release(orphans=orphans)
    elif own:
        for one in open_some(own):
            one.release(orphans=True)
    return others


def not_ours(releaser: Releaser, lease: Holding, state: StateFile) -> dict[str, str]:
    """The releaser's GPUs that are another's by now, and what shows it."""
    try:
        record = state.read()
    except ClockError:
        record = ()
    taken = taken_by_others(state, record, lease, releaser.gpus)
    others = {gpu: f"held by process {one.owner.pid}" for gpu, one in taken.items()}
    read_back = getattr(releaser, "read_back", None)  # zeusd on another node reads none
    if read_back is not None and lease.clocks_mhz:
        free_mhz = None if lease.confirmed else _free_clock_mhz(releaser)
        for gpu, clock_mhz in foreign_clocks(
            read_back, lease.clocks_mhz, free_mhz=free_mhz
        ).items():
            others.setdefault(gpu, f"at {clock_mhz} MHz, which was not set here")
    return others


def _free_clock_mhz(releaser: Releaser) -> int | None:
    return free_clock_mhz(releaser) if hasattr(releaser, "supported_clocks_mhz") else None


def in_words(others: dict[str, str]) -> str:
    """For an error's cause."""
    return "; ".join(f"{gpu} is {why}" for gpu, why in sorted(others.items()))
