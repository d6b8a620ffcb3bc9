"""What each NVML error code means for a person, in one table.

Codes are those of nvmlReturn_t in nvml.h, which NVIDIA keeps stable.
"""

from dataclasses import dataclass
from typing import Any

from beam_runtime.errors import ClockError, ClockPermissionError, ClockUnavailableError

UNINITIALIZED = 1
_NOT_SUPPORTED, _FUNCTION_NOT_FOUND = 3, 13
TIMEOUT = 10
UNKNOWN = 999

# A second try costs a millisecond and these often pass: a busy driver, a driver just reloaded.
RETRIED_CODES = (UNINITIALIZED, TIMEOUT, UNKNOWN)

WAYS_OUT = (
    "one of three: run as root or with CAP_SYS_ADMIN; let zeusd set clocks through its socket; "
    "or leave the clocks alone, in beam profile with --clocks current"
)
_NO_DRIVER_HINT = "check that nvidia-smi works here; without a GPU use --backend modelled"
_GPU_LOST_HINT = "look for Xid errors in dmesg; the GPU needs a reset or the machine a reboot"


@dataclass(frozen=True, slots=True)
class _Meaning:
    error: type[ClockError]
    hint: str


_MEANINGS: dict[int, _Meaning] = {
    2: _Meaning(ClockUnavailableError, "check the GPU index and the clock"),
    3: _Meaning(
        ClockUnavailableError,
        "MIG slices, vGPUs and boards older than Volta cannot do this; "
        "use a whole data-centre GPU, or --clocks current",
    ),
    4: _Meaning(ClockPermissionError, WAYS_OUT),
    6: _Meaning(ClockUnavailableError, "nvidia-smi -L lists the GPUs that are here"),
    9: _Meaning(ClockUnavailableError, _NO_DRIVER_HINT),
    10: _Meaning(ClockError, "the driver is slow or hangs; try again, then look into dmesg"),
    12: _Meaning(ClockUnavailableError, _NO_DRIVER_HINT),
    13: _Meaning(ClockUnavailableError, "this driver is too old for it; BEAM needs 535 or newer"),
    15: _Meaning(ClockUnavailableError, _GPU_LOST_HINT),
    16: _Meaning(ClockUnavailableError, _GPU_LOST_HINT),
    18: _Meaning(
        ClockUnavailableError, "the driver was updated while loaded: reboot, or reload it"
    ),
    24: _Meaning(ClockUnavailableError, "nvidia-smi -q -d SUPPORTED_CLOCKS lists what it offers"),
    28: _Meaning(ClockUnavailableError, "nvidia-smi -L lists the GPUs that are here"),
}
_OTHERWISE = _Meaning(ClockError, "try again; if it stays, look for Xid errors in dmesg")

_DOING: dict[str, str] = {
    "nvmlInit": "start",
    "nvmlDeviceGetHandleByIndex": "find the GPU",
    "nvmlDeviceGetHandleByUUID": "find the GPU",
    "nvmlDeviceSetGpuLockedClocks": "lock the SM clock",
    "nvmlDeviceResetGpuLockedClocks": "release the SM clock",
    "nvmlDeviceGetClockInfo": "read the SM clock",
    "nvmlDeviceGetSupportedMemoryClocks": "list the supported clocks",
    "nvmlDeviceGetSupportedGraphicsClocks": "list the supported clocks",
    "nvmlDeviceGetTotalEnergyConsumption": "read the energy counter",
    "nvmlDeviceGetPowerUsage": "read the power",
    "nvmlDeviceGetTemperature": "read the temperature",
    "nvmlDeviceGetHandleByPciBusId": "find the GPU",
    "nvmlDeviceGetCurrentClocksEventReasons": "read what holds the clock back",
}


def translated(error: Any, function: str, gpu: str | int | None) -> ClockError:
    """The BEAM error for an NVMLError (its ``value`` is the code) raised by ``function``."""
    code = getattr(error, "value", None)
    meaning = _MEANINGS.get(code, _OTHERWISE) if isinstance(code, int) else _OTHERWISE
    return meaning.error(
        f"NVML could not {_DOING.get(function, f'answer {function}')}{_where(gpu)}",
        cause=f"{function}: {error} (code {code})",
        hint=meaning.hint,
    )


def is_unsupported(error: ClockError) -> bool:
    """Whether the GPU, its driver or the Python binding has no such reading at all."""
    code = getattr(error.__cause__, "value", None)
    return code in (_NOT_SUPPORTED, _FUNCTION_NOT_FOUND) or isinstance(error, _AbsentError)


class _AbsentError(ClockUnavailableError):
    """The binding has no such function."""


def absent(nvml: Any, function: str, gpu: str | int | None) -> ClockError:
    """A binding that is older than a function."""
    return _AbsentError(
        f"this pynvml cannot {_DOING.get(function, f'answer {function}')}{_where(gpu)}",
        cause=f"it has no {function}; its version is {_version(nvml)}",
        hint="pip install -U nvidia-ml-py, and pip uninstall pynvml where that is installed, too",
    )


def odd(nvml: Any, error: Exception, function: str, gpu: str | int | None) -> ClockError:
    """A binding that raises or returns what NVML does not."""
    return ClockError(
        f"NVML could not {_DOING.get(function, f'answer {function}')}{_where(gpu)}",
        cause=f"{function}: {type(error).__name__}: {error} (pynvml {_version(nvml)})"[:500],
        hint="pip install -U nvidia-ml-py, and pip uninstall pynvml where that is installed, too",
    )


def _where(gpu: str | int | None) -> str:
    return "" if gpu is None else f" (GPU {gpu})"


def _version(nvml: Any) -> str:
    return str(getattr(nvml, "__version__", "unknown"))[:40]
