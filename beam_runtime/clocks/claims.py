"""One writer per GPU, and what happens to locks whose writer is gone.

held            by a living process: nobody else may lock these GPUs
orphaned        its process is dead, and the lock is still in force: to be released
void            its process is dead and nothing is locked, or the machine was booted since
                (clock locks do not survive that): only the entry is stale

GPUs of another node are on a record of their own: each node is released, and forgotten, by
itself. This machine's boot frees none of them. Records are this machine's: two machines that
set the clocks of a third do not hear of each other here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from beam_runtime.clocks.owner import Owner, boot_id
from beam_runtime.clocks.places import by_place, node_of
from beam_runtime.clocks.spec import ActuatorKind
from beam_runtime.clocks.state_file import Holding, StateFile
from beam_runtime.errors import ClockError


@dataclass(frozen=True, slots=True)
class Restored:
    """What became of an orphaned lock: released, or the error that kept it from being so."""

    holding: Holding
    error: ClockError | None = None


def orphans(holdings: Sequence[Holding]) -> list[Holding]:
    """Locks in force whose owner is dead."""
    return [
        holding
        for holding in holdings
        if holding.clock_mhz is not None
        and (holding.owner.boot_id == boot_id() or any(map(node_of, holding.gpus)))
        and not holding.owner.alive()
    ]


def restore(state: StateFile, release: Callable[[Holding], None]) -> list[Restored]:
    """Release every orphan and forget void entries; what cannot be released stays on record.

    Args:
        state: where the holdings are.
        release: gives one holding's GPUs back; raises ClockError when it cannot.
    """
    restored = []
    with state.change() as holdings:
        lost = orphans(holdings)
        for holding in lost:
            try:
                release(holding)
                restored.append(Restored(holding))
            except ClockError as error:
                restored.append(Restored(holding, error))
        kept = [done.holding for done in restored if done.error is not None]
        holdings[:] = [h for h in holdings if h.owner.alive() or h in kept]
    return restored


def claim(
    state: StateFile, owner: Owner, gpus: Sequence[str], actuator: str, clock_mhz: int | None
) -> None:
    """Put ``owner`` on record for these GPUs, or change the clock it is on record with.

    Raises:
        ClockError: another living process holds one of them, or an orphaned lock on one
            of them is still on record (restore comes first).
    """
    wanted = set(gpus)
    # A new clock for a lock on record needs no flush: the lock dies with the machine anyway.
    durable = not any(h.owner == owner and h.clock_mhz is not None for h in state.read())
    with state.change(durable=durable) as holdings:
        for holding in holdings:
            shared = wanted & set(holding.gpus)
            if holding.owner == owner or not shared:
                continue
            if holding.owner.alive():
                raise ClockError(
                    f"GPU {min(shared)} is held by process {holding.owner.pid}",
                    cause="one controller per GPU: the last to set a clock would win",
                    hint="stop that one first, or run this one on other GPUs or without clocks",
                )
            if holding in orphans(holdings):
                raise ClockError(
                    f"GPU {min(shared)} is still locked at {holding.clock_mhz} MHz by process "
                    f"{holding.owner.pid}, which is dead",
                    hint="beam doctor --restore",
                )
        kept = [h for h in holdings if h.owner != owner and not wanted & set(h.gpus)]
        holdings[:] = kept + [
            Holding(
                owner, own, clock_mhz, f"{ActuatorKind.NODE}:{address}" if address else actuator
            )
            for address, own in by_place(gpus).items()
        ]


def unlock(state: StateFile, owner: Owner) -> None:
    """Note that ``owner`` holds its GPUs without a lock."""
    with state.change(durable=False) as holdings:
        holdings[:] = [replace(h, clock_mhz=None) if h.owner == owner else h for h in holdings]


def give_up(state: StateFile, owner: Owner) -> None:
    """Strike ``owner`` off the record."""
    with state.change() as holdings:
        holdings[:] = [holding for holding in holdings if holding.owner != owner]
