"""The all-reduces of a pass on GPUs that are not there, from a device file.

One GPU is enough to measure a shard; what it cannot show is the shards' exchange. The torch
backend adds this to its times and says so in the table.
"""

from dataclasses import dataclass

import numpy as np

from beamprof.devices.allreduce import allreduce_us
from beamprof.devices.device import Device
from beamprof.devices.power import waiting_w
from beamprof.models.shape import StageShape

PER_LAYER = 2  # after the output projection of attention, and after the MLP


@dataclass(frozen=True, slots=True)
class ModelledAllReduce:
    """All all-reduces of one pass of ``stage`` on ``device``."""

    device: Device
    stage: StageShape

    @property
    def name(self) -> str:
        """Where the numbers come from, as it stands in a table's metadata."""
        return f"device file {self.device.name}"

    def latency_ms(self, tokens: int) -> float:
        """Time that they add to a pass of ``tokens`` new tokens; links do not follow the clock."""
        one_us = allreduce_us(self.device, self.stage, tokens, self.stage.tp)
        return one_us * PER_LAYER * self.stage.layers / 1e3

    def power_w(self, clock_mhz: float) -> float:
        """Power of one GPU meanwhile: waiting, and its links; SMs and memory hardly work."""
        clocks_mhz = np.array([clock_mhz], dtype=np.float64)
        return float(waiting_w(self.device, clocks_mhz)[0]) + self.device.power.link_w
