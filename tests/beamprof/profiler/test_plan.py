from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_runtime.table.schema import RowKind
from beamprof.errors import SweepError
from beamprof.profiler.expectation import expected_error
from beamprof.profiler.grid import GridLimits
from beamprof.profiler.plan import IDLE_PER_ROUND, ClockChoice, Plan, choose_clocks, make_plan
from beamprof.profiler.spec import resolve_spec

LIMITS = GridLimits(
    max_tokens=1024,
    max_decodes=256,
    max_context=8192,
    kv_tokens=1_000_000,
    tile_tokens=128,
    max_cells=60,
)
A100 = ClockChoice("a100", tuple(range(210, 1411, 15)))


def plan(**flags: object) -> Plan:
    return make_plan(resolve_spec(flags), LIMITS, A100)[0]


def test_the_default_plan_takes_nine_clocks_two_trials_and_fifteen_minutes() -> None:
    full, thinned = make_plan(resolve_spec(), LIMITS, A100)
    assert full.clocks_mhz == (510, 630, 750, 870, 990, 1110, 1230, 1350, 1410)
    assert len(full.steps) <= 60
    assert (full.rounds, thinned) == (2, "")
    assert full.rounds * full.window_s >= 1.5
    assert 12 * 60 <= full.duration_s <= 15 * 60
    assert full.expected.latency_between_clocks == pytest.approx(0.009)
    assert full.expected.energy_between_clocks == pytest.approx(0.021)


@given(minutes=st.integers(3, 120))
@settings(max_examples=30)
def test_a_budget_is_kept_and_more_time_never_promises_less(minutes: int) -> None:
    shorter, longer = plan(budget=f"{minutes}m"), plan(budget=f"{minutes + 10}m")
    assert shorter.duration_s <= minutes * 60
    assert longer.rounds >= shorter.rounds
    if longer.rounds == shorter.rounds:
        # Keeping the whole grid comes before longer windows, so compare all but the counter.
        assert longer.expected.over_steps <= shorter.expected.over_steps + 0.01


def test_a_thinned_plan_says_what_it_gave_up() -> None:
    thin, words = make_plan(resolve_spec({"budget": "5m"}), LIMITS, A100)
    assert f"{len(thin.clocks_mhz)} of 9 clocks" in words
    assert thin.expected.total > plan().expected.total


def test_what_the_user_states_is_never_thinned() -> None:
    stated = plan(budget="10m", clocks="510,810,1005,1200,1410", trials=1, window="2s")
    assert stated.clocks_mhz == (510, 810, 1005, 1200, 1410)
    assert (stated.rounds, stated.window_s) == (1, 2.0)
    assert stated.duration_s <= 600


def test_a_budget_that_nothing_fits_into_names_one_that_does() -> None:
    with pytest.raises(SweepError) as caught:
        plan(budget="20s")
    assert "no sweep of a100 fits into 20 s" in caught.value.message
    minutes = str(caught.value.hint).split("--budget ")[1].split("m")[0]
    assert plan(budget=f"{minutes}m").duration_s <= int(minutes) * 60


def test_every_trial_of_a_round_comes_before_the_next_round() -> None:
    order = plan(trials=3, clocks="510,1410").order()
    forward = [trial for trial in order if trial.cell.kind is RowKind.FORWARD]
    rounds = [trial.number for trial in forward]
    assert rounds == sorted(rounds)
    assert set(Counter(trial.cell for trial in forward).values()) == {3}
    assert len(set(order)) == len(order)


def test_idle_power_is_measured_again_in_every_round() -> None:
    order = plan(trials=2, clocks="510,1410").order()
    idle = Counter(trial.cell for trial in order if trial.cell.kind is RowKind.IDLE)
    assert idle == Counter(dict.fromkeys((cell for cell in idle), 2 * IDLE_PER_ROUND))
    assert {cell.clock_mhz for cell in idle} == {510, 1410}


def test_the_seed_decides_the_order_and_nothing_else() -> None:
    first, same, other = plan(), plan(), plan(seed=1)
    assert first.order() == same.order() != other.order()
    assert set(first.order()) == set(other.order())


def test_clocks_outside_the_device_are_refused_with_their_neighbours() -> None:
    with pytest.raises(SweepError) as caught:
        plan(clocks="510,1000")
    assert "no clock of 1000 MHz" in caught.value.message
    assert caught.value.hint == "the nearest are 990 and 1005"


def test_named_clocks() -> None:
    unsettable = ClockChoice("cpu")
    assert choose_clocks(resolve_spec({"clocks": "current"}), A100, most=9) == (0,)
    assert choose_clocks(resolve_spec(), unsettable, most=9) == (0,)
    assert choose_clocks(resolve_spec({"clocks": "all"}), A100, most=9) == A100.supported_mhz
    with pytest.raises(SweepError, match="cannot be set"):
        choose_clocks(resolve_spec({"clocks": "510"}), unsettable, most=9)
    preferred = ClockChoice("a100", A100.supported_mhz, (510, 1005, 1410))
    assert choose_clocks(resolve_spec(), preferred, most=9) == (510, 1005, 1410)


def test_expected_errors_follow_the_counter_and_vanish_where_nothing_is_counted() -> None:
    assert expected_error(1, 1.0, None).energy_counter == 0
    assert expected_error(1, 1.0, None).latency_between_clocks == 0
    one_second = expected_error(9, 1.0, (1, 1.0)).energy_counter
    assert 0.01 < one_second < 0.03
    assert expected_error(9, 1.0, (4, 1.0)).energy_counter == pytest.approx(one_second / 2)
    assert expected_error(9, 1.0, (1, 5.0)).energy_counter == pytest.approx(one_second / 5)
    text = str(expected_error(9, 1.0, (2, 1.0)))
    assert text == (
        "1.0 % over all steps, 0.9 % latency and 2.1 % energy between clocks, "
        "1.4 % from the energy counter"
    )


def test_a_cpus_table_is_expected_to_be_as_wrong_as_cpus_tables_were_found_to_be() -> None:
    assert expected_error(1, 1.0, None).over_steps == pytest.approx(0.010)
    for share in (0.5, 1.0):
        assert 0.07 <= expected_error(1, share, None, cpu=True).over_steps <= 0.11
    assert str(expected_error(1, 1.0, None, cpu=True)) == "9.0 % over all steps"
