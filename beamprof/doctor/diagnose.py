"""`beam doctor`: could BEAM control this machine, and which locks were left behind.

It reads; only ``restore`` changes anything, and then only GPUs that BEAM has locked and whose
owner is dead.
"""

import importlib.metadata
import os
import platform
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from beam_runtime.clocks.calls import within
from beam_runtime.clocks.choose import choose_actuator, may_lock_clocks
from beam_runtime.clocks.claims import Restored, gone, orphans, restore
from beam_runtime.clocks.orphans import release_orphan
from beam_runtime.clocks.state_file import Holding, StateFile
from beam_runtime.errors import ClockError
from beamprof.doctor.checks import Check, checks
from beamprof.doctor.config_checks import config_checks
from beamprof.doctor.gpus import Gpu, find_gpus, reason
from beamprof.settings import user_config

# What the two halves use, and what uses them.
_PATIENCE_S = 30.0  # with a driver that hangs, for each lock on record
PACKAGES = ("beamprof", "numpy", "numba", "pyarrow", "nvidia-ml-py", "torch", "vllm")


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock on record.

    Attributes:
        gpus: UUIDs.
        clock_mhz: the lock; None where the GPUs are held and not locked.
        pid: whose.
        state: held (its process lives), orphaned (it is dead, the lock stands), void (nothing
            is locked any more), released (just now), or stuck (it could not be released).
        error: why it is stuck, or what was left alone.
        host: what its machine or container is called, where it is told.
    """

    gpus: tuple[str, ...]
    clock_mhz: int | None
    pid: int
    state: str
    error: str = ""
    host: str = ""


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
        record: where that is.
        record_error: why the record cannot be read; empty where it can.
        checks: what has to hold for BEAM to control this machine, and whether it does.
        user_file: the user's own settings; None where there is no such file.
        variables: names of BEAM_* variables that are set; what a token is stays unsaid.
        config: the beam.toml that was asked about; None where none was.
        config_checks: the same of it.
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
    record: str
    record_error: str
    checks: tuple[Check, ...]
    user_file: str | None = None
    variables: tuple[str, ...] = ()
    config: str | None = None
    config_checks: tuple[Check, ...] = ()

    @property
    def serves(self) -> bool:
        """Whether an engine may be started with the beam.toml that was asked about."""
        return all(check.ok is not False for check in self.config_checks)

    @property
    def well(self) -> bool:
        """Whether no lock is left behind and no GPU is sick."""
        left = any(lock.state in ("orphaned", "stuck") for lock in self.locks)
        return not (left or self.record_error or any(gpu.sick for gpu in self.gpus))

    @property
    def controls(self) -> bool:
        """Whether BEAM could control this machine."""
        return self.well and all(check.ok is not False for check in self.checks)


def diagnose(
    *,
    restore_orphans: bool = False,
    config: str | Path | None = None,
    state: StateFile | None = None,
    nvml: object = None,
) -> Diagnosis:
    """Look around; with ``restore_orphans`` also release what dead owners left locked.

    Args:
        restore_orphans: release orphaned locks.
        config: a beam.toml to look at as well.
        state: the record of locks; this user's by default.
        nvml: a module like pynvml; the real one when None.

    Raises:
        BeamError: the config cannot be read.
    """
    state = state or StateFile()
    locks, record_error = _locks(state, restore_orphans)
    driver, gpus, no_gpus = find_gpus(nvml)
    user = user_config(os.environ)
    held = [gpu for lock in locks if lock.state != "released" for gpu in lock.gpus]
    return Diagnosis(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()}, {os.cpu_count()} CPUs",
        packages={name: _version(name) for name in PACKAGES},
        driver=driver,
        gpus=gpus,
        no_gpus=no_gpus,
        may_lock=may_lock_clocks(),
        clocks=str(choose_actuator([gpu.uuid for gpu in gpus if gpu.uuid and not gpu.sick]))
        if gpus
        else "no GPU here",
        locks=locks,
        record=str(state.path),
        record_error=record_error,
        checks=checks(driver, gpus, no_gpus, held, state, nvml),
        user_file=None if user is None else str(user),
        variables=tuple(sorted(name for name in os.environ if name.startswith("BEAM_"))),
        config=None if config is None else str(config),
        config_checks=() if config is None else config_checks(Path(config), gpus),
    )


def _locks(state: StateFile, restore_orphans: bool) -> tuple[tuple[Lock, ...], str]:
    try:
        before = state.read()
        lost = orphans(state, before)
        done = (
            restore(
                state, lambda holding: within(_PATIENCE_S, partial(release_orphan, holding, state))
            )
            if restore_orphans and before
            else []
        )
    except ClockError as error:
        return (), str(error)
    outcomes = {one.holding: one for one in done}
    return tuple(_lock(state, holding, lost, outcomes) for holding in before), ""


def _lock(
    state: StateFile, holding: Holding, lost: list[Holding], outcomes: dict[Holding, Restored]
) -> Lock:
    outcome = outcomes.get(holding)
    said = ""
    if outcome is not None:
        condition = "released" if outcome.error is None else "stuck"
        said = "; ".join(f"{gpu} was left alone: it is {why}" for gpu, why in outcome.others)
        said = said if outcome.error is None else reason(outcome.error)
    elif holding in lost:
        condition = "orphaned"
    else:
        condition = "void" if gone(state, holding) else "held"
    return Lock(
        holding.gpus, holding.clock_mhz, holding.owner.pid, condition, said, holding.owner.host
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
