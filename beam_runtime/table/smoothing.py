"""Step costs smoothed along the clock, before anybody chooses by them.

A measured table scatters from clock to clock (2.7 % on the published 70B table, 10 % at worst).
Whoever picks the cheapest of many noisy points picks what noise made cheap, and is neither as
fast nor as cheap as the table said (design/control.md, Margins). So each part of the cost becomes
a cubic: latency in 1 / f, never rising with the clock, energy in f. What was taken out is
shown by `beam table check` as noise.
"""

from dataclasses import replace

import numpy as np

from beam_runtime.table.step_cost import FloatArray, StepCost

# A cubic through fewer clocks than this would follow their noise.
LEAST_CLOCKS = 7


def smoothed(cost: StepCost) -> StepCost:
    """The same costs without their scatter; as they are where few clocks are served."""
    if len(cost.clocks_mhz) < LEAST_CLOCKS:
        return cost
    ghz = cost.clocks_mhz / 1e3
    latency_ms = _cubic(1.0 / ghz, cost.linear_latency_ms)
    return replace(
        cost,
        linear_latency_ms=np.minimum.accumulate(latency_ms),
        linear_energy_j=_cubic(ghz, cost.linear_energy_j),
        attention_latency_ms=_cubic(1.0 / ghz, cost.attention_latency_ms),
        attention_energy_j=_cubic(ghz, cost.attention_energy_j),
    )


def _cubic(at: FloatArray, values: FloatArray) -> FloatArray:
    """(M, n): each column along the clock. Errors count relative to the column's size."""
    terms = np.vander(at, 4)
    fitted: FloatArray = terms @ np.linalg.lstsq(terms, values, rcond=None)[0]
    # What costs cannot turn into a gift, nor the sign of an indicator: held inside what was seen.
    return np.clip(fitted, values.min(axis=0), values.max(axis=0))
