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
# A value near 0 weighs no more than this share of its column's largest would.
LEAST_SHARE = 0.1


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
    """(M, n): each column along the clock, its errors relative, as a measurement's are."""
    terms = np.vander(at, 4)
    fitted = np.zeros_like(values)
    for column, seen in enumerate(values.T):
        size = np.abs(seen)
        if not size.any():
            continue
        weight = 1.0 / np.maximum(size, LEAST_SHARE * size.max())
        solved = np.linalg.lstsq(terms * weight[:, None], seen * weight, rcond=None)[0]
        # No cost turns into a gift: held inside what was seen.
        fitted[:, column] = np.clip(terms @ solved, seen.min(), seen.max())
    return fitted
