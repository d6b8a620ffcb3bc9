"""StepCost: latency and energy of any engine step at any clock, from a perf-energy table.

    cost(step) = linear(tokens) + attention . features(step)

The linear part (GEMMs, norms, all-reduces) is piecewise linear between the token counts that
were measured, which sit on the edges of the tile staircase; attention is affine in the step's
features. Between two measured clocks latency runs straight in the clock's period, energy in the
clock. See cost_fit for how a table becomes these numbers, and what a table that lacks
contexts cannot know.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from beam_runtime.errors import CoverageError
from beam_runtime.table.cost_fit import CostFit, fit_table
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.profile_command import profile_command
from beam_runtime.table.schema import RowKind
from beam_runtime.types import Origin, StepShape

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class StepForecast:
    """One step's cost over the served clocks.

    Attributes:
        clocks_mhz: (M,) served clocks, ascending.
        latency_ms: (M,) one pass of one stage.
        energy_j: (M,) one pass, summed over the stage's tp GPUs.
        origin: measured where the table holds this very pass at every served clock, else
            interpolated, or extrapolated where any part of the step is outside what it covers.
    """

    clocks_mhz: NDArray[np.int64]
    latency_ms: FloatArray
    energy_j: FloatArray
    origin: Origin


@dataclass(frozen=True, eq=False)
class StepCost:
    """Arrays that answer every step; compiled code reads them directly.

    M served clocks, N token edges, F features (cost_fit.FEATURES).

    Attributes:
        clocks_mhz: (M,) ascending.
        edges_tokens: (N,) ascending; the last one is a continuation beyond the measured range.
        linear_latency_ms, linear_energy_j: (M, N) at the edges.
        attention_latency_ms, attention_energy_j: (M, F) per unit of each feature.
        idle_power_w: (M,) a waiting stage's tp GPUs together; NaN where the table has no idle rows.
        fit: what the table covers, and with what residual.
    """

    clocks_mhz: NDArray[np.int64]
    edges_tokens: FloatArray
    linear_latency_ms: FloatArray
    linear_energy_j: FloatArray
    attention_latency_ms: FloatArray
    attention_energy_j: FloatArray
    idle_power_w: FloatArray
    fit: CostFit

    @classmethod
    def from_table(
        cls, table: PerfTable | str | Path, clocks_mhz: Sequence[int] | None = None
    ) -> Self:
        """Fit a table and serve it at ``clocks_mhz`` (default: the clocks it measured).

        Args:
            table: any that loads.
            clocks_mhz: (M,) in any order; clocks between measured ones are interpolated.

        Raises:
            CoverageError: a clock outside the measured range: the voltage curve beyond it is
                unknown, so no extrapolation is offered.
            TableError: too few cells to fit: one token count, or clocks without a common cell.
        """
        table = PerfTable.of(table)
        fit = fit_table(table)
        served = np.array(sorted(set(clocks_mhz or table.clocks_mhz)), dtype=np.int64)
        waiting_w = waiting_power_w(table, served.tolist())
        low, high = fit.clocks_mhz[0], fit.clocks_mhz[-1]
        outside = served[(served < low) | (served > high)]
        if outside.size:
            raise _beyond(table, int(outside[0]))
        by_period = _between(1.0 / fit.clocks_mhz, 1.0 / served)
        by_clock = _between(fit.clocks_mhz.astype(float), served.astype(float))
        return cls(
            clocks_mhz=served,
            edges_tokens=fit.edges_tokens,
            linear_latency_ms=by_period @ fit.latency.linear,
            linear_energy_j=by_clock @ fit.energy.linear,
            attention_latency_ms=by_period @ fit.latency.attention,
            attention_energy_j=by_clock @ fit.energy.attention,
            idle_power_w=np.full(len(served), np.nan) if waiting_w is None else waiting_w,
            fit=fit,
        )

    def latency_ms(self, step: StepShape) -> FloatArray:
        """(M,) milliseconds of one stage's pass over the step at every served clock."""
        return self._cost(step, self.linear_latency_ms, self.attention_latency_ms)

    def energy_j(self, step: StepShape) -> FloatArray:
        """(M,) joules of one stage's pass, summed over its tp GPUs, at every served clock."""
        return self._cost(step, self.linear_energy_j, self.attention_energy_j)

    def predict(self, step: StepShape, *, extrapolate: bool = True) -> StepForecast:
        """Latency, energy and where they come from.

        Raises:
            CoverageError: the step is outside what the table covers and ``extrapolate`` is False.
        """
        outside = self.fit.outside(step)
        if outside and not extrapolate:
            raise CoverageError(
                f"the table does not cover this step: {outside}",
                hint="profile larger steps or contexts, or allow extrapolation",
            )
        origin = Origin.EXTRAPOLATED if outside else Origin.INTERPOLATED
        if not outside and all(self.fit.measured(step, int(c)) for c in self.clocks_mhz):
            origin = Origin.MEASURED
        return StepForecast(self.clocks_mhz, self.latency_ms(step), self.energy_j(step), origin)

    def _cost(self, step: StepShape, linear: FloatArray, attention: FloatArray) -> FloatArray:
        if step.tokens == 0:
            return np.zeros(len(self.clocks_mhz))
        edges = self.edges_tokens
        right = int(np.clip(np.searchsorted(edges, step.tokens), 1, len(edges) - 1))
        weight = (step.tokens - edges[right - 1]) / (edges[right] - edges[right - 1])
        at_tokens = (1 - weight) * linear[:, right - 1] + weight * linear[:, right]
        cost: FloatArray = at_tokens + attention @ features(step)
        return cost


def features(step: StepShape) -> FloatArray:
    """(F,) the step's features, in the order of cost_fit.FEATURES."""
    return np.array(
        [
            step.prefill_pairs or 0.0,
            step.prefill_context_tokens,
            step.decode_context_tokens,
            step.decode_requests,
            step.prefill_tokens == 0,
            step.prefill_tokens > 0 and step.decode_requests > 0,
        ],
        dtype=float,
    )


def _between(known: FloatArray, asked: FloatArray) -> FloatArray:
    """(asked, known) weights of piecewise-linear interpolation along any monotone axis."""
    order = np.argsort(known)
    weights = np.empty((len(asked), len(known)))
    for column, unit in enumerate(np.eye(len(known))):
        weights[:, column] = np.interp(asked, known[order], unit[order])
    return weights


def waiting_power_w(table: PerfTable, clocks_mhz: Sequence[int]) -> FloatArray | None:
    """(M,) a waiting stage's GPUs together, by the idle rows; None where there are none."""
    idle = table.rows(RowKind.IDLE)
    if len(idle["clock_mhz"]) == 0:
        return None
    power_w = idle["energy_j"] / idle["latency_ms"] * 1e3
    clocks = np.unique(idle["clock_mhz"])
    # Measured several times in a sweep: the median shrugs off a neighbour's burst.
    median_w = [np.median(power_w[idle["clock_mhz"] == clock]) for clock in clocks]
    served: FloatArray = np.interp(clocks_mhz, clocks, median_w)
    return served


def clock_index(cost: StepCost, clock_mhz: float) -> int:
    """The served clock nearest to ``clock_mhz``: an engine may run at one nobody profiled."""
    return int(abs(cost.clocks_mhz - clock_mhz).argmin())


def _beyond(table: PerfTable, clock_mhz: int) -> CoverageError:
    """A clock outside the table's, with what would measure it, or the nearest that there is."""
    low, high = table.clocks_mhz[0], table.clocks_mhz[-1]
    offered = table.offered_mhz or (clock_mhz,)
    nearest = min(offered, key=lambda one: abs(one - clock_mhz))
    instead = "" if nearest == clock_mhz else f" ({table.device} has no {clock_mhz} MHz)"
    clocks = ",".join(str(one) for one in sorted({low, nearest, high}))
    return CoverageError(
        f"clock {clock_mhz} MHz is outside the table's {low} to {high} MHz",
        hint=f"profile it too{instead}: {profile_command(table.metadata)} --clocks {clocks}",
    )
