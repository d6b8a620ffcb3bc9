"""One writer per GPU, and what happens to locks whose writer is gone.

held            by a living process: nobody else may lock these GPUs
orphaned        its process is dead, and the lock is still in force: to be released
void            its process is dead and nothing is locked, or the machine was booted since
                (clock locks do not survive that): only the entry is stale

GPUs of another node are on a record of their own: each node is released, and forgotten, by
itself. This machine's boot frees none of them. Records are this machine's: two machines that
set the clocks of a third do not hear of each other here.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from urllib.parse import quote

from beam_runtime.clocks.file_lock import file_lock
from beam_runtime.clocks.owner import Owner, boot_id
from beam_runtime.clocks.places import by_place, node_of
from beam_runtime.clocks.presence import Presence, ended_here, forget, shows
from beam_runtime.clocks.spec import ActuatorKind
from beam_runtime.clocks.state_file import Holding, Record, StateFile
from beam_runtime.errors import ClockError

# Whoever sets, releases or recovers a GPU does so alone. A set takes 7-35 ms a GPU.
TURN_TIMEOUT_S = 2.0
_LONGEST_FILE_NAME = 100


@dataclass(frozen=True, slots=True)
class Restored:
    """What became of an orphaned lock.

    Attributes:
        holding: as it was on record.
        error: why it could not be released; None where it was.
        others: GPUs that were left alone, as they are another's by now, and what shows it.
    """

    holding: Holding
    error: ClockError | None = None
    others: tuple[tuple[str, str], ...] = ()


@contextmanager
def turn(state: StateFile, gpus: Iterable[str], timeout_s: float | None = None) -> Iterator[None]:
    """Be the only one to compare and act on these GPUs. Raises ClockError as file_lock."""
    mode = state.prepare()
    timeout_s = TURN_TIMEOUT_S if timeout_s is None else timeout_s
    with ExitStack() as held:
        for gpu in sorted(set(gpus)):
            name = quote(gpu, safe="")[-_LONGEST_FILE_NAME:]
            path = state.folder / f"gpu-{name}.lock"
            held.enter_context(file_lock(path, timeout_s=timeout_s, mode=mode))
        yield


def gone(state: StateFile, holding: Holding) -> bool:
    """Whether its owner is certainly dead: never said of one that merely cannot be seen here."""
    owner = holding.owner
    if owner.boot_id != boot_id():
        return True
    if owner.alive():
        # This very process, whose record could not be written when its lease ended.
        return owner.pid == os.getpid() and ended_here(state.presence(holding.generation))
    if owner.visible and holding.generation == 0:  # recorded before there were presences
        return True
    shown = shows(state.presence(holding.generation))
    # A pid that is hidden here is no pid that is gone.
    return not shown if owner.visible else shown is False


def orphans(state: StateFile, holdings: Sequence[Holding]) -> list[Holding]:
    """Locks in force whose owner is dead."""
    return [
        holding
        for holding in holdings
        if holding.clock_mhz is not None
        and (holding.owner.boot_id == boot_id() or any(map(node_of, holding.gpus)))
        and gone(state, holding)
    ]


def restore(
    state: StateFile, release: Callable[[Holding], Mapping[str, str] | None]
) -> list[Restored]:
    """Release every orphan and forget void entries; what cannot be released stays on record.

    Args:
        state: where the holdings are.
        release: gives one holding's GPUs back, and returns those that it left alone, as
            they are another's by now; raises ClockError when it cannot.
    """
    restored = [_restored(state, holding, release) for holding in orphans(state, state.read())]
    with state.change() as record:
        void = [
            one
            for one in record
            if gone(state, one) and one not in orphans(state, record) and _is_of_here(one)
        ]
        record[:] = [one for one in record if one not in void]
    for one in void:
        forget(state.presence(one.generation))
    return restored


def _restored(
    state: StateFile, holding: Holding, release: Callable[[Holding], Mapping[str, str] | None]
) -> Restored:
    try:
        with turn(state, holding.gpus):
            if holding not in state.read():  # its guard, or another start, was faster
                return Restored(holding)
            others = release(holding) or {}
            with state.change() as record:
                record[:] = [one for one in record if one != holding]
            forget(state.presence(holding.generation))
    except ClockError as error:
        return Restored(holding, error)
    return Restored(holding, None, tuple(others.items()))


def _is_of_here(holding: Holding) -> bool:
    """Not an entry of another machine that shares this folder: it has boots of its own."""
    own = Owner.current()
    return holding.owner.boot_id == own.boot_id or holding.owner.host in ("", own.host)


def take(
    state: StateFile, owner: Owner, gpus: Sequence[str], actuator: str
) -> tuple[Holding, Presence]:
    """A new lease on these GPUs, nothing locked yet.

    Returns:
        The lease, as one holding over all machines, and the sign that its owner lives.

    Raises:
        ClockError: see claim; or no record can be kept.
    """
    mode = state.prepare()
    presence: Presence | None = None
    try:
        with state.change() as record:
            lease = Holding(owner, tuple(gpus), None, actuator, generation=record.generation + 1)
            _refuse_if_taken(state, record, lease)
            presence = Presence.show(state.presence(lease.generation), mode)
            while presence is None:  # the record was lost, the files were not
                lease = replace(lease, generation=lease.generation + 1)
                presence = Presence.show(state.presence(lease.generation), mode)
            _enter(record, lease)
    except BaseException:  # also where the record cannot be written
        if presence is not None:
            presence.end()
        raise
    return lease, presence


def claim(
    state: StateFile,
    owner: Owner,
    gpus: Sequence[str],
    actuator: str,
    clock_mhz: int | None,
    generation: int = 0,
) -> None:
    """Put ``owner`` on record for these GPUs, or change the clock it is on record with.

    Raises:
        ClockError: another living process holds one of them, or an orphaned lock on one
            of them is still on record (restore comes first).
    """
    change(state, Holding(owner, tuple(gpus), clock_mhz, actuator, generation))


def change(state: StateFile, lease: Holding) -> None:
    """Put a lease on record as it is now. Raises ClockError as claim."""
    # A new clock for a lock on record needs no flush: the lock dies with the machine anyway.
    durable = not any(one.same_lease(lease) and one.clock_mhz is not None for one in state.read())
    with state.change(durable=durable) as record:
        _refuse_if_taken(state, record, lease)
        _enter(record, lease)


def taken_by_others(
    state: StateFile, record: Iterable[Holding], lease: Holding, gpus: Sequence[str]
) -> dict[str, Holding]:
    """Those of ``gpus`` that are on record under another lease of this boot, and that lease."""
    there: dict[str, Holding] = {}
    for holding in record:
        void = holding.clock_mhz is None and gone(state, holding)
        elsewhere = holding.owner.boot_id != lease.owner.boot_id
        if not (holding.same_lease(lease) or void or elsewhere):
            there.update(dict.fromkeys(set(gpus) & set(holding.gpus), holding))
    return there


def unlock(state: StateFile, owner: Owner, generation: int = 0) -> None:
    """Note that ``owner`` holds its GPUs without a lock."""
    with state.change(durable=False) as record:
        record[:] = [
            replace(one, clock_mhz=None, before_mhz=None, confirmed=False)
            if (one.owner, one.generation) == (owner, generation)
            else one
            for one in record
        ]


def give_up(state: StateFile, owner: Owner, generation: int = 0) -> None:
    """Strike ``owner``'s lease off the record."""
    with state.change() as record:
        record[:] = [one for one in record if (one.owner, one.generation) != (owner, generation)]


def _refuse_if_taken(state: StateFile, record: Record, lease: Holding) -> None:
    wanted = set(lease.gpus)
    lost = orphans(state, record)
    for holding in record:
        shared = wanted & set(holding.gpus)
        if holding.same_lease(lease) or not shared:
            continue
        if holding in lost:
            raise ClockError(
                f"GPU {min(shared)} is still locked at {holding.clock_mhz} MHz by process "
                f"{holding.owner.pid}, which is dead",
                hint="beam doctor --restore",
            )
        if not gone(state, holding):
            where = "" if holding.owner.visible else f" of {holding.owner.host or 'a container'}"
            raise ClockError(
                f"GPU {min(shared)} is held by process {holding.owner.pid}{where}",
                cause="one controller per GPU: the last to set a clock would win",
                hint="stop that one first, or run this one on other GPUs or without clocks",
            )


def _enter(record: Record, lease: Holding) -> None:
    wanted = set(lease.gpus)
    kept = [one for one in record if not one.same_lease(lease) and not wanted & set(one.gpus)]
    record[:] = kept + [
        replace(
            lease,
            gpus=own,
            actuator=f"{ActuatorKind.NODE}:{address}" if address else lease.actuator,
        )
        for address, own in by_place(lease.gpus).items()
    ]
