"""The plan of a sweep: clocks, cells, trials and their order, its time and expected error.

A budget is kept by measuring fewer clocks, cells or trials; of all plans that fit, the one with
the least expected error is taken. What a user states (clocks, trials, window) is never changed.
"""

import dataclasses
import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from beam_runtime.table.schema import RowKind
from beam_runtime.types import StepShape
from beamprof.backends.cell import Cell
from beamprof.errors import SweepError
from beamprof.profiler.expectation import ExpectedError, expected_error
from beamprof.profiler.grid import GridLimits, at_clock, grid
from beamprof.profiler.spec import SweepSpec
from beamprof.units import ClockMode, format_duration

# Below 36 % of its maximum (510 of an A100's 1410 MHz) a clock costs more energy than a higher
# one at every batch size (../shared/data/measured-a100), so nobody would choose it.
LOWEST_USEFUL_SHARE = 0.36
CLOCK_COUNTS = (9, 7, 5, 3)
CELL_SHARES = (1.0, 0.88, 0.78, 0.68, 0.59)
# Seconds around each trial: lock the clock and see it read back (25 ms), fill the KV cache,
# warm up until launches are steady (100 ms).
TRIAL_OVERHEAD_S = 0.25
SHORTEST_WINDOW_S, LONGEST_WINDOW_S = 0.8, 2.5
# Of a budget, what is kept for windows that are rejected and measured again.
RESERVE = 0.05
IDLE_PER_ROUND = 2
FEWEST_CELLS, UNLIMITED = 12, 10**6


@dataclass(frozen=True, slots=True)
class ClockChoice:
    """What a device offers.

    Attributes:
        device: its name.
        supported_mhz: every clock that can be set; empty where none can.
        profile_mhz: those to measure when none are asked for; empty = spread over the useful range.
        running_mhz: stands for the clock in a table whose passes do not report one.
    """

    device: str
    supported_mhz: tuple[int, ...] = ()
    profile_mhz: tuple[int, ...] = ()
    running_mhz: int = 1


@dataclass(frozen=True, slots=True)
class Trial:
    """One measurement of one cell; ``number`` counts the trials of that cell from 0."""

    cell: Cell
    number: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be measured.

    Attributes:
        clocks_mhz: ascending; (0,) where clocks are left as they are.
        steps: forward passes at each clock; share: of the full grid, how much of it they are.
        rounds: trials of each cell; window_s: how long each repeats its pass.
        seed: of the order.
        counted: energy comes from a counter whose ticks blur short windows.
        cpu: passes run on a CPU.
    """

    clocks_mhz: tuple[int, ...]
    steps: tuple[StepShape, ...]
    share: float
    rounds: int
    window_s: float
    seed: int
    counted: bool = True
    cpu: bool = False

    @property
    def trial_count(self) -> int:
        """Trials of the whole sweep, idle ones included."""
        return len(self.clocks_mhz) * (len(self.steps) + IDLE_PER_ROUND) * self.rounds

    @property
    def duration_s(self) -> float:
        """Seconds of the whole sweep on a real device."""
        return self.trial_count * (self.window_s + TRIAL_OVERHEAD_S)

    @property
    def expected(self) -> ExpectedError:
        """The error its table is expected to have."""
        counted_s = (self.rounds, self.window_s) if self.counted else None
        return expected_error(len(self.clocks_mhz), self.share, counted_s, cpu=self.cpu)

    def order(self) -> tuple[Trial, ...]:
        """Rounds outside, cells inside, each round shuffled: thermal drift hits all cells alike.

        Idle power is measured IDLE_PER_ROUND times in every round.
        """
        forward = [at_clock(step, clock) for clock in self.clocks_mhz for step in self.steps]
        draw = random.Random(self.seed)
        order: list[Trial] = []
        for number in range(self.rounds):
            trials = [Trial(cell, number) for cell in forward]
            trials += [
                Trial(Cell(RowKind.IDLE, clock), number * IDLE_PER_ROUND + again)
                for clock in self.clocks_mhz
                for again in range(IDLE_PER_ROUND)
            ]
            draw.shuffle(trials)
            order += trials
        return tuple(order)

    def thinned_from(self, full: "Plan") -> str:
        """What was given up against ``full``, in words; empty if nothing was."""
        changes = [
            f"{ours} of {theirs} {what}"
            for what, ours, theirs in (
                ("clocks", len(self.clocks_mhz), len(full.clocks_mhz)),
                ("cells a clock", len(self.steps), len(full.steps)),
                ("trials", self.rounds, full.rounds),
            )
            if ours < theirs
        ]
        return ", ".join(changes)


def make_plan(
    spec: SweepSpec, limits: GridLimits, offered: ClockChoice, *, keep_budget: bool = True
) -> tuple[Plan, str]:
    """Choose clocks, cells, trials and windows of a measured sweep within the spec's budget.

    Args:
        spec: the resolved sweep; what it leaves open is chosen here.
        limits: how far the grid reaches on this model and device.
        offered: the device and its clocks.
        keep_budget: False plans everything, however long it would take.

    Returns:
        The plan, and what was given up to keep the budget, in words.

    Raises:
        SweepError: clocks that the device does not have, or a budget that nothing fits into.
    """
    plans = list(_candidates(spec, limits, offered))
    usable_s = spec.budget_s * (1 - RESERVE)
    fitting = [plan for plan in plans if plan.duration_s <= usable_s]
    if not keep_budget:
        return plans[0], ""
    if not fitting:
        least_s = min(plan.duration_s for plan in plans) / (1 - RESERVE)
        raise SweepError(
            f"no sweep of {offered.device} fits into {format_duration(spec.budget_s)}",
            cause=f"the coarsest one takes {format_duration(least_s)}",
            hint=f"give it more time, --budget {math.ceil(least_s / 60)}m, or fewer --clocks",
        )
    # Nothing is given up that fits. A cell that is measured once cannot show drift, so clocks and
    # cells go before the second trial does.
    best = fitting[0]
    if best is not plans[0]:
        best = min(fitting, key=lambda plan: (-plan.rounds, plan.expected.total))
    return best, best.thinned_from(plans[0])


def choose_clocks(spec: SweepSpec, offered: ClockChoice, *, most: int) -> tuple[int, ...]:
    """The clocks to measure, ascending; (0,) = as they are. ``most`` bounds an automatic choice.

    Raises:
        SweepError: a clock outside the device's list; the hint names its neighbours.
    """
    mode, supported = spec.clocks.mode, sorted(offered.supported_mhz)
    if mode is ClockMode.CURRENT or (mode is ClockMode.AUTO and not supported):
        return (0,)
    if not supported:
        raise SweepError(
            f"--clocks {spec.clocks}: the clocks of {offered.device} cannot be set",
            hint="measure at the clock it runs at: --clocks current",
        )
    if mode is ClockMode.ALL:
        return tuple(supported)
    if mode is ClockMode.AUTO:
        return _evenly(sorted(offered.profile_mhz) or _useful(supported), most)
    for clock in spec.clocks.mhz:
        if clock not in supported:
            near = sorted(sorted(supported, key=lambda mhz: abs(mhz - clock))[:2])
            raise SweepError(
                f"{offered.device} has no clock of {clock} MHz",
                cause=f"it offers {len(supported)} clocks, {supported[0]} to {supported[-1]} MHz",
                hint=f"the nearest are {' and '.join(str(mhz) for mhz in near)}",
            )
    return spec.clocks.mhz


def _candidates(spec: SweepSpec, limits: GridLimits, offered: ClockChoice) -> Iterator[Plan]:
    """Measured plans from the fullest to the coarsest."""
    trials = (spec.trials,) if spec.trials else (2, 1)
    full = len(grid(dataclasses.replace(limits, max_cells=UNLIMITED)))
    for most_clocks, share, rounds in itertools.product(CLOCK_COUNTS, CELL_SHARES, trials):
        most = min(limits.max_cells, max(FEWEST_CELLS, round(share * full)))
        steps = grid(dataclasses.replace(limits, max_cells=most))
        plan = Plan(
            clocks_mhz=choose_clocks(spec, offered, most=most_clocks),
            steps=steps,
            share=len(steps) / full,
            rounds=rounds,
            window_s=spec.window_s or SHORTEST_WINDOW_S,
            seed=spec.seed,
        )
        if spec.window_s is None:
            # Time that is left goes into longer windows, for the energy counter's sake.
            share_s = spec.budget_s * (1 - RESERVE) / plan.trial_count - TRIAL_OVERHEAD_S
            centiseconds = math.floor(share_s * 100)
            window_s = min(LONGEST_WINDOW_S, max(SHORTEST_WINDOW_S, centiseconds / 100))
            plan = dataclasses.replace(plan, window_s=window_s)
        yield plan


def _useful(supported: list[int]) -> list[int]:
    """Nine clocks over the useful range at an even step: 510:1410:120 on an A100."""
    useful = [clock for clock in supported if clock >= LOWEST_USEFUL_SHARE * supported[-1]]
    step = max(1, math.ceil((len(useful) - 1) / (CLOCK_COUNTS[0] - 1)))
    return sorted({*useful[::step], supported[-1]})


def _evenly(clocks: list[int], most: int) -> tuple[int, ...]:
    """At most so many, evenly spread over the list, both ends included."""
    if len(clocks) <= most:
        return tuple(clocks)
    return tuple(clocks[round(i * (len(clocks) - 1) / (most - 1))] for i in range(most))
