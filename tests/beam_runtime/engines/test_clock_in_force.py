"""Which clock steps are planned with while another one comes into force."""

from beam_runtime.engines.vllm.clock_in_force import ClockInForce
from beam_runtime.types import Knobs


def test_a_raised_clock_counts_when_it_is_in_force_and_a_lowered_one_at_once() -> None:
    clock, low, high = ClockInForce(25.0), Knobs(510, 256), Knobs(1410, 512)
    assert clock.knobs(low, 0.0) is low
    rising = clock.knobs(high, 100.0)
    assert rising == Knobs(510, 512), "all other knobs hold at once"
    assert clock.knobs(high, 124.9) is rising
    assert clock.knobs(high, 125.0) is high
    assert clock.knobs(low, 130.0) is low


def test_the_same_clock_ordered_again_does_not_start_the_wait_anew() -> None:
    clock = ClockInForce(25.0)
    clock.knobs(Knobs(510, 256), 0.0)
    clock.knobs(Knobs(1410, 256), 100.0)
    again = Knobs(1410, 384)
    assert clock.knobs(again, 115.0) == Knobs(510, 384)
    assert clock.knobs(again, 126.0) is again


def test_a_clock_raised_further_while_it_rises_is_waited_for_from_then_on() -> None:
    clock = ClockInForce(25.0)
    clock.knobs(Knobs(510, 256), 0.0)
    clock.knobs(Knobs(1050, 256), 100.0)
    assert clock.knobs(Knobs(1410, 256), 120.0).clock_mhz == 510
    assert clock.knobs(Knobs(900, 256), 130.0).clock_mhz == 510
    assert clock.knobs(Knobs(510, 256), 131.0).clock_mhz == 510
