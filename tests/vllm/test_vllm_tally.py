"""What is counted of requests, tokens and joules; no vLLM is needed for it."""

from types import SimpleNamespace
from typing import Any

import pytest

from beam_runtime.control.orders import Orders
from beam_runtime.emulator.passes import Passes
from beam_runtime.engines.vllm.followed import Cohort, Followed
from beam_runtime.engines.vllm.step_meter import StepMeter
from beam_runtime.engines.vllm.tally import ClassTally, Histogram, Tally
from beam_runtime.engines.vllm.view import Flying
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import EngineLimits, Knobs, Rules, Slo, StepShape

SLO = Slo(1000.0, 100.0)


def predicted(longest_ms: float, horizon_ms: float = 250.0) -> Any:
    return SimpleNamespace(worst_tbt_ms={"r": longest_ms, "s": 1.0}, horizon_ms=horizon_ms)


def test_what_is_late_is_part_of_what_is_counted() -> None:
    tally = ClassTally()
    for ttft_ms in (900.0, 1100.0, 5000.0):
        tally.first(ttft_ms, 40, SLO)
    one = request(tally)
    for gap_ms in (90.0, 110.0):
        tally.gap(gap_ms)
        one.note_late(gap_ms)
    assert (tally.first_tokens, tally.late_first_tokens, tally.prompt_tokens) == (3, 2, 120)
    assert (tally.gaps, tally.late_gaps) == (2, 1)


def test_first_tokens_are_held_against_their_own_forecasts() -> None:
    tally = Tally()
    tally.predicted(900.0, 800.0)
    tally.predicted(1100.0, None)
    tally.predicted(10.0, float("inf"))
    assert (tally.ttfts, tally.ttft_ms, tally.predicted_ttft_ms) == (1, 900.0, 800.0)


def test_the_longest_gap_is_held_against_the_longest_over_the_same_time() -> None:
    tally = Tally()
    tally.gap(500.0, 0.0, predicted(80.0))  # a forecast comes into force: what was is not its own
    tally.gap(60.0, 100.0, predicted(1.0))  # made within its horizon: not asked
    tally.gap(70.0, 200.0, None)
    assert tally.longest_gaps == 0, "its horizon is not over"
    tally.gap(900.0, 300.0, predicted(90.0))
    assert (tally.longest_gaps, tally.longest_gap_ms) == (1, 70.0)
    assert tally.predicted_longest_gap_ms == 80.0
    tally.gap(10.0, 5_000.0, None)
    assert tally.longest_gaps == 1, "nobody got a token within that one's horizon"


def request(tally: ClassTally, slo: Slo = SLO) -> Followed:
    return Followed(0.0, slo, tokens=101, first_token_ms=500.0, last_token_ms=500.0,
                    prompt_tokens=100, tally=tally)  # fmt: skip


def test_steps_are_planned_for_a_gap_until_it_was_late() -> None:
    tight, shared = (Slo(tbt_ms=100.0, tbt_share=share, lost_due_ms=200.0) for share in (1.0, 0.9))
    for slo, gap_ms, due_ms in (
        (tight, 90.0, 100.0),
        (tight, 110.0, 200.0),
        (shared, 110.0, 100.0),
    ):
        one = request(ClassTally(), slo)
        one.note_late(gap_ms)
        assert (one.planned.due_every_ms or one.planned.token_ms) == due_ms
        assert one.slo is slo, "goodput goes by what was promised"
    last = request(ClassTally(), SLO)
    last.note_late(110.0)
    assert last.planned is SLO, "most others are promised the same"


@pytest.mark.parametrize(
    ("slo", "gaps_ms", "first_ms", "late", "slow"),
    [(SLO, (90.0, 90.0), 500.0, 0, 0), (SLO, (20.0, 150.0), 500.0, 1, 0),
     (SLO, (150.0, 150.0), 500.0, 1, 1), (SLO, (90.0, 90.0), 1500.0, 1, 0),
     (Slo(tbt_ms=100.0, tbt_share=0.5), (20.0, 150.0), 500.0, 0, 0),
     (Slo(tbt_ms=100.0, tbt_share=0.5), (150.0, 150.0), 500.0, 1, 1),
     (Slo(tpot_ms=100.0), (20.0, 150.0), 500.0, 0, 0),
     (Slo(tpot_ms=80.0), (20.0, 150.0), 500.0, 1, 1),
     (Slo(e2e_ms=671.0), (20.0, 150.0), 500.0, 0, 1),
     (Slo(e2e_ms=669.0), (20.0, 150.0), 500.0, 1, 1)],
)  # fmt: skip
def test_goodput_counts_whole_requests(
    slo: Slo, gaps_ms: tuple[float, ...], first_ms: float, late: int, slow: int
) -> None:
    tally = ClassTally()
    one = request(tally, slo)
    one.first_token_ms = one.last_token_ms = first_ms
    cohort = Cohort(("r",), [one], 101)
    cohort.last_ms = at_ms = first_ms
    for gap_ms in gaps_ms:
        at_ms += gap_ms
        cohort.token(at_ms, None, Tally())
    said = one.done()
    assert (tally.completions, tally.late_completions, tally.slow_completions) == (1, late, slow)
    assert said["late"] == bool(late)
    assert said["generated_tokens"] == 3
    assert said["tpot_ms"] == pytest.approx(sum(gaps_ms) / 2)
    assert said["longest_gap_ms"] == max(gaps_ms)
    assert (tally.generated_tokens, tally.gaps) == (2, 2)


def test_what_goes_together_is_counted_by_each_one_s_class() -> None:
    slow, fast = ClassTally(), ClassTally()
    known = [request(slow), request(slow), request(fast, Slo(1000.0, 30.0))]
    known[0].slo_class = known[1].slo_class = "slow"
    cohort = Cohort(("a", "b", "c"), known, 303)
    cohort.last_ms = 500.0
    cohort.token(550.0, None, Tally())
    assert (slow.gaps, slow.late_gaps, fast.gaps, fast.late_gaps) == (2, 0, 1, 1)
    cohort.energy_j = 6.0
    assert known[0].settled().energy_j == 2.0
    assert known[2].energy_j == 2.0


def test_histograms_count_by_upper_bound() -> None:
    histogram = Histogram((1.0, 10.0))
    for value in (0.5, 1.0, 5.0, 50.0):
        histogram.add(value)
    histogram.add(2.0, 3)
    assert histogram.counts == [2, 4, 1]
    assert histogram.total == pytest.approx(62.5)


def decodes(count: int, context: int) -> Flying:
    names = tuple(f"r{n}" for n in range(count))
    return Flying(None, names, (), names, context)


def test_the_saving_is_the_same_steps_at_two_clocks(small_cost: StepCost) -> None:
    limits = EngineLimits(pp=4, host_gap_ms=2.0)
    passes = Passes(small_cost, limits)
    top, low = int(small_cost.clocks_mhz[-1]), int(small_cost.clocks_mhz[0])
    for may_steer in (True, False):
        tally = Tally()
        meter = StepMeter(small_cost, passes, tally, limits)
        in_force = Knobs(low if may_steer else top, 512)
        decided = SimpleNamespace(knobs=Knobs(low, 512))
        orders = Orders(in_force, Rules(), may_steer, "", decision=decided)
        meter.step(decodes(8, 4_000), orders, may_steer, 1_000.0)
        _, step_j = meter.step(decodes(8, 4_008), orders, may_steer, 1_100.0)
        shapes = [StepShape(0, 0, 8, context) for context in (4_000, 4_008)]
        active = {mhz: 4 * sum(passes.energy_j(s, mhz) for s in shapes) for mhz in (low, top)}
        assert tally.active_energy_j == pytest.approx(active[in_force.clock_mhz])
        assert step_j == pytest.approx(4 * passes.energy_j(shapes[1], in_force.clock_mhz))
        for energy_j, mhz in ((tally.beam_energy_j, low), (tally.own_energy_j, top)):
            at = small_cost.clocks_mhz.tolist().index(mhz)
            busy_ms = passes.table_ms(shapes[1], mhz)
            waited_j = small_cost.idle_power_w[at] * 4 * (100.0 - busy_ms) / 1e3
            assert energy_j == pytest.approx(active[mhz] + waited_j)
