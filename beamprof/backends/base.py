"""The seam between a sweep and whatever runs its passes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from beam_runtime.types import Source
from beamprof.backends.cell import Cell


@dataclass(frozen=True, slots=True)
class Measurement:
    """One cell's numbers. ``None`` means: this backend cannot know it.

    An idle cell reports a window of one second: latency_ms = 1000, energy_j = mean power x 1 s.

    Attributes:
        latency_ms: median pass; latency_ci_ms: half-width of its 95 % interval.
        energy_j: per pass, summed over the stage's tp GPUs.
        clock_reached_mhz: mean SM clock during the passes.
        temperature_c: hottest GPU at the end; throttle: NVML's clock-event reasons as text.
        passes: how many passes stand behind the numbers.
    """

    latency_ms: float
    energy_j: float
    source: Source
    latency_ci_ms: float | None = None
    energy_ci_j: float | None = None
    clock_reached_mhz: float | None = None
    temperature_c: float | None = None
    throttle: str = ""
    passes: int = 1


class MeasureBackend(Protocol):
    """Open once, run many cells, close whatever happens."""

    name: str

    def open(self) -> Mapping[str, str]:
        """Take the device; return the table metadata that only the backend knows.

        Keys are those of beam_runtime.table.schema.METADATA_KEYS (device, device_clocks_mhz,
        gpu_name, driver, engine, engine_version, energy_source, allreduce, host_gap_ms,
        stage_transfer_ms).

        Raises:
            BackendError: it cannot run here.
            ClockError: clocks cannot be controlled as asked.
        """
        ...

    def run(self, cell: Cell) -> Measurement:
        """Measure one cell, forward or idle. Raises BackendError on a cell it cannot run."""
        ...

    def estimate_s(self, cell: Cell) -> float:
        """Seconds that this cell is expected to take; used for plans and progress."""
        ...

    def close(self) -> None:
        """Give everything back: clocks released, memory freed. May be called twice."""
        ...


@runtime_checkable
class FollowingBackend(Protocol):
    """A backend of several processes, of which one decides and the others follow."""

    @property
    def follows(self) -> bool:
        """Whether this process only follows. Known once open."""
        ...

    def follow(self) -> None:
        """Run what the deciding process measures, until it closes."""
        ...
