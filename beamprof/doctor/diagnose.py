"""`beam doctor`: what this machine has, what this user may do, and which locks were left behind.

It reads; only ``restore`` changes anything, and then only GPUs that BEAM has locked and whose
owner is dead.
"""

import importlib.metadata
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass

from beam_runtime.clocks.choose import choose_actuator, may_lock_clocks
from beam_runtime.clocks.claims import orphans, restore
from beam_runtime.clocks.guarded import release_orphan
from beam_runtime.clocks.state_file import Holding, StateFile
from beam_runtime.errors import BeamError, ClockError

# What the two halves use, and what uses them.
PACKAGES = ("beamprof", "numpy", "numba", "pyarrow", "nvidia-ml-py", "torch", "vllm")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as NVML sees it."""

    index: int
    uuid: str
    name: str
    clock_mhz: int
    clocks: int
    lowest_mhz: int
    highest_mhz: int
    power_w: float


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock on record.

    Attributes:
        gpus: UUIDs.
        clock_mhz: the lock; None where the GPUs are held and not locked.
        pid: whose.
        state: held (its process lives), orphaned (it is dead, the lock stands), void (nothing
            is locked any more), released (just now), or stuck (it could not be released).
        error: why it is stuck.
    """

    gpus: tuple[str, ...]
    clock_mhz: int | None
    pid: int
    state: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found.

    Attributes:
        python, system: versions.
        packages: name to version; None where it is not installed.
        driver: NVIDIA driver; None without one.
        gpus: what NVML lists.
        no_gpus: why there are none; empty where there are some.
        may_lock: whether the driver lets this user lock clocks.
        clocks: how BEAM would set clocks, and why.
        locks: on record.
        record_error: why the record cannot be read; empty where it can.
    """

    python: str
    system: str
    packages: dict[str, str | None]
    driver: str | None
    gpus: tuple[Gpu, ...]
    no_gpus: str
    may_lock: bool
    clocks: str
    locks: tuple[Lock, ...]
    record_error: str

    @property
    def well(self) -> bool:
        """Whether no lock is left behind."""
        bad = any(lock.state in ("orphaned", "stuck") for lock in self.locks)
        return not bad and not self.record_error


def diagnose(
    *, restore_orphans: bool = False, state: StateFile | None = None, nvml: object = None
) -> Diagnosis:
    """Look around; with ``restore_orphans`` also release what dead owners left locked.

    Args:
        restore_orphans: release orphaned locks.
        state: the record of locks; this user's by default.
        nvml: a module like pynvml; the real one when None.
    """
    state = state or StateFile()
    driver, gpus, no_gpus = _gpus(nvml)
    locks, record_error = _locks(state, restore_orphans, release_orphan)
    return Diagnosis(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()}, {os.cpu_count()} CPUs",
        packages={name: _version(name) for name in PACKAGES},
        driver=driver,
        gpus=gpus,
        no_gpus=no_gpus,
        may_lock=may_lock_clocks(),
        clocks=str(choose_actuator([gpu.uuid for gpu in gpus])) if gpus else "no GPU here",
        locks=locks,
        record_error=record_error,
    )


def _gpus(nvml: object) -> tuple[str | None, tuple[Gpu, ...], str]:
    from beam_runtime.clocks.nvml import NvmlGpus

    found: list[Gpu] = []
    driver = None
    while True:
        try:
            with NvmlGpus([len(found)], nvml=nvml) as one:
                driver = one.driver_version()
                identity = one.identities()[0]
                offered = one.supported_clocks_mhz()
                found.append(
                    Gpu(
                        identity.index,
                        identity.uuid,
                        identity.name,
                        one.read_back()[0].clock_mhz,
                        len(offered),
                        offered[0],
                        offered[-1],
                        one.read_power_w()[0],
                    )
                )
        except ClockError as error:
            # NVML counts from 0 and says so when there are no more.
            return driver, tuple(found), "" if found else _reason(error)


def _locks(
    state: StateFile, restore_orphans: bool, release: Callable[[Holding], None]
) -> tuple[tuple[Lock, ...], str]:
    try:
        before = state.read()
        lost = orphans(state, before)
        done = restore(state, release) if restore_orphans and before else []
    except ClockError as error:
        return (), str(error)
    outcomes = {one.holding: one.error for one in done}
    return tuple(_lock(holding, lost, outcomes) for holding in before), ""


def _lock(
    holding: Holding, lost: list[Holding], outcomes: dict[Holding, ClockError | None]
) -> Lock:
    error = outcomes.get(holding)
    if holding in outcomes:
        condition = "released" if error is None else "stuck"
    elif holding in lost:
        condition = "orphaned"
    else:
        condition = "held" if holding.owner.alive() else "void"
    return Lock(
        holding.gpus, holding.clock_mhz, holding.owner.pid, condition,
        "" if error is None else _reason(error),
    )  # fmt: skip


def _reason(error: BeamError) -> str:
    return f"{error.message} ({error.cause})" if error.cause else error.message


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
