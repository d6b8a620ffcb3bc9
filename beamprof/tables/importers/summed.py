"""Rows of a table whose passes are sums of measured operators.

Operators were measured at one clock, the highest: there a pass is their sum, imported. Along the
clock, and in power, it follows the device file, modelled.
"""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from beam_runtime.table.schema import RowKind
from beam_runtime.types import Source, StepShape
from beamprof.devices.device import Device
from beamprof.devices.forward import forward, pass_ms, utilisation
from beamprof.devices.gemm import Array
from beamprof.devices.power import running_w
from beamprof.models.shape import ModelShape, StageShape
from beamprof.tables.importers.idle_rows import with_idle_rows


class Summed(Protocol):
    """Operators of one system, for one stage."""

    @property
    def top(self) -> Array:
        """The highest clock, MHz (1,)."""
        ...

    def pass_us(self, step: StepShape) -> tuple[float, bool]:
        """A pass at the highest clock, and whether only measured operators are in it."""
        ...


def summed_table(
    operators: Summed, device: Device, model: ModelShape, stage: StageShape,
    steps: Iterable[StepShape],
) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:  # fmt: skip
    """Columns and metadata of such a table; its importer adds where the operators came from."""
    clocks = sorted({*device.clocks.profile_mhz, device.clocks.max_mhz})
    rows = [row for step in steps for row in pass_rows(operators, device, stage, step, clocks)]
    metadata = {
        "model": model.name,
        "model_shape": model.to_json(),
        "precision": str(model.precision),
        **stage.metadata,
        "dtype": model.dtype,
        "device": device.name,
        "device_clocks_mhz": json.dumps(list(device.clocks.supported_mhz)),
        "accuracy": f"sum of measured operators; device file: {device.accuracy}",
        "engine": "vllm",
        "energy_source": "modelled",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return with_idle_rows(columns, device, stage.tp), metadata


def pass_rows(
    operators: Summed, device: Device, stage: StageShape, step: StepShape, clocks: list[int]
) -> list[dict[str, object]]:
    """One step at every clock: summed at the highest, by the device file's law below it."""
    asked = np.array(clocks, dtype=np.float64)
    law = forward(device, stage, step, asked)
    top_us, near = operators.pass_us(step)
    # Operators were measured for moments; under the power limit a pass that goes on is slower.
    scale = top_us / 1e3 / float(pass_ms(device, stage, step, operators.top)[0])
    latency_ms = law.latency_ms * scale
    use = utilisation(device, stage, step, law.clock_reached_mhz, latency_ms)
    power_w = np.minimum(running_w(device, law.clock_reached_mhz, use), device.power.cap_w)
    rows: list[dict[str, object]] = []
    for i, clock in enumerate(clocks):
        imported = near and clock == clocks[-1]
        rows.append({
            "kind": str(RowKind.FORWARD),
            "clock_mhz": clock,
            "prefill_tokens": step.prefill_tokens,
            "prefill_context_tokens": step.prefill_context_tokens,
            "decode_requests": step.decode_requests,
            "decode_context_tokens": step.decode_context_tokens,
            "latency_ms": float(latency_ms[i]),
            "energy_j": float(latency_ms[i] / 1e3 * power_w[i] * stage.tp),
            "clock_reached_mhz": float(law.clock_reached_mhz[i]),
            "passes": 1,
            "source": str(Source.IMPORTED if imported else Source.MODELLED),
        })  # fmt: skip
    return rows
