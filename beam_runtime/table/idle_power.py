"""What a stage draws while it waits, for tables that did not measure it.

A search that ignores idle power picks the wrong number of microbatches, so something has to
be taken where a table is silent. An A100 that waits with its clock locked draws 81 W at 510 MHz
and 109 W at 1410 MHz, which is 0.47 to 0.33 of what it draws in its lightest pass (measured on
one board: ../shared/data/a100-dvfs-spec, measured-a100). What other GPUs draw it does not know.
"""

import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import StepShape

# Idle power over that of the lightest pass at the same clock.
ASSUMED_SHARE = 0.4

_LOG = logging.getLogger("beam_runtime")


def with_idle_power(
    cost: StepCost, idle_power_w: float | None, say: Callable[[str], object] = _LOG.warning
) -> StepCost:
    """The costs with a waiting stage's power at every clock.

    Args:
        cost: step costs; returned as they are where they know it.
        idle_power_w: a waiting stage's GPUs together, where somebody knows it.
        say: told of what had to be assumed, and of the ways out.
    """
    if np.all(np.isfinite(cost.idle_power_w)):
        return cost
    if idle_power_w is not None:
        return replace(cost, idle_power_w=np.full(len(cost.clocks_mhz), float(idle_power_w)))
    lightest = StepShape(decode_requests=1)
    assumed_w = ASSUMED_SHARE * cost.energy_j(lightest) / cost.latency_ms(lightest) * 1e3
    say(
        f"the table has no idle rows: a waiting stage is taken to draw {assumed_w[0]:.0f} to "
        f"{assumed_w[-1]:.0f} W, {ASSUMED_SHARE} of its lightest pass (an A100 was measured at "
        "0.33 to 0.47); profile idle rows, or say what it draws (idle_power_w, --idle-power)"
    )
    return replace(cost, idle_power_w=assumed_w)
