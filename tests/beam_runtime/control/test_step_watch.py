"""Steps teach calibration, however often the clock changes under them."""

import itertools
import math
from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
import pytest

from beam_runtime.control.calibration import Calibration, Drift
from beam_runtime.control.clock_state import ClockState
from beam_runtime.control.step_watch import StepWatch
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.step_cost import StepCost, clock_index
from beam_runtime.types import EngineLimits, StepShape

DECODES = StepShape(decode_requests=32, decode_context_tokens=32 * 512)
TOP_MHZ = 1410
SLOWER = 1.15


class Pupil(Calibration):
    """Remembers what it was taught."""

    def __init__(self, pp: int) -> None:
        super().__init__(pp)
        self.ratios: list[float] = []

    def observe_step(
        self, shape: StepShape, predicted_ms: float, observed_ms: float
    ) -> Drift | None:
        self.ratios.append(observed_ms / predicted_ms)
        return super().observe_step(shape, predicted_ms, observed_ms)


@dataclass(frozen=True, slots=True)
class Change:
    """A clock that was asked for, came to be, and was read back."""

    asked_ms: float
    true_ms: float
    confirmed_ms: float
    clock_mhz: int


def changes(clocks_mhz: tuple[int, ...], every_ms: float, until_ms: float) -> list[Change]:
    """Sets take 7 to 35 ms in the driver, and are read back a few milliseconds later."""
    random = np.random.default_rng(3)
    return [
        Change(at_ms, true_ms := at_ms + random.uniform(7.0, 35.0), true_ms + 4.0, clock_mhz)
        for at_ms, clock_mhz in zip(
            np.arange(every_ms, until_ms, every_ms).tolist(), itertools.cycle(clocks_mhz)
        )
    ]


class Plant:
    """A pipeline whose GPUs take SLOWER times what the table says, at whatever clock they run."""

    def __init__(self, cost: StepCost, limits: EngineLimits, made: list[Change]) -> None:
        self.cost, self.limits = cost, limits
        changed = [(one.true_ms, one.clock_mhz) for one in made]
        self.switches = [(-math.inf, TOP_MHZ), *changed, (math.inf, 0)]
        self.free_ms = [0.0] * limits.pp
        self.random = np.random.default_rng(5)

    def finish_ms(self, issue_ms: float) -> float:
        latency_ms = self.cost.latency_ms(DECODES)
        ready_ms = issue_ms
        for stage, free_ms in enumerate(self.free_ms):
            work = SLOWER * self.random.lognormal(0.0, 0.02)
            ready_ms = max(ready_ms, free_ms) + self.limits.host_gap_ms
            at = bisect_right(self.switches, ready_ms, key=lambda switch: switch[0])
            while work > 1e-12:
                pass_ms = float(latency_ms[clock_index(self.cost, self.switches[at - 1][1])])
                part_ms = min(self.switches[at][0] - ready_ms, work * pass_ms)
                work -= part_ms / pass_ms
                ready_ms += part_ms
                at += 1
            self.free_ms[stage] = ready_ms
        return ready_ms


def taught(
    cost: StepCost, limits: EngineLimits, made: list[Change], groups: int, steps: int
) -> Pupil:
    """``groups`` batches take turns in the pipeline; each goes again when it is back."""
    plant, clock, pupil = Plant(cost, limits, made), ClockState(TOP_MHZ), Pupil(limits.pp)
    watch = StepWatch(cost, limits, clock, pupil)
    back_ms, moments = [0.0] * groups, []
    for step in range(steps):
        issue_ms = max(back_ms[step % groups], plant.free_ms[0])
        back_ms[step % groups] = plant.finish_ms(issue_ms)
        moments += [(issue_ms, 3, None), (back_ms[step % groups], 0, None)]
    moments += [(one.confirmed_ms, 1, one.clock_mhz) for one in made]
    moments += [(one.asked_ms, 2, one.clock_mhz) for one in made]
    for at_ms, what, clock_mhz in sorted(moments, key=lambda moment: moment[:2]):
        if what == 0:
            watch.finished(at_ms)
        elif what == 1:
            clock.confirm(clock_mhz, at_ms)
        elif what == 2:
            assert clock_mhz is not None
            clock.ask(clock_mhz, at_ms)
        else:
            watch.issued(DECODES, at_ms)
    return pupil


@pytest.fixture(scope="module")
def fine_cost(small_table: PerfTable) -> StepCost:
    return StepCost.from_table(small_table, range(960, 1411, 15))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("clocks_mhz", [(1050, 1110), (1200, 1155, 1110, 1155), (960, 1410)])
def test_it_converges_on_a_slower_plant_while_clocks_change_every_100_ms(
    fine_cost: StepCost, limits: EngineLimits, groups: int, clocks_mhz: tuple[int, ...]
) -> None:
    steps = 300
    made = changes(clocks_mhz, 100.0, 25_000.0)
    pupil = taught(fine_cost, limits, made, groups, steps)
    assert pupil.correction.decode_scale == pytest.approx(SLOWER, rel=0.015)
    near = max(clocks_mhz) - min(clocks_mhz) < 100
    assert len(pupil.ratios) > (0.8 if near else 0.1) * steps


def test_a_step_longer_than_its_clock_lasts_still_teaches(
    fine_cost: StepCost, limits: EngineLimits
) -> None:
    """Its way through four stages takes longer than a clock is known in one piece."""
    slow = EngineLimits(pp=4, host_gap_ms=12.0)
    pupil = taught(fine_cost, slow, changes((1050, 1110), 100.0, 20_000.0), 1, 100)
    assert len(pupil.ratios) > 60
    assert np.mean(pupil.ratios) == pytest.approx(SLOWER, rel=0.01)


def test_a_small_change_under_a_step_counts_by_its_time(
    fine_cost: StepCost, limits: EngineLimits
) -> None:
    """Half way between having come at once, and having come when it was read back."""
    clock, pupil = ClockState(TOP_MHZ), Pupil(limits.pp)
    clock.ask(1380, -20.0)
    clock.confirm(1380, -10.0)
    watch = StepWatch(fine_cost, limits, clock, pupil)
    watch.issued(DECODES, -200.0)
    watch.finished(-100.0)  # an engine's first step teaches nothing
    watch.issued(DECODES, 0.0)
    clock.ask(1350, 10.0)
    clock.confirm(1350, 40.0)
    watch.finished(80.0)
    before, now = (
        1.0 / float(fine_cost.latency_ms(DECODES)[clock_index(fine_cost, mhz)])
        for mhz in (1380, 1350)
    )
    earliest_ms, latest_ms = 80.0 / (10 * before + 70 * now), 80.0 / (40 * before + 40 * now)
    (ratio,) = pupil.ratios
    stage_ms = 80.0 / limits.pp - limits.host_gap_ms
    assert ratio == pytest.approx(stage_ms / ((earliest_ms + latest_ms) / 2.0), rel=1e-9)


def test_a_large_change_under_a_step_teaches_nothing(
    small_cost: StepCost, limits: EngineLimits
) -> None:
    clock, pupil = ClockState(TOP_MHZ), Pupil(limits.pp)
    watch = StepWatch(small_cost, limits, clock, pupil)
    watch.issued(DECODES, 0.0)
    clock.ask(510, 10.0)
    clock.confirm(510, 35.0)
    watch.finished(80.0)
    assert pupil.ratios == []
    watch.issued(DECODES, 90.0)
    watch.finished(220.0)
    at_510_ms = float(small_cost.latency_ms(DECODES)[clock_index(small_cost, 510)])
    (ratio,) = pupil.ratios
    assert ratio == pytest.approx((130.0 / 4 - limits.host_gap_ms) / at_510_ms)


def test_a_step_that_waited_is_judged_from_when_it_ran(
    small_cost: StepCost, limits: EngineLimits
) -> None:
    """Issued before the change, and first run after it: it met one clock."""
    clock, pupil = ClockState(TOP_MHZ), Pupil(limits.pp)
    watch = StepWatch(small_cost, limits, clock, pupil)
    watch.issued(DECODES, 0.0)
    watch.issued(DECODES, 1.0)
    clock.ask(510, 10.0)
    clock.confirm(510, 35.0)
    watch.finished(160.0)
    assert pupil.ratios == []
    watch.finished(200.0)
    assert len(pupil.ratios) == 1


def test_without_a_table_it_only_watches(limits: EngineLimits) -> None:
    pupil = Pupil(limits.pp)
    watch = StepWatch(None, limits, ClockState(TOP_MHZ), pupil)
    watch.issued(DECODES, 0.0)
    assert watch.silent_ms(50_000.0) == 0.0, "it may compile for as long as it takes"
    watch.finished(60_000.0)
    assert watch.silent_ms(60_090.0) == 0.0
    watch.issued(DECODES, 60_100.0)
    assert watch.silent_ms(60_150.0) == 50.0
    watch.finished(60_160.0)
    assert watch.silent_ms(60_190.0) == 0.0
    assert pupil.ratios == []


def test_an_engines_first_step_teaches_nothing(small_cost: StepCost, limits: EngineLimits) -> None:
    pupil = Pupil(limits.pp)
    watch = StepWatch(small_cost, limits, ClockState(TOP_MHZ), pupil)
    watch.issued(DECODES, 0.0)
    watch.finished(90_000.0)
    assert pupil.ratios == []
    watch.issued(DECODES, 90_100.0)
    watch.finished(90_200.0)
    assert len(pupil.ratios) == 1


def test_a_step_of_no_tokens_teaches_nothing(small_cost: StepCost, limits: EngineLimits) -> None:
    pupil = Pupil(limits.pp)
    watch = StepWatch(small_cost, limits, ClockState(TOP_MHZ), pupil)
    for at_ms in (0.0, 100.0):
        watch.issued(StepShape(), at_ms)
        watch.finished(at_ms + 30.0)
    assert pupil.ratios == []
