"""What a stage's GPUs draw while they wait: one source for a replay's plant and its controller.

In this order: what somebody says; the table's idle rows; the device file's curve, which is of a
GPU with a context and its clock locked (an A100: 81 W at 510 MHz, 106 W at 1410); the share of
the lightest pass that beam_runtime takes where nothing is known.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from beam_runtime.table.idle_power import with_idle_power
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.schema import RowKind
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import Source, StepShape
from beamprof.devices.device import resolve_device
from beamprof.devices.power import waiting_w
from beamprof.errors import DeviceError, ReplayError


def with_waiting_power(
    cost: StepCost, table: PerfTable, gpu_w: float | None, say: Callable[[str], object]
) -> StepCost:
    """The costs with the power of a waiting stage, all its tp GPUs, at every served clock.

    Args:
        cost: of ``table``, at any clocks.
        table: its idle rows, device and tp are what counts.
        gpu_w: of one GPU at every clock, over all other sources; None = not said.
        say: told in words which source it was, and the watts of one GPU.

    Raises:
        ReplayError: ``gpu_w`` is more than such a GPU draws at its lightest work.
    """
    if gpu_w is not None:
        one_decode = StepShape(decode_requests=1)
        busy_w = float((cost.energy_j(one_decode) / cost.latency_ms(one_decode)).max()) * 1e3
        if table.tp * gpu_w > busy_w:
            raise ReplayError(
                f"{gpu_w:g} W per waiting GPU is more than one draws at work",
                cause=f"{busy_w / table.tp:.0f} W in a step of one decode at the highest clock",
                hint="--idle-power is of one GPU, not of a server",
            )
        say(f"{gpu_w:g} W per waiting GPU at every clock")
        return replace(cost, idle_power_w=np.full(len(cost.clocks_mhz), table.tp * gpu_w))
    if np.isfinite(cost.idle_power_w).all():
        modelled = (table.rows(RowKind.IDLE)["source"] == str(Source.MODELLED)).all()
        rows = "idle rows, modelled" if modelled else "idle rows"
        say(f"{_range(cost, table.tp)} per waiting GPU, by the table's {rows}")
        return cost
    try:
        device = resolve_device(table.device)
    except DeviceError:
        assumed = with_idle_power(cost, None, lambda text: None)
        say(f"{_range(assumed, table.tp)} per waiting GPU, assumed from the lightest pass")
        return assumed
    curve_w = table.tp * waiting_w(device, cost.clocks_mhz.astype(np.float64))
    known = replace(cost, idle_power_w=curve_w)
    say(f"{_range(known, table.tp)} per waiting GPU, by {device.name}'s device file")
    return known


def _range(cost: StepCost, tp: int) -> str:
    low, high = (f"{watts / tp:.0f}" for watts in cost.idle_power_w[[0, -1]])
    return f"{low} W" if low == high else f"{low} to {high} W"
