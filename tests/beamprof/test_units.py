from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beamprof.errors import SweepError
from beamprof.units import (
    ClockMode,
    Clocks,
    format_duration,
    format_energy,
    format_ms,
    parse_clocks,
    parse_duration_s,
    parse_power_w,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1.0), ("200ms", 0.2), ("10m", 600.0), ("1.5h", 5400.0), (" 2 min ", 120.0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration_s(text, "--budget") == pytest.approx(seconds)


def test_a_number_without_unit_is_refused_with_both_readings() -> None:
    with pytest.raises(SweepError) as caught:
        parse_duration_s("0.2", "--window")
    assert "0.2 s or 0.2 ms?" in caught.value.message
    assert caught.value.hint == "write 0.2s or 0.2ms"
    with pytest.raises(SweepError, match="65 W or 65 mW"):
        parse_power_w(65, "assume_power")


@pytest.mark.parametrize(
    "text",
    ["10 parsecs", "s", "", "-1s", "0s", "1s2", True, None, [1], "1M", "1.", ".", "9" * 200_000],
)
def test_durations_that_are_none(text: object) -> None:
    with pytest.raises(SweepError, match="--budget"):
        parse_duration_s(text, "--budget")


def test_power_takes_its_own_units_only() -> None:
    assert parse_power_w("65W", "x") == 65
    assert parse_power_w("0.3kW", "x") == pytest.approx(300)
    with pytest.raises(SweepError, match="unknown unit 'ms'"):
        parse_power_w("65ms", "x")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("510:1410:120", (510, 630, 750, 870, 990, 1110, 1230, 1350, 1410)),
        ("300:1410:x2", (300, 600, 1200, 1410)),
        ("1410, 510,510", (510, 1410)),
        ("1.41GHz", (1410,)),
        (1410, (1410,)),
        ([510, "630"], (510, 630)),
        ("600:600:5", (600,)),
    ],
)
def test_clock_lists(text: object, expected: tuple[int, ...]) -> None:
    assert parse_clocks(text, "--clocks") == Clocks(mhz=expected)


@pytest.mark.parametrize("mode", list(ClockMode))
def test_named_clocks(mode: ClockMode) -> None:
    assert parse_clocks(str(mode), "--clocks") == Clocks(mode=mode)
    assert parse_clocks(str(parse_clocks(str(mode), "--clocks")), "--clocks").mode is mode


@pytest.mark.parametrize(
    "text",
    ["fast", "510:1410", "1410:510:30", "510:1410:0", "510:1410:x1", "510,,630", "510.5", "", {}],
)
def test_clock_lists_that_are_none(text: object) -> None:
    with pytest.raises(SweepError, match="--clocks"):
        parse_clocks(text, "--clocks")


def test_a_clock_in_another_unit_is_refused_with_both_readings() -> None:
    with pytest.raises(SweepError) as caught:
        parse_clocks("1.41", "--clocks")
    assert "1.41 MHz, or 1.41 GHz?" in caught.value.message
    assert caught.value.hint == "write 1410"


@given(
    low=st.integers(100, 2000),
    span=st.integers(0, 2000),
    step=st.integers(2, 500),
)
def test_a_range_holds_both_ends_and_never_repeats(low: int, span: int, step: int) -> None:
    clocks = parse_clocks(f"{low}:{low + span}:{step}", "--clocks").mhz
    assert clocks[0] == low
    assert clocks[-1] == low + span
    assert list(clocks) == sorted(set(clocks))
    assert all(b - a == step for a, b in pairwise(clocks[:-1]))


@given(st.floats(1e-3, 1e5))
def test_durations_come_back_in_a_readable_unit(seconds: float) -> None:
    number, unit = format_duration(seconds).split()
    assert unit in ("ms", "s", "min", "h")
    assert float(number) < 1000 or unit == "h"


def test_energies_beside_each_other_have_one_unit():
    beside_j = 60_400.0
    shown = [format_energy(joules, beside_j) for joules in (beside_j, 22_700.0, 36.0, 0.0, -3600.0)]
    assert shown == ["16.8 Wh", "6.3 Wh", "0.01 Wh", "0 Wh", "-1 Wh"]
    assert format_energy(22_700.0) == "22.7 kJ"
    assert format_energy(0.0, 0.0) == "0 J"


@pytest.mark.parametrize(
    ("ms", "text"),
    [(0.0, "0 ms"), (-0.0, "0 ms"), (0.4, "0.4 ms"), (7.04, "7 ms"), (9.6, "10 ms"),
     (850.2, "850 ms"), (1700.0, "1,700 ms"), (11_100.0, "11.1 s")],
)  # fmt: skip
def test_a_latency_is_never_rounded_to_nothing(ms: float, text: str) -> None:
    assert format_ms(ms) == text
