"""Recognise the units of a foreign file by what they imply.

CSV files rarely say their units. Two facts catch a slip of 1000 in either column: a GPU under
load draws between GPU_POWER_W (an idle laptop part to a future rack part), and a pass of one
stage takes between PASS_S. A slip that both bear cannot be seen.
"""

from dataclasses import dataclass

GPU_POWER_W = (20.0, 1500.0)
PASS_S = (1e-5, 10.0)
TIME_UNITS_S = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
ENERGY_UNITS_J = {"mJ": 1e-3, "J": 1.0, "uJ": 1e-6}


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to read a pass: its two numbers in these units, on ``tp`` GPUs."""

    time: float
    energy: float
    time_unit: str
    energy_unit: str
    tp: int

    @property
    def time_s(self) -> float:
        """Seconds of one pass."""
        return self.time * TIME_UNITS_S[self.time_unit]

    @property
    def gpu_power_w(self) -> float:
        """Mean watts per GPU."""
        return self.energy * ENERGY_UNITS_J[self.energy_unit] / self.time_s / self.tp

    @property
    def plausible(self) -> bool:
        """Whether a GPU could have done this."""
        return (
            GPU_POWER_W[0] <= self.gpu_power_w <= GPU_POWER_W[1]
            and PASS_S[0] <= self.time_s <= PASS_S[1]
        )

    def __str__(self) -> str:
        return (
            f"{self.time_unit} and {self.energy_unit}: {self.time_s * 1e3:.3g} ms a pass at "
            f"{self.gpu_power_w:.3g} W per GPU"
        )


def plausible_readings(time: float, energy: float, tp: int) -> list[Reading]:
    """Every pair of units in which a pass's numbers make sense."""
    readings = [
        Reading(time, energy, time_unit, energy_unit, tp)
        for time_unit in TIME_UNITS_S
        for energy_unit in ENERGY_UNITS_J
    ]
    return [reading for reading in readings if reading.plausible]
