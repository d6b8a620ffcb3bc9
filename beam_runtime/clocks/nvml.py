"""NVIDIA GPUs through NVML: clocks, energy counter, temperature, names.

The only file that imports pynvml (the module of the package nvidia-ml-py), and the only
one that knows NVML's milliwatts, millijoules and error codes. Reading needs no rights;
locking needs root or CAP_SYS_ADMIN. It does not decide when to lock, and does not know
who else may have locked a GPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from beam_runtime.clocks.base import POWER_CAP, ClockReading, all_or_none, check_supported
from beam_runtime.clocks.nvml_errors import (
    RETRIED_CODES,
    UNINITIALIZED,
    translated,
)
from beam_runtime.errors import ClockError, ClockUnavailableError

# The A100's energy counter ticks every 100 ms (design/table.md); newer boards tick faster.
COUNTER_TICK_S = 0.1

# Bits of nvmlClocksEventReasons in nvml.h.
REASONS: dict[int, str] = {
    0x001: "gpu idle",
    0x002: "clock setting",
    0x004: POWER_CAP,
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "thermal, software",
    0x040: "thermal, hardware",
    0x080: "power brake",
    0x100: "display clock",
}


@dataclass(frozen=True, slots=True)
class GpuIdentity:
    """What the driver calls a GPU."""

    index: int
    uuid: str
    name: str


class NvmlGpus:
    """A replica's GPUs. A ClockActuator, and an EnergyCounter (beam_runtime.clocks.energy).

    Args:
        gpus: NVML indices or UUIDs ("GPU-..."); NVML's order ignores CUDA_VISIBLE_DEVICES,
            so who knows a UUID should give it.
        nvml: a module like pynvml; imported when None.

    Raises:
        ClockUnavailableError: no pynvml, no driver, or no such GPU.
    """

    def __init__(self, gpus: Sequence[int | str], *, nvml: Any = None) -> None:
        if not gpus:
            raise ClockUnavailableError("no GPU was named", hint="name one by index or UUID")
        self._nvml = nvml if nvml is not None else _import_pynvml()
        self._handles: list[Any] = []
        self._uuids: tuple[str, ...] = ()
        self._offered_mhz: tuple[int, ...] | None = None
        self._touched: set[int] = set()  # positions of GPUs that may be locked by us
        self._open = False
        self._start()
        try:
            self._handles = [self._handle_of(gpu) for gpu in gpus]
            self._uuids = tuple(self._ask("nvmlDeviceGetUUID", at) for at in range(len(gpus)))
        except ClockError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave NVML; locks stay as they are. May be called twice."""
        if self._open:
            self._open = False
            self._nvml.nvmlShutdown()

    # Clocks

    @property
    def gpus(self) -> tuple[str, ...]:
        """UUIDs, in the order given."""
        return self._uuids

    def supported_clocks_mhz(self) -> tuple[int, ...]:
        """SM clocks that all GPUs offer at their highest memory clock, ascending."""
        if self._offered_mhz is None:
            offered = []
            for at in range(len(self._uuids)):
                memory = self._ask("nvmlDeviceGetSupportedMemoryClocks", at)
                graphics = self._ask("nvmlDeviceGetSupportedGraphicsClocks", at, max(memory))
                offered.append(set(graphics))
            self._offered_mhz = tuple(sorted(set.intersection(*offered)))
        return self._offered_mhz

    def set(self, clock_mhz: int) -> None:
        """Lock every GPU's SM clock; if one refuses, none stays locked (see ClockActuator)."""
        check_supported(clock_mhz, self.supported_clocks_mhz())
        with all_or_none(self.release):
            for at in range(len(self._uuids)):
                # Noted first: a call that fails may have taken effect.
                self._touched.add(at)
                self._ask("nvmlDeviceSetGpuLockedClocks", at, clock_mhz, clock_mhz)

    def read_back(self) -> tuple[ClockReading, ...]:
        """SM clock and clock-event reasons of each GPU."""
        return tuple(
            ClockReading(
                uuid,
                int(self._ask("nvmlDeviceGetClockInfo", at, self._nvml.NVML_CLOCK_SM)),
                _reasons(self._ask("nvmlDeviceGetCurrentClocksEventReasons", at)),
            )
            for at, uuid in enumerate(self._uuids)
        )

    def release(self, *, orphans: bool = False) -> None:
        """Undo our locks, or with ``orphans`` any lock on these GPUs (see ClockActuator)."""
        failures = []
        for at in range(len(self._uuids)) if orphans else sorted(self._touched):
            try:
                self._ask("nvmlDeviceResetGpuLockedClocks", at)
                self._touched.discard(at)
            except ClockError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    # Energy, power, temperature

    tick_s = COUNTER_TICK_S

    def read_energy_j(self) -> tuple[float, ...]:
        """Each GPU's energy since the driver was loaded, from its own counter (Volta or newer)."""
        return tuple(
            self._ask("nvmlDeviceGetTotalEnergyConsumption", at) / 1000.0
            for at in range(len(self._uuids))
        )

    def read_power_w(self) -> tuple[float, ...]:
        """Each GPU's power now; averaged by the driver over up to a second on some boards."""
        return tuple(
            self._ask("nvmlDeviceGetPowerUsage", at) / 1000.0 for at in range(len(self._uuids))
        )

    def read_temperature_c(self) -> tuple[float, ...]:
        """Each GPU's core temperature."""
        return tuple(
            float(self._ask("nvmlDeviceGetTemperature", at, self._nvml.NVML_TEMPERATURE_GPU))
            for at in range(len(self._uuids))
        )

    # Names

    def identities(self) -> tuple[GpuIdentity, ...]:
        """Index, UUID and product name of each GPU."""
        return tuple(
            GpuIdentity(
                int(self._ask("nvmlDeviceGetIndex", at)), uuid, self._ask("nvmlDeviceGetName", at)
            )
            for at, uuid in enumerate(self._uuids)
        )

    def models(self) -> tuple[str, ...]:
        """Product names."""
        return tuple(gpu.name for gpu in self.identities())

    def driver_version(self) -> str:
        """The NVIDIA driver's version."""
        return str(self._ask("nvmlSystemGetDriverVersion", None))

    # Asking NVML

    def _start(self) -> None:
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            raise translated(error, "nvmlInit", None) from error
        self._open = True

    def _handle_of(self, gpu: int | str) -> Any:
        by_index = isinstance(gpu, int)
        name = "nvmlDeviceGetHandleByIndex" if by_index else "nvmlDeviceGetHandleByUUID"
        try:
            return getattr(self._nvml, name)(gpu)
        except self._nvml.NVMLError as error:
            raise translated(error, name, gpu) from error

    def _ask(self, function: str, at: int | None, *arguments: int) -> Any:
        """Call NVML for the GPU at a position; codes that pass by themselves get a second try."""
        for last_try in (False, True):
            try:
                handle = () if at is None else (self._handles[at],)
                return getattr(self._nvml, function)(*handle, *arguments)
            except self._nvml.NVMLError as error:
                if last_try or error.value not in RETRIED_CODES:
                    raise translated(error, function, self._named(at)) from error
                if error.value == UNINITIALIZED:
                    self._restart()
        raise AssertionError("unreachable")  # the second round returns or raises

    def _restart(self) -> None:
        """After a driver reload NVML and its handles are stale; UUIDs are not."""
        self._start()
        self._handles = [self._handle_of(uuid) for uuid in self._uuids] or self._handles

    def _named(self, at: int | None) -> str | int | None:
        if at is None:
            return None
        return self._uuids[at] if self._uuids else at


def _reasons(bits: int) -> tuple[str, ...]:
    return tuple(text for bit, text in REASONS.items() if bits & bit)


def _import_pynvml() -> Any:
    try:
        import pynvml
    except ImportError as error:
        raise ClockUnavailableError(
            "GPU clocks and energy cannot be read here",
            cause=f"the Python module pynvml is missing: {error}",
            hint="pip install nvidia-ml-py",
        ) from error
    return pynvml
