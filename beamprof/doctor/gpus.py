"""The GPUs of this machine as NVML sees them, each by itself: one that is sick hides no other.

Whatever a GPU does not tell is None. It reads only.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from beam_runtime.clocks.calls import within
from beam_runtime.clocks.nvml import NvmlGpus, gpu_count
from beam_runtime.errors import BeamError, ClockError, ClockHangsError, ClockUnavailableError

T = TypeVar("T")
# An A100's counter ticks every 100 ms.
_TICK_WATCH_S = 0.35
_TICK_SAMPLE_S = 0.005
_PATIENCE_S = 10.0  # for all readings of one GPU
_MOST_GPUS = 64  # where a binding cannot count, they are looked for up to here


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU.

    Attributes:
        sick: what failed that a GPU must be able to do; empty where it is well.
        lowest_mhz, highest_mhz, clocks: SM clocks offered, and how many.
        energy: "counts", "absent" (not supported), or why it cannot be read.
        tick_ms: between two changes of its energy counter; None where none was seen.
        processes: pids that compute on it; None where the driver does not tell.
    """

    index: int
    uuid: str = ""
    name: str = ""
    pci_address: str = ""
    sick: str = ""
    clock_mhz: int | None = None
    clocks: int = 0
    lowest_mhz: int | None = None
    highest_mhz: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    energy: str = "absent"
    tick_ms: float | None = None
    persistence: bool | None = None
    mig: bool | None = None
    processes: tuple[int, ...] | None = None


def find_gpus(nvml: Any = None) -> tuple[str | None, tuple[Gpu, ...], str]:
    """The driver's version, the GPUs, and why there are none (empty where there are some)."""
    driver: str | None = None
    found: list[Gpu] = []
    try:
        count = within(_PATIENCE_S, lambda: gpu_count(nvml))
    except (ClockUnavailableError, ClockHangsError) as error:
        return None, (), reason(error)
    except ClockError:
        count = _MOST_GPUS  # an old binding: they are looked for until NVML says there are no more
    for index in range(count):
        try:
            version, gpu = within(_PATIENCE_S, partial(_look_at, index, nvml))
            driver = driver or version
            found.append(gpu)
        except ClockError as error:
            if count == _MOST_GPUS and getattr(error.__cause__, "value", None) == _NO_SUCH_INDEX:
                break
            found.append(Gpu(index, sick=reason(error)))
    return driver, tuple(found), "" if found else "NVML counts no GPU"


_NO_SUCH_INDEX = 2


def _look_at(index: int, nvml: Any) -> tuple[str | None, Gpu]:
    with NvmlGpus([index], nvml=nvml) as one:
        return _told(one.driver_version, None)[0], _gpu(index, one)


def _gpu(index: int, one: NvmlGpus) -> Gpu:
    sick: list[str] = []

    def tell(ask: Callable[[], T], missing: T) -> T:
        found, why = _told(ask, missing)
        if why and why not in sick:
            sick.append(why)
        return found

    identity = tell(lambda: one.identities()[0], None)
    clock_mhz = tell(lambda: one.read_clock_mhz()[0], None)
    nothing: tuple[int, ...] = ()
    offered, _ = _told(one.supported_clocks_mhz, nothing)  # a virtual GPU is well without
    energy, tick_ms = _energy(one)
    return Gpu(
        index=index,
        uuid=one.gpus[0],
        name=identity.name if identity else "",
        pci_address=identity.pci_address if identity else "",
        clock_mhz=clock_mhz,
        clocks=len(offered),
        lowest_mhz=min(offered, default=None),
        highest_mhz=max(offered, default=None),
        power_w=tell(lambda: one.read_power_w()[0], None),
        power_limit_w=_told(lambda: one.read_power_limit_w()[0], None)[0],
        energy=energy,
        tick_ms=tick_ms,
        persistence=_told(lambda: one.read_persistence()[0], None)[0],
        mig=_told(lambda: one.read_mig()[0], None)[0],
        processes=_told(lambda: one.read_processes()[0], None)[0],
        sick="; ".join(sick),
    )


def _energy(one: NvmlGpus) -> tuple[str, float | None]:
    """Whether it counts, and the time between two of its ticks, in milliseconds."""
    until_s = time.monotonic() + _TICK_WATCH_S
    last_j: float | None = None
    ticks_s: list[float] = []
    try:
        while (now_s := time.monotonic()) < until_s and len(ticks_s) < 3:
            (energy_j,) = one.read_energy_j()
            if last_j is not None and energy_j != last_j:
                ticks_s.append(now_s)
            last_j = energy_j
            time.sleep(_TICK_SAMPLE_S)
    except ClockUnavailableError:
        return "absent", None
    except ClockError as error:
        return reason(error), None
    if len(ticks_s) < 2:
        return "counts", None
    return "counts", (ticks_s[-1] - ticks_s[0]) / (len(ticks_s) - 1) * 1e3


def _told(ask: Callable[[], T], missing: T) -> tuple[T, str]:
    """What it says, or what is missing and why."""
    try:
        return ask(), ""
    except ClockError as error:
        return missing, reason(error)


def reason(error: BeamError) -> str:
    """An error in one line."""
    return f"{error.message} ({error.cause})" if error.cause else error.message
