"""The modelled backend: every cell computed from a device file and the model's shape.

Needs no GPU and has no noise; its worth is its error against measured tables, which
benchmarks/modelled.py states. See beamprof.devices for the physics.
"""

import json
from collections.abc import Mapping

import numpy as np

from beam_runtime.clocks.base import POWER_CAP
from beam_runtime.table.schema import RowKind
from beam_runtime.types import Source, StepShape
from beamprof import version
from beamprof.backends.base import Measurement
from beamprof.backends.cell import Cell
from beamprof.devices.assumed import assumed
from beamprof.devices.device import Device
from beamprof.devices.forward import Forward, forward
from beamprof.devices.power import waiting_w
from beamprof.errors import BackendError
from beamprof.models.shape import ModelShape, StageShape

IDLE_WINDOW_MS = 1000.0
SIGNIFICANT_DIGITS = 7  # rows come out the same on machines whose last bits differ
SECONDS_PER_CELL = 0.001


class ModelledBackend:
    """Measures nothing, computes everything. ``model`` names what ``stage`` is a shard of."""

    name = "modelled"

    def __init__(self, model: ModelShape, stage: StageShape, device: Device) -> None:
        self.model = model
        self.stage = stage
        self.device = device
        self._curves: dict[StepShape, Forward] = {}  # a shape's pass at every supported clock

    def open(self) -> Mapping[str, str]:
        """Metadata only: there is nothing to take."""
        device = self.device
        together = self.stage.tp * self.stage.dp
        return {
            "device": device.name,
            "device_clocks_mhz": json.dumps(list(device.clocks.supported_mhz)),
            "gpu_name": "",
            "driver": "",
            "accuracy": "; ".join(filter(None, (device.accuracy, assumed(self.stage, device)))),
            "engine": "modelled",
            "engine_version": version.__version__,
            "energy_source": "modelled",
            "allreduce": f"device file {device.name}" if together > 1 else "none (tp 1)",
        }

    def run(self, cell: Cell) -> Measurement:
        """Compute one cell; a clock of 0 (left as it is) means the device's highest.

        Raises:
            ClockUnavailableError: a clock that the device does not offer.
            BackendError: a forward pass without tokens.
        """
        clock_mhz = cell.clock_mhz or self.device.clocks.max_mhz
        self.device.check_clocks([clock_mhz])
        if cell.kind is RowKind.IDLE:
            idle_w = float(waiting_w(self.device, np.array([clock_mhz]))[0]) * self.stage.tp
            return Measurement(
                latency_ms=IDLE_WINDOW_MS,
                energy_j=_rounded(idle_w * IDLE_WINDOW_MS / 1e3),
                source=Source.MODELLED,
                clock_reached_mhz=float(clock_mhz),
            )
        if cell.shape.tokens == 0:
            raise BackendError(
                "a forward pass needs at least one new token",
                cause=f"found prefill_tokens = 0 and decode_requests = 0 at {clock_mhz} MHz",
            )
        curve = self._curve(cell.shape)
        at = self.device.clocks.supported_mhz.index(clock_mhz)
        reached_mhz = _rounded(float(curve.clock_reached_mhz[at]))
        return Measurement(
            latency_ms=_rounded(float(curve.latency_ms[at])),
            energy_j=_rounded(float(curve.energy_j[at])),
            source=Source.MODELLED,
            clock_reached_mhz=reached_mhz,
            throttle=POWER_CAP if reached_mhz < clock_mhz else "",
        )

    def _curve(self, step: StepShape) -> Forward:
        """The pass at every supported clock, computed once: a sweep asks for it clock by clock."""
        if step not in self._curves:
            clocks_mhz = np.array(self.device.clocks.supported_mhz, dtype=np.float64)
            self._curves[step] = forward(self.device, self.stage, step, clocks_mhz)
        return self._curves[step]

    def estimate_s(self, cell: Cell) -> float:
        """Computing is all there is to wait for."""
        del cell
        return SECONDS_PER_CELL

    def close(self) -> None:
        """Nothing was taken."""


def _rounded(value: float) -> float:
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
