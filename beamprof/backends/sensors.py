"""What a measuring backend can read and set on a device: energy, clock, temperature.

GPUs through NVML; a machine's processors through RAPL. Where no counter can be read, a stated
power stands in for it and is marked as assumed.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beam_runtime.clocks.base import NOT_THROTTLING, ClockActuator
from beam_runtime.clocks.energy import EnergyCounter
from beam_runtime.clocks.guarded import GuardedActuator
from beam_runtime.clocks.nvml import NvmlGpus
from beam_runtime.clocks.spec import ActuatorKind, ActuatorSpec
from beam_runtime.errors import ClockError
from beamprof.backends.pass_timing import Gauge, GaugeReading
from beamprof.backends.rapl import RaplCounter
from beamprof.errors import BackendError


@dataclass(frozen=True, slots=True)
class Sensors:
    """One stage's sensors.

    Attributes:
        counter: None where power is assumed.
        assumed_power_w: of each device, where there is no counter.
        gauge: clock, temperature, throttle reasons; all None on a CPU.
        actuator: sets clocks, on record and guarded; None on a CPU.
        metadata: what they say of the device, see beam_runtime.table.schema.METADATA_KEYS.
    """

    counter: EnergyCounter | None
    assumed_power_w: float | None
    gauge: Gauge
    actuator: ClockActuator | None
    metadata: Mapping[str, str]

    @property
    def device(self) -> str:
        """The driver's name of it as a table has it, e.g. a100-sxm4-80gb."""
        name = self.metadata["gpu_name"] or "cpu"
        return name.removeprefix("NVIDIA ").lower().replace(" ", "-")


def cpu_sensors(assume_power_w: float | None, rapl_root: Path) -> Sensors:
    """RAPL where it can be read, else the stated power.

    Raises:
        BackendError: neither; the hint names --assume-power.
    """
    counter: EnergyCounter | None = None
    try:
        counter = RaplCounter(rapl_root)
    except BackendError:
        if assume_power_w is None:
            raise
    source = "rapl" if counter is not None else f"assumed {assume_power_w:g} W"
    return Sensors(
        counter=counter,
        assumed_power_w=None if counter is not None else assume_power_w,
        gauge=GaugeReading,
        actuator=None,
        metadata={
            "device_clocks_mhz": "[]",
            "gpu_name": "",
            "driver": "",
            "energy_source": source,
        },
    )


def gpu_sensors(uuids: Sequence[str], assume_power_w: float | None, nvml: Any = None) -> Sensors:
    """NVML's counter where the GPUs have one, else the stated power.

    Raises:
        ClockUnavailableError: NVML does not work here.
        BackendError: no counter and no stated power.
    """
    gpus = NvmlGpus(uuids, nvml=nvml)
    counter: EnergyCounter | None = gpus
    source = "nvml counter"
    try:
        gpus.read_energy_j()
    except ClockError as error:
        if assume_power_w is None:
            raise BackendError(
                "this GPU's energy cannot be measured",
                cause=error.cause,
                hint="use a whole GPU of Volta or newer, or state its power: --assume-power 300W",
            ) from error
        counter, source = None, f"assumed {assume_power_w:g} W"
    return Sensors(
        counter=counter,
        assumed_power_w=None if counter is not None else assume_power_w,
        gauge=lambda: read_gauge(gpus),
        # A guard is another process: it cannot reach a module that was handed over to this one.
        actuator=gpus
        if nvml is not None
        else GuardedActuator(gpus, ActuatorSpec(ActuatorKind.NVML, gpus.gpus)),
        metadata={
            "device_clocks_mhz": json.dumps(_clocks_mhz(gpus)),
            "gpu_name": gpus.identities()[0].name,
            "driver": gpus.driver_version(),
            "energy_source": source,
        },
    )


def read_gauge(gpus: NvmlGpus) -> GaugeReading:
    """Mean clock, the hottest GPU, and whatever holds any of them back; None where none tells.

    Raises:
        ClockError: a GPU failed, which is not the same as having no such sensor.
    """
    clocks_mhz = [clock for clock in gpus.read_clock_mhz() if clock is not None]
    temperatures_c = [degrees for degrees in gpus.read_temperature_c() if degrees is not None]
    reasons = [
        reason
        for one in gpus.read_reasons()
        for reason in one or ()
        if reason not in NOT_THROTTLING
    ]
    return GaugeReading(
        clock_mhz=sum(clocks_mhz) / len(clocks_mhz) if clocks_mhz else None,
        temperature_c=max(temperatures_c, default=None),
        throttle=tuple(dict.fromkeys(reasons)),
    )


def _clocks_mhz(gpus: NvmlGpus) -> list[int]:
    try:
        return list(gpus.supported_clocks_mhz())
    except ClockError:
        return []  # a virtual GPU does not list them; locking will say what is wrong
