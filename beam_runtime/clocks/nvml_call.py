"""Calls to NVML by whatever name a binding and a driver know them, and its errors as BEAM's."""

from typing import Any

from beam_runtime.clocks.nvml_errors import absent, odd, translated

# Names that an older pynvml, or an older driver, has for the same function.
_OLDER_NAMES = {
    "nvmlDeviceGetCurrentClocksEventReasons": "nvmlDeviceGetCurrentClocksThrottleReasons",
    "nvmlDeviceGetPciInfo": "nvmlDeviceGetPciInfo_v2",
}
_FUNCTION_NOT_FOUND = 13


def call(nvml: Any, function: str, gpu: str | int | None, *arguments: Any) -> Any:
    """Call it under the newest name that this binding and driver know.

    Args:
        nvml: a module like pynvml.
        function: its name in nvml.h.
        gpu: which it is about, for the error.
        arguments: as NVML takes them.

    Raises:
        ClockError: NVML's error, or whatever else a faulty binding raises.
    """
    for name in (function, _OLDER_NAMES.get(function, function)):
        found = getattr(nvml, name, None)
        if found is None:
            continue
        try:
            return found(*arguments)
        except getattr(nvml, "NVMLError", ()) as error:
            if getattr(error, "value", None) == _FUNCTION_NOT_FOUND and name == function:
                continue
            raise translated(error, name, gpu) from error
        except Exception as error:
            raise odd(nvml, error, name, gpu) from error
    raise absent(nvml, function, gpu)
