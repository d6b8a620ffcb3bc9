"""NVIDIA GPUs through NVML: clocks, energy counter, temperature, names.

The only file that imports pynvml (the module of the package nvidia-ml-py), and the only
one that knows NVML's milliwatts, millijoules and error codes. Reading needs no rights;
locking needs root or CAP_SYS_ADMIN. It does not decide when to lock, and does not know
who else may have locked a GPU.
"""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from beam_runtime.clocks.base import POWER_CAP, ClockReading, all_or_none, check_supported
from beam_runtime.clocks.gpu_identity import (
    GpuIdentity,
    is_pci_address,
    normal_pci_address,
    nvml_index,
)
from beam_runtime.clocks.nvml_call import call
from beam_runtime.clocks.nvml_errors import (
    RETRIED_CODES,
    UNINITIALIZED,
    absent,
    is_unsupported,
    odd,
    translated,
)
from beam_runtime.errors import ClockError, ClockUnavailableError

Found = TypeVar("Found")

# The A100's energy counter ticks every 100 ms (design/table.md); newer boards tick faster.
COUNTER_TICK_S = 0.1

_RESET = "nvmlDeviceResetGpuLockedClocks"
# No reading of NVML's has more than 64 bits.
_TOO_LARGE = 1 << 64

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


class NvmlGpus:
    """A replica's GPUs. A ClockActuator, and an EnergyCounter (beam_runtime.clocks.energy).

    Args:
        gpus: NVML indices, UUIDs ("GPU-...") or PCI addresses; NVML's order ignores
            CUDA_VISIBLE_DEVICES, so who knows a UUID should give it.
        nvml: a module like pynvml; imported when None.

    Raises:
        ClockUnavailableError: no pynvml, no driver, no such GPU, or one that is named twice.
    """

    def __init__(self, gpus: Sequence[int | str], *, nvml: Any = None) -> None:
        if not gpus:
            raise ClockUnavailableError("no GPU was named", hint="name one by index or UUID")
        self._nvml = _import_pynvml() if nvml is None else nvml
        self._handles: list[Any] = []
        self._uuids: tuple[str, ...] = ()
        self._offered_mhz: tuple[int, ...] | None = None
        self._touched: set[int] = set()  # positions of GPUs that may be locked by us
        self.moved: Callable[[], None] = lambda: None  # told after each GPU of a call
        self._open = False
        self._start()
        try:
            self._handles = [self._handle_of(gpu) for gpu in gpus]
            asked = (self._ask("nvmlDeviceGetUUID", at) for at in range(len(gpus)))
            self._uuids = tuple(map(_text, asked))
            _check_once(gpus, self._uuids)
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
                memory = self._clock_list("nvmlDeviceGetSupportedMemoryClocks", at)
                graphics = self._clock_list("nvmlDeviceGetSupportedGraphicsClocks", at, max(memory))
                offered.append(set(graphics))
            self._offered_mhz = tuple(sorted(set.intersection(*offered)))
        return self._offered_mhz

    def set(self, clock_mhz: int) -> None:
        """Lock every GPU's SM clock; if one refuses, none stays locked (see ClockActuator)."""
        check_supported(clock_mhz, self.supported_clocks_mhz())
        if getattr(self._nvml, _RESET, None) is None:  # what cannot be undone is not begun
            raise absent(self._nvml, _RESET, self._named(0))
        with all_or_none(self.release):
            for at in range(len(self._uuids)):
                # Noted first: a call that fails may have taken effect.
                self._touched.add(at)
                self._ask("nvmlDeviceSetGpuLockedClocks", at, clock_mhz, clock_mhz)
                self.moved()

    def read_back(self) -> tuple[ClockReading, ...]:
        """SM clock and clock-event reasons of each GPU; reasons None where it has none to tell."""
        readings = []
        for at, uuid in enumerate(self._uuids):
            clock_mhz = self._number("nvmlDeviceGetClockInfo", at, self._constant("CLOCK_SM"))
            bits = self._if_supported("nvmlDeviceGetCurrentClocksEventReasons", at)
            reasons = None if bits is None else _reasons(int(bits))
            readings.append(ClockReading(uuid, int(clock_mhz), reasons))
            self.moved()
        return tuple(readings)

    def release(self, *, orphans: bool = False) -> None:
        """Undo our locks, or with ``orphans`` any lock on these GPUs (see ClockActuator)."""
        failures = []
        for at in range(len(self._uuids)) if orphans else sorted(self._touched):
            try:
                self._ask(_RESET, at)
                self._touched.discard(at)
            except ClockError as error:
                failures.append(error)
            self.moved()
        if failures:
            raise failures[0]

    # Energy, power, temperature

    tick_s = COUNTER_TICK_S

    def read_energy_j(self) -> tuple[float, ...]:
        """Each GPU's energy since the driver was loaded, from its own counter (Volta or newer)."""
        function = "nvmlDeviceGetTotalEnergyConsumption"
        return tuple(self._number(function, at) / 1000.0 for at in self._all)

    def read_power_w(self) -> tuple[float | None, ...]:
        """Each GPU's power now; averaged by the driver over up to a second on some boards.

        None where the GPU does not tell.
        """
        return self._each_if_supported("nvmlDeviceGetPowerUsage", unit=1000.0)

    def read_temperature_c(self) -> tuple[float | None, ...]:
        """Each GPU's core temperature; None where it does not tell."""
        sensor = self._constant("TEMPERATURE_GPU")
        return self._each_if_supported("nvmlDeviceGetTemperature", sensor)

    def read_power_limit_w(self) -> tuple[float | None, ...]:
        """The power cap in force on each GPU; None where it does not tell."""
        return self._each_if_supported("nvmlDeviceGetEnforcedPowerLimit", unit=1000.0)

    def read_persistence(self) -> tuple[bool | None, ...]:
        """Whether the driver keeps each GPU initialised; None where it does not tell."""
        found = self._each_if_supported("nvmlDeviceGetPersistenceMode")
        return tuple(None if value is None else bool(value) for value in found)

    def read_mig(self) -> tuple[bool | None, ...]:
        """Whether each GPU is cut into slices; None where it cannot be."""
        return tuple(
            self._list_if_supported("nvmlDeviceGetMigMode", at, _is_mig) for at in self._all
        )

    def read_processes(self) -> tuple[tuple[int, ...] | None, ...]:
        """Pids that compute on each GPU, as the driver's own namespace counts them."""
        return tuple(
            self._list_if_supported("nvmlDeviceGetComputeRunningProcesses", at, _pids)
            for at in self._all
        )

    def _list_if_supported(
        self, function: str, at: int, read: Callable[[Any], Found]
    ) -> Found | None:
        """What ``read`` makes of the answer; None where there is none, or one that cannot be."""
        try:
            return read(self._ask(function, at))
        except (TypeError, ValueError, AttributeError, IndexError):
            return None
        except ClockError as error:
            if is_unsupported(error):
                return None
            raise

    @property
    def _all(self) -> range:
        return range(len(self._uuids))

    def read_clock_mhz(self) -> tuple[int | None, ...]:
        """Each GPU's SM clock now; None where it does not tell, as a MIG slice."""
        found = self._each_if_supported("nvmlDeviceGetClockInfo", self._constant("CLOCK_SM"))
        return tuple(None if clock is None else int(clock) for clock in found)

    def read_reasons(self) -> tuple[tuple[str, ...] | None, ...]:
        """What holds each GPU's clock back; None where it does not tell."""
        found = self._each_if_supported("nvmlDeviceGetCurrentClocksEventReasons")
        return tuple(None if bits is None else _reasons(int(bits)) for bits in found)

    def _each_if_supported(
        self, function: str, *arguments: int, unit: float = 1.0
    ) -> tuple[float | None, ...]:
        found = (self._if_supported(function, at, *arguments) for at in self._all)
        return tuple(None if value is None else value / unit for value in found)

    # Names

    def identities(self) -> tuple[GpuIdentity, ...]:
        """Index, UUID, product name and PCI address of each GPU."""
        return tuple(
            GpuIdentity(
                int(self._number("nvmlDeviceGetIndex", at)),
                uuid,
                _text(self._ask("nvmlDeviceGetName", at)),
                self._pci_address(at),
            )
            for at, uuid in enumerate(self._uuids)
        )

    def count(self) -> int:
        """How many GPUs NVML shows to this process; 0 where it does not tell."""
        try:
            return int(self._ask("nvmlDeviceGetCount", None))
        except (ClockError, TypeError, ValueError):
            return 0

    def models(self) -> tuple[str, ...]:
        """Product names."""
        return tuple(gpu.name for gpu in self.identities())

    def driver_version(self) -> str:
        """The NVIDIA driver's version."""
        return _text(self._ask("nvmlSystemGetDriverVersion", None))

    def _pci_address(self, at: int) -> str:
        try:
            return normal_pci_address(_text(self._ask("nvmlDeviceGetPciInfo", at).busId))
        except (ClockError, AttributeError, ValueError):
            return ""

    # Asking NVML

    def _start(self) -> None:
        call(self._nvml, "nvmlInit", None)
        self._open = True

    def _handle_of(self, gpu: int | str) -> Any:
        if not isinstance(gpu, str):
            return call(self._nvml, "nvmlDeviceGetHandleByIndex", gpu, nvml_index(gpu))
        by_place = is_pci_address(gpu)
        name = "nvmlDeviceGetHandleByPciBusId" if by_place else "nvmlDeviceGetHandleByUUID"
        return call(self._nvml, name, gpu, gpu)

    def _ask(self, function: str, at: int | None, *arguments: int) -> Any:
        """Call NVML for the GPU at a position; codes that pass by themselves get a second try."""
        for last_try in (False, True):
            handle = () if at is None else (self._handles[at],)
            try:
                return call(self._nvml, function, self._named(at), *handle, *arguments)
            except ClockError as error:
                code = getattr(error.__cause__, "value", None)
                if last_try or code not in RETRIED_CODES:
                    raise
                if code == UNINITIALIZED:
                    self._restart()
        raise AssertionError("unreachable")  # the second round returns or raises

    def _number(self, function: str, at: int, *arguments: int) -> float:
        """A finite number. Raises ClockError for anything else."""
        found = self._ask(function, at, *arguments)
        if type(found) in (int, float) and abs(found) < _TOO_LARGE:  # no NaN is
            return float(found)
        raise odd(self._nvml, ValueError(f"it answers {found!r:.40}"), function, self._named(at))

    def _if_supported(self, function: str, at: int, *arguments: int) -> float | None:
        """The number, or None where this GPU, driver or binding has none."""
        try:
            return self._number(function, at, *arguments)
        except ClockError as error:
            if is_unsupported(error):
                return None
            raise

    def _clock_list(self, function: str, at: int, *arguments: int) -> list[int]:
        """Clocks, at least one. Raises ClockError."""
        found = self._ask(function, at, *arguments)
        try:
            clocks = [int(clock) for clock in found]
        except (TypeError, ValueError, OverflowError) as error:
            raise odd(self._nvml, error, function, self._named(at)) from error
        if not clocks:
            raise ClockUnavailableError(
                f"GPU {self._named(at)} lists no clocks",
                cause=f"{function} returns none",
                hint="a virtual GPU or a MIG slice cannot be locked; use a whole one, or "
                "--clocks current",
            )
        return clocks

    def _constant(self, name: str) -> int:
        # NVML's own numbers (nvml.h), for a binding that lacks their names.
        return int(getattr(self._nvml, f"NVML_{name}", {"CLOCK_SM": 1, "TEMPERATURE_GPU": 0}[name]))

    def _restart(self) -> None:
        """After a driver reload NVML and its handles are stale; UUIDs are not."""
        self._start()
        self._handles = [self._handle_of(uuid) for uuid in self._uuids] or self._handles

    def _named(self, at: int | None) -> str | int | None:
        if at is None:
            return None
        return self._uuids[at] if self._uuids else at


def gpu_count(nvml: Any = None) -> int:
    """How many GPUs NVML counts here, sick ones included.

    Raises:
        ClockUnavailableError: no pynvml or no driver.
        ClockError: it does not tell.
    """
    nvml = nvml if nvml is not None else _import_pynvml()
    try:
        nvml.nvmlInit()
        try:
            return int(nvml.nvmlDeviceGetCount())
        finally:
            nvml.nvmlShutdown()
    except getattr(nvml, "NVMLError", ()) as error:
        raise translated(error, "nvmlInit", None) from error
    except Exception as error:
        raise odd(nvml, error, "nvmlDeviceGetCount", None) from error


def _check_once(gpus: Sequence[int | str], uuids: Sequence[str]) -> None:
    """Raises ClockUnavailableError where a GPU is named twice: its energy would count twice."""
    for at, uuid in enumerate(uuids):
        if uuid in uuids[:at]:
            names = [str(gpu) for gpu, one in zip(gpus, uuids, strict=True) if one == uuid]
            raise ClockUnavailableError(
                f"GPU {uuid} is named twice",
                cause=f"as {' and as '.join(names)}",
                hint="name each of the replica's GPUs once; nvidia-smi -L lists them",
            )


def _is_mig(modes: Any) -> bool:
    return bool(modes[0])


def _pids(processes: Any) -> tuple[int, ...]:
    return tuple(int(process.pid) for process in processes)


def _text(value: Any) -> str:
    """Old bindings return bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


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
