"""What has to hold for BEAM to control a machine: one line each, and what helps where not."""

import importlib.metadata
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beam_runtime.clocks.calls import within
from beam_runtime.clocks.choose import choose_actuator, may_lock_clocks, zeusd_places
from beam_runtime.clocks.evidence import foreign_clocks
from beam_runtime.clocks.nvml import NvmlGpus
from beam_runtime.clocks.spec import ActuatorKind
from beam_runtime.clocks.state_file import StateFile
from beam_runtime.clocks.zeusd_client import ZeusdClient
from beam_runtime.clocks.zeusd_offer import ask_offer
from beam_runtime.errors import ClockError
from beamprof.doctor.gpus import Gpu, reason
from beamprof.files import there_is, user_path

# The first nvidia-ml-py that knows clock-event reasons by their present name.
_OLDEST_NVML = (12, 535)
_PATIENCE_S = 10.0  # with a folder on a file system that hangs


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        ok: True; False where BEAM cannot control the machine for it; None where it only should
            be known.
        found: what is there.
        remedy: what helps; empty where nothing has to.
    """

    name: str
    ok: bool | None
    found: str
    remedy: str = ""


def checks(
    driver: str | None,
    gpus: Sequence[Gpu],
    no_gpus: str,
    held: Sequence[str],
    state: StateFile,
    nvml: Any,
) -> tuple[Check, ...]:
    """All of them. Nothing is set, and nothing raises.

    Args:
        driver: version of NVIDIA's; None without one.
        gpus: those that are here.
        no_gpus: why there are none; empty where there are some.
        held: UUIDs of GPUs that are on record.
        state: where that is.
        nvml: a module like pynvml; the real one when None.
    """
    looked: list[Check] = []
    parts: tuple[Callable[[], Iterator[Check]], ...] = (
        lambda: _driver(driver, gpus, no_gpus),
        lambda: (check for gpu in gpus for check in _gpu(gpu)),
        lambda: _rights(gpus),
        lambda: _record(gpus, state),
        _zeusd,
        lambda: _unknown_locks(gpus, held, nvml),
        _bindings,
        _numba,
    )
    for part in parts:
        looked += part()
    return tuple(looked)


def _driver(driver: str | None, gpus: Sequence[Gpu], no_gpus: str) -> Iterator[Check]:
    if no_gpus:
        yield Check("driver", False, no_gpus, "see that nvidia-smi works here")
    else:
        yield Check("driver", True, f"{driver or 'version unknown'}, {len(gpus)} GPUs")


def _gpu(gpu: Gpu) -> Iterator[Check]:
    name = f"GPU {gpu.index}"
    if gpu.sick:
        remedy = "look for Xid errors in dmesg; nvidia-smi -q shows what it still says"
        yield Check(name, False, gpu.sick, remedy)
    if gpu.mig:
        yield Check(
            name, False, "cut into MIG slices, whose clocks cannot be locked",
            f"nvidia-smi -i {gpu.index} -mig 0, or leave clocks alone",
        )  # fmt: skip
    elif not gpu.clocks and not gpu.sick:
        yield Check(
            name, False, "lists no SM clocks (a virtual GPU, a MIG slice, or too old a board)",
            "use a whole data-centre GPU, or leave clocks alone",
        )  # fmt: skip
    if gpu.energy != "counts" and not gpu.sick:
        yield Check(
            name, None, f"no energy counter: {gpu.energy}",
            "beam profile --assume-power WATTS, or a GPU of Volta or newer",
        )  # fmt: skip
    if gpu.persistence is False:
        yield Check(
            name, None, "persistence mode is off: the driver forgets locks with its last client",
            f"nvidia-smi -i {gpu.index} -pm 1, or run nvidia-persistenced",
        )  # fmt: skip
    others = [pid for pid in gpu.processes or () if pid != os.getpid()]
    if others:
        yield Check(name, None, f"processes compute on it: {', '.join(map(str, others))}")


def _rights(gpus: Sequence[Gpu]) -> Iterator[Check]:
    named = [gpu.uuid for gpu in gpus if gpu.uuid and not gpu.sick]
    if not named:
        return
    choice = choose_actuator(named)
    ok = choice.spec.kind is not ActuatorKind.NONE
    yield Check(
        "right to lock", ok, str(choice),
        "" if ok else "root, CAP_SYS_ADMIN or zeusd: see docs/operations.md",
    )  # fmt: skip


def _record(gpus: Sequence[Gpu], state: StateFile) -> Iterator[Check]:
    """A lock is on record before it is set: without a record there is none."""
    if not gpus:
        return
    try:
        within(_PATIENCE_S, state.check)
    except ClockError as error:
        cause = f" ({error.cause})" if error.cause else ""
        yield Check("record", False, f"{error.message}{cause}", error.hint or "")
    else:
        yield Check("record", True, f"locks are on record in {state.folder}")


def _zeusd() -> Iterator[Check]:
    places = [place for place in zeusd_places() if there_is(Path(place))]
    if not places:
        yield Check("zeusd", None, f"no socket at {' or '.join(zeusd_places())}")
    for place in places:
        try:
            offer = ask_offer(ZeusdClient(place), place)
        except ClockError as error:
            needed = False if not may_lock_clocks() else None
            yield Check("zeusd", needed, reason(error), "systemctl status zeusd")
            continue
        addresses = [gpu.pci_address or "no address" for gpu in offer.gpus]
        what = "sets clocks" if offer.controls else "sets no clocks"
        yield Check("zeusd", None, f"at {place}, {what}; GPUs at {', '.join(addresses)}")


def _unknown_locks(gpus: Sequence[Gpu], held: Sequence[str], nvml: Any) -> Iterator[Check]:
    for gpu in gpus:
        if gpu.sick or gpu.uuid in held or gpu.highest_mhz is None:
            continue
        try:
            with NvmlGpus([gpu.uuid], nvml=nvml) as one:
                found = foreign_clocks(one.read_back, (), free_mhz=gpu.highest_mhz)
        except ClockError:
            continue
        for clock_mhz in found.values():
            yield Check(
                f"GPU {gpu.index}", False,
                f"stays at {clock_mhz} MHz: locked by somebody who is on no record here",
                f"if that lock is nobody's: nvidia-smi -rgc -i {gpu.uuid}",
            )  # fmt: skip


def _bindings() -> Iterator[Check]:
    """pynvml, the module, comes from nvidia-ml-py; two other packages bring old ones."""
    version = _version("nvidia-ml-py")
    if version is None:
        yield Check("nvidia-ml-py", False, "not installed", "pip install nvidia-ml-py")
    elif _numbers(version) < _OLDEST_NVML:
        yield Check(
            "nvidia-ml-py", None, f"{version} is older than 12.535", "pip install -U nvidia-ml-py"
        )
    for package in ("pynvml", "nvidia-ml-py3"):
        found = _version(package)
        if found is not None:
            yield Check(
                package, None, f"{found} may hide the module of nvidia-ml-py",
                f"pip uninstall {package}; pip install --force-reinstall nvidia-ml-py",
            )  # fmt: skip


def _numba() -> Iterator[Check]:
    """Compiled code is kept beside the package, else in NUMBA_CACHE_DIR or the user's cache."""
    import beam_runtime

    places = [Path(beam_runtime.__file__).parent]
    named = os.environ.get("NUMBA_CACHE_DIR")
    places += [Path(named)] if named else [user_path("~") / ".cache"]
    usable = [place for place in places if _writable(place)]
    if usable:
        yield Check("numba's cache", True, str(usable[0]))
    else:
        yield Check(
            "numba's cache", None,
            f"neither {' nor '.join(map(str, places))} can be written: each start compiles",
            "NUMBA_CACHE_DIR=FOLDER",
        )  # fmt: skip


def _writable(place: Path) -> bool:
    """Whether files can be made there; the nearest folder above that exists decides."""
    while not there_is(place) and place != place.parent:
        place = place.parent
    return os.access(place, os.W_OK | os.X_OK)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split(".")[:2]
    return tuple(int(part) if part.isdecimal() else 0 for part in parts)
