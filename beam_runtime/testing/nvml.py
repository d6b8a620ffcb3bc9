"""A stand-in for the module pynvml, with GPUs in memory and faults on demand.

It answers the functions that beam_runtime.clocks.nvml calls, in NVML's own units and
error codes; a test holds its names and signatures against the real module.
"""

# ruff: noqa: D102, N802, N815, A002 - NVML's names, described by NVML

from collections.abc import Callable
from dataclasses import dataclass, field
from zlib import crc32

_C_UNSIGNED = (1 << 32) - 1


class FakeNvmlError(Exception):
    """Like pynvml.NVMLError: ``value`` is the code."""

    def __init__(self, value: int) -> None:
        super().__init__(f"NVML error {value}")
        self.value = value


@dataclass(slots=True, eq=False)
class FakeGpu:
    """One GPU's state, in NVML's units (milliwatts, millijoules).

    ``obeys`` False: locks are accepted and not applied. ``sm_clock_mhz`` is what it runs at; by
    default its highest clock.
    """

    uuid: str
    name: str = "NVIDIA A100-SXM4-80GB"
    clocks_mhz: tuple[int, ...] = tuple(range(1410, 209, -15))
    memory_clocks_mhz: tuple[int, ...] = (1593, 1215)
    sm_clock_mhz: int = 0
    lock_mhz: int | None = None
    obeys: bool = True
    reasons: int = 0
    energy_mj: int = 0
    power_mw: int = 90_000
    temperature_c: int = 45
    pci_bus_id: str = ""
    power_limit_mw: int = 400_000
    persistence: int = 1
    mig: int = 0
    processes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self.sm_clock_mhz = self.sm_clock_mhz or max(self.clocks_mhz, default=0)
        # No two GPUs share an address, and one keeps its own in whatever list it stands.
        self.pci_bus_id = self.pci_bus_id or f"0000F000:{crc32(self.uuid.encode()) % 256:02X}:00.0"


@dataclass(frozen=True, slots=True)
class FakePciInfo:
    """As much of nvmlPciInfo_t as is asked for."""

    busId: str


@dataclass(frozen=True, slots=True)
class FakeProcess:
    """As much of nvmlProcessInfo_t as is asked for."""

    pid: int


@dataclass(slots=True)
class _Fault:
    code: int
    times: float
    gpu: int | None


@dataclass(slots=True)
class FakeNvml:
    """The module. ``fail`` arms a fault; ``calls`` lists the functions called.

    ``on_energy`` runs before each read of an energy counter, to let it tick, jump or stall.
    """

    gpus: list[FakeGpu] = field(default_factory=lambda: [FakeGpu("GPU-0")])
    calls: list[str] = field(default_factory=list)
    initialised: bool = False
    _faults: dict[str, list[_Fault]] = field(default_factory=dict)
    on_energy: Callable[[FakeGpu], None] | None = None

    NVMLError = FakeNvmlError
    NVML_CLOCK_SM = 1
    NVML_TEMPERATURE_GPU = 0

    @property
    def locked(self) -> list[int | None]:
        """Each GPU's lock."""
        return [gpu.lock_mhz for gpu in self.gpus]

    def fail(
        self, function: str, code: int, *, times: float = float("inf"), gpu: int | None = None
    ) -> None:
        """Let ``function`` raise ``code``, so many times, for one GPU or for all."""
        self._faults.setdefault(function, []).append(_Fault(code, times, gpu))

    def nvmlInit(self) -> None:
        self._called("nvmlInit")
        self.initialised = True

    def nvmlShutdown(self) -> None:
        self._called("nvmlShutdown")
        self.initialised = False

    def nvmlSystemGetDriverVersion(self) -> str:
        self._called("nvmlSystemGetDriverVersion")
        return "580.159.03"

    def nvmlDeviceGetCount(self) -> int:
        self._called("nvmlDeviceGetCount")
        return len(self.gpus)

    def nvmlDeviceGetHandleByPciBusId(self, pciBusId: str) -> FakeGpu:
        self._called("nvmlDeviceGetHandleByPciBusId")
        for gpu in self.gpus:
            if gpu.pci_bus_id.lower().lstrip("0") == pciBusId.lower().lstrip("0"):
                return gpu
        raise FakeNvmlError(6)

    def nvmlDeviceGetPciInfo(self, handle: FakeGpu) -> FakePciInfo:
        self._called("nvmlDeviceGetPciInfo", handle)
        return FakePciInfo(handle.pci_bus_id)

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: FakeGpu) -> int:
        self._called("nvmlDeviceGetEnforcedPowerLimit", handle)
        return handle.power_limit_mw

    def nvmlDeviceGetPersistenceMode(self, handle: FakeGpu) -> int:
        self._called("nvmlDeviceGetPersistenceMode", handle)
        return handle.persistence

    def nvmlDeviceGetMigMode(self, device: FakeGpu) -> list[int]:
        self._called("nvmlDeviceGetMigMode", device)
        return [device.mig, device.mig]

    def nvmlDeviceGetComputeRunningProcesses(self, handle: FakeGpu) -> list[FakeProcess]:
        self._called("nvmlDeviceGetComputeRunningProcesses", handle)
        return [FakeProcess(pid) for pid in handle.processes]

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        self._called("nvmlDeviceGetHandleByIndex")
        index &= _C_UNSIGNED  # as ctypes does
        if index >= len(self.gpus):
            raise FakeNvmlError(2)
        return self.gpus[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> FakeGpu:
        self._called("nvmlDeviceGetHandleByUUID")
        for gpu in self.gpus:
            if gpu.uuid == uuid:
                return gpu
        raise FakeNvmlError(6)

    def nvmlDeviceGetUUID(self, handle: FakeGpu) -> str:
        self._called("nvmlDeviceGetUUID", handle)
        return handle.uuid

    def nvmlDeviceGetIndex(self, handle: FakeGpu) -> int:
        self._called("nvmlDeviceGetIndex", handle)
        return self.gpus.index(handle)

    def nvmlDeviceGetName(self, handle: FakeGpu) -> str:
        self._called("nvmlDeviceGetName", handle)
        return handle.name

    def nvmlDeviceGetSupportedMemoryClocks(self, handle: FakeGpu) -> list[int]:
        self._called("nvmlDeviceGetSupportedMemoryClocks", handle)
        return list(handle.memory_clocks_mhz)

    def nvmlDeviceGetSupportedGraphicsClocks(
        self,
        handle: FakeGpu,
        memoryClockMHz: int,
    ) -> list[int]:
        self._called("nvmlDeviceGetSupportedGraphicsClocks", handle)
        if memoryClockMHz not in handle.memory_clocks_mhz:
            raise FakeNvmlError(6)
        # The lower memory clock offers only the lower half, as on real boards.
        whole = memoryClockMHz == max(handle.memory_clocks_mhz)
        return list(
            handle.clocks_mhz if whole else handle.clocks_mhz[len(handle.clocks_mhz) // 2 :]
        )

    def nvmlDeviceSetGpuLockedClocks(
        self,
        handle: FakeGpu,
        minGpuClockMHz: int,
        maxGpuClockMHz: int,
    ) -> None:
        self._called("nvmlDeviceSetGpuLockedClocks", handle)
        if minGpuClockMHz > maxGpuClockMHz:
            raise FakeNvmlError(2)
        handle.lock_mhz = maxGpuClockMHz
        if handle.obeys:
            handle.sm_clock_mhz = maxGpuClockMHz

    def nvmlDeviceResetGpuLockedClocks(self, handle: FakeGpu) -> None:
        self._called("nvmlDeviceResetGpuLockedClocks", handle)
        handle.lock_mhz = None
        handle.sm_clock_mhz = max(handle.clocks_mhz, default=0)

    def nvmlDeviceGetClockInfo(self, handle: FakeGpu, type: int) -> int:
        self._called("nvmlDeviceGetClockInfo", handle)
        if type != self.NVML_CLOCK_SM:
            raise FakeNvmlError(2)
        return handle.sm_clock_mhz

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: FakeGpu) -> int:
        self._called("nvmlDeviceGetCurrentClocksEventReasons", handle)
        return handle.reasons

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: FakeGpu) -> int:
        self._called("nvmlDeviceGetTotalEnergyConsumption", handle)
        if self.on_energy is not None:
            self.on_energy(handle)
        return handle.energy_mj

    def nvmlDeviceGetPowerUsage(self, handle: FakeGpu) -> int:
        self._called("nvmlDeviceGetPowerUsage", handle)
        return handle.power_mw

    def nvmlDeviceGetTemperature(self, handle: FakeGpu, sensor: int) -> int:
        self._called("nvmlDeviceGetTemperature", handle)
        if sensor != self.NVML_TEMPERATURE_GPU:
            raise FakeNvmlError(2)
        return handle.temperature_c

    def _called(self, function: str, handle: FakeGpu | None = None) -> None:
        self.calls.append(function)
        at = self.gpus.index(handle) if handle is not None else None
        for fault in self._faults.get(function, ()):
            if fault.times > 0 and fault.gpu in (None, at):
                fault.times -= 1
                raise FakeNvmlError(fault.code)


def fake_gpus(number: int) -> list[FakeGpu]:
    """So many equal A100s, at one PCI address after the other."""
    return [
        FakeGpu(f"GPU-{at}", pci_bus_id=f"00000000:{0x10 + at:02X}:00.0") for at in range(number)
    ]
