"""What is known of the clock while it changes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_runtime.control.clock_state import ClockState

TOP_MHZ = 1410
MS = st.floats(0.0, 100.0)


def test_a_wish_is_running_once_it_is_confirmed() -> None:
    clock = ClockState(TOP_MHZ)
    assert clock.running_mhz == TOP_MHZ
    assert clock.ask(960, 10.0)
    assert not clock.ask(960, 11.0), "no change"
    assert (clock.running_mhz, clock.previous_mhz, clock.since_ms) == (TOP_MHZ, TOP_MHZ, 10.0)
    clock.confirm(1185, 20.0)
    assert clock.running_mhz == TOP_MHZ, "an overtaken wish changes nothing"
    clock.confirm(960, 30.0)
    assert (clock.running_mhz, clock.previous_mhz) == (960, None)
    clock.ask(TOP_MHZ, 40.0)
    clock.confirm(None, 50.0)
    assert clock.running_mhz == TOP_MHZ, "released is the highest"


@given(first=MS, change=MS, confirm=MS, switch=st.floats(0.0, 1.0), start=MS, length=MS)
def test_the_true_share_lies_between_the_bounds(
    first: float, change: float, confirm: float, switch: float, start: float, length: float
) -> None:
    """Wherever between wish and confirmation the clock really changed."""
    clock = ClockState(TOP_MHZ)
    clock.ask(960, first)
    clock.confirm(960, first)
    asked_ms = first + change
    clock.ask(1185, asked_ms)
    clock.confirm(1185, asked_ms + confirm)
    from_ms, to_ms = first + start, first + start + length + 1.0
    switch_ms = asked_ms + switch * confirm
    true = max(0.0, min(to_ms, switch_ms) - from_ms) / (to_ms - from_ms)
    shares = clock.share_before(from_ms, to_ms)
    assert shares is not None
    least, most = shares
    assert 0.0 <= least <= most <= 1.0
    assert least - 1e-9 <= true <= most + 1e-9
    assert clock.before_mhz == 960


def test_before_it_is_confirmed_the_new_clock_may_be_in_force_since_the_wish() -> None:
    clock = ClockState(TOP_MHZ)
    clock.ask(960, 0.0)
    clock.confirm(960, 10.0)
    clock.ask(1185, 100.0)
    assert clock.share_before(60.0, 140.0) == (0.5, 1.0)
    assert clock.share_before(20.0, 90.0) == (1.0, 1.0)


@pytest.mark.parametrize("ending", ["overtaken", "refused"])
def test_what_was_never_confirmed_is_not_known(ending: str) -> None:
    clock = ClockState(TOP_MHZ)
    clock.ask(960, 10.0)
    if ending == "overtaken":
        clock.ask(1185, 20.0)
        clock.confirm(1185, 30.0)
    else:
        clock.refuse(30.0)
        assert clock.running_mhz == TOP_MHZ
    assert clock.share_before(15.0, 40.0) is None
    assert clock.share_before(30.0, 40.0) == (0.0, 0.0)
