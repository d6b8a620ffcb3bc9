"""Idle rows for files that hold none: what a waiting stage draws, by the device file.

They go into the table, marked as modelled, so that a replay, ``beam decide`` and a controller all
take the same watts.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beam_runtime.table.schema import RowKind
from beam_runtime.types import Source
from beamprof.devices.device import Device
from beamprof.devices.power import waiting_w


def with_idle_rows(
    columns: Mapping[str, NDArray[Any]], device: Device, tp: int
) -> dict[str, NDArray[Any]]:
    """The columns with one idle row more for each clock in them.

    Args:
        columns: of forward rows.
        device: whose GPUs wait, clocks locked.
        tp: how many of them a stage has.
    """
    clocks = np.unique(columns["clock_mhz"])
    none, second_ms = np.zeros(len(clocks), dtype=np.int64), np.full(len(clocks), 1e3)
    watts = tp * waiting_w(device, clocks.astype(np.float64))
    idle = {
        "kind": np.full(len(clocks), str(RowKind.IDLE)),
        "clock_mhz": clocks,
        "prefill_tokens": none,
        "prefill_context_tokens": none,
        "decode_requests": none,
        "decode_context_tokens": none,
        "latency_ms": second_ms,
        "energy_j": watts * second_ms / 1e3,
        "clock_reached_mhz": clocks.astype(np.float64),
        "passes": none + 1,
        "source": np.full(len(clocks), str(Source.MODELLED)),
    }
    return {name: np.concatenate([values, idle[name]]) for name, values in columns.items()}
