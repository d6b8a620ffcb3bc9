"""Falling back is quick, coming back is slow, and after some falls it stays down."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_runtime.control.fallback import Fallback, FallbackRules, Fault

RULES = FallbackRules(tolerated=3, pause_ms=100.0, failures=3, forgiven_ms=10_000.0)


def fallen(fault: Fault = Fault.SEARCH, now_ms: float = 0.0) -> Fallback:
    fallback = Fallback(RULES)
    for _ in range(RULES.tolerated):
        fallback.failed(fault, "it broke", now_ms)
    return fallback


def test_one_failure_is_borne_and_three_in_a_row_are_not() -> None:
    fallback = Fallback(RULES)
    assert not fallback.failed(Fault.SEARCH, "it broke", 0.0)
    assert not fallback.failed(Fault.SEARCH, "it broke", 1.0)
    fallback.succeeded(Fault.SEARCH)
    assert not fallback.failed(Fault.SEARCH, "it broke", 2.0)
    assert not fallback.failed(Fault.CLOCK, "stuck", 3.0), "another kind counts by itself"
    assert not fallback.failed(Fault.SEARCH, "it broke", 4.0)
    assert fallback.steering
    assert fallback.failed(Fault.SEARCH, "it broke", 5.0)
    assert not fallback.steering
    assert fallback.reason == "the search fails: it broke"


def test_it_comes_back_after_the_pause_and_once() -> None:
    fallback = fallen()
    assert not fallback.try_again(99.0)
    assert fallback.try_again(100.0)
    assert fallback.steering
    assert not fallback.try_again(101.0)


def test_pauses_double_and_the_third_fall_is_the_last() -> None:
    fallback = fallen()
    assert fallback.try_again(100.0)
    for _ in range(3):
        fallback.failed(Fault.CLOCK, "stuck", 100.0)
    assert not fallback.try_again(299.0)
    assert fallback.try_again(300.0)
    for _ in range(3):
        fallback.failed(Fault.SEARCH, "again", 300.0)
    assert fallback.off
    assert "off until asked" in fallback.reason
    assert not fallback.try_again(1e12)
    fallback.resume()
    assert fallback.steering


def test_a_long_good_run_forgives() -> None:
    fallback = fallen()
    assert fallback.try_again(100.0)
    fallback.try_again(10_001.0)
    assert fallback.falls == 0


def test_a_condition_has_to_pass_before_it_comes_back() -> None:
    fallback = Fallback(RULES)
    assert fallback.condition(Fault.COVERAGE, "too many tokens", 0.0)
    assert not fallback.condition(Fault.COVERAGE, "too many tokens", 1.0)
    assert not fallback.try_again(1e6)
    fallback.condition(Fault.COVERAGE, "", 1e6)
    assert fallback.try_again(1e6)


@pytest.mark.parametrize("fault", [Fault.COVERAGE, Fault.STALL])
def test_what_comes_from_outside_is_held_against_nobody(fault: Fault) -> None:
    fallback = Fallback(RULES)
    for round_ in range(20):
        now_ms = round_ * 1000.0
        assert fallback.condition(fault, "busy", now_ms)
        fallback.condition(fault, "", now_ms)
        assert not fallback.try_again(now_ms), "no flapping all the same"
        assert fallback.try_again(now_ms + RULES.pause_ms)
    assert not fallback.off


def test_without_a_table_there_is_nothing_to_wait_for() -> None:
    fallback = Fallback(RULES)
    assert fallback.condition(Fault.TABLE, "no table at x", 0.0)
    assert fallback.off
    fallback.resume()
    assert not fallback.steering


@given(
    st.lists(
        st.tuples(st.floats(0.0, 50.0), st.sampled_from(list(Fault)[1:]), st.booleans()),
        max_size=300,
    )
)
def test_it_never_flaps(events: list[tuple[float, Fault, bool]]) -> None:
    """However faults fall, it comes back no more often than pauses allow."""
    fallback, now_ms, returns = Fallback(RULES), 0.0, []
    for wait_ms, fault, bad in events:
        now_ms += wait_ms
        if bad:
            fallback.failed(fault, "bad", now_ms)
        if fallback.try_again(now_ms):
            returns.append(now_ms)
    assert all(b - a >= RULES.pause_ms for a, b in pairwise(returns))


def test_some_faults_are_not_borne_once() -> None:
    fallback = Fallback(RULES)
    assert fallback.once(Fault.PASSED_OVER, "r1 got no tokens", 5.0)
    assert "r1 got no tokens" in fallback.reason
    assert not fallback.once(Fault.PASSED_OVER, "r2 got no tokens", 6.0), "it is out already"
    assert not fallback.try_again(104.0)
    assert fallback.try_again(105.0), "nothing stands against it once the pause is over"
