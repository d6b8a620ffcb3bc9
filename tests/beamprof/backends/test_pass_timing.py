"""The logic of a window, on a device that exists in simulated time. Needs no torch."""

import math
import statistics
from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_runtime.clocks.energy import EnergyMeter
from beamprof.backends.pass_timing import (
    GaugeReading,
    TimingRules,
    median_ci,
    time_passes,
    time_waiting,
)
from beamprof.errors import BackendError


@dataclass
class Device:
    """Runs passes one after the other, draws power, counts its energy every ``tick_s``."""

    pass_ms: list[float]  # of the first passes; the last one is that of all further ones
    busy_w: float = 300.0
    idle_w: float = 80.0
    tick_s: float = 0.1
    read_s: float = 0.003  # what reading the counter takes the host
    runs_ahead: bool = True
    now: float = 0.0
    free_at: float = 0.0
    busy_s: float = 0.0
    runs: int = 0
    queued: deque[tuple[float, list[float]]] = field(default_factory=deque)
    energy_offset_j: float = 0.0
    history: list[tuple[float, float]] = field(default_factory=lambda: [(0.0, 0.0)])

    def now_s(self) -> float:
        return self.now

    def sleep_s(self, seconds: float) -> None:
        self.now += seconds

    def enqueue(self, passes: int) -> None:
        begin = max(self.now, self.free_at)
        times = []
        for _ in range(passes):
            ms = self.pass_ms[min(self.runs, len(self.pass_ms) - 1)]
            self.runs += 1
            times.append(ms)
        self.history.append((begin, begin + sum(times) / 1e3))
        self.free_at = begin + sum(times) / 1e3
        self.queued.append((self.free_at, times))
        if not self.runs_ahead:
            self.now = self.free_at

    def collect(self) -> list[float]:
        done_at, times = self.queued.popleft()
        self.now = max(self.now, done_at)
        return times

    def true_energy_j(self, at_s: float) -> float:
        busy_s = sum(max(0.0, min(end, at_s) - begin) for begin, end in self.history)
        return self.idle_w * at_s + (self.busy_w - self.idle_w) * busy_s

    def read_energy_j(self) -> tuple[float, ...]:
        self.now += self.read_s
        ticked_s = math.floor(self.now / self.tick_s) * self.tick_s
        return (self.true_energy_j(ticked_s) + self.energy_offset_j,)

    def gauge(self) -> GaugeReading:
        return GaugeReading(1005.0, 50.0 + self.now, ("power cap",) if self.now > 1.5 else ())


def meter_of(device: Device) -> EnergyMeter:
    return EnergyMeter(device, now_s=device.now_s)


@pytest.mark.parametrize("pass_ms", [0.2, 3.0, 45.0, 600.0])
@pytest.mark.parametrize("tick_s", [0.02, 0.1])
def test_energy_per_pass_is_that_of_a_busy_device(pass_ms: float, tick_s: float) -> None:
    device = Device([pass_ms], tick_s=tick_s)
    times = time_passes(device, meter_of(device), device.gauge, TimingRules(), now_s=device.now_s)
    assert times.median_ms == pass_ms
    assert times.power_w is not None
    assert times.power_relative_ci is not None
    assert times.power_w == pytest.approx(300.0, rel=0.03)
    assert times.power_relative_ci < 0.15


def test_the_device_never_idles_while_the_host_reads() -> None:
    device = Device([1.0], read_s=0.005)
    time_passes(device, meter_of(device), device.gauge, TimingRules(), now_s=device.now_s)
    window = [span for span in device.history if span[0] > 1.0]  # after warm-up
    gaps = [later[0] - earlier[1] for earlier, later in pairwise(window)]
    assert max(gaps) < 1e-9


def test_the_first_pass_and_warm_up_are_never_counted() -> None:
    device = Device([5000.0, 80.0, 40.0, 10.0])
    times = time_passes(device, None, device.gauge, TimingRules(discard_s=0), now_s=device.now_s)
    assert times.median_ms == 10.0
    assert times.mean_ms == pytest.approx(10.0)
    assert times.power_w is None


def test_passes_before_the_clock_has_settled_are_discarded() -> None:
    slow_then_fast = [12.0] * 60 + [10.0]
    device = Device(slow_then_fast)
    times = time_passes(device, None, device.gauge, TimingRules(), now_s=device.now_s)
    assert times.mean_ms == 10.0


def test_a_window_ends_when_the_intervals_are_inside_their_targets() -> None:
    steady = Device([10.0])
    time_passes(steady, meter_of(steady), steady.gauge, TimingRules(), now_s=steady.now_s)
    assert steady.now < 5.0
    noisy = Device([8.0, 12.0, 9.0, 11.0, 7.0, 13.0] * 500)
    rules = TimingRules(latency_target=0.001)
    times = time_passes(noisy, meter_of(noisy), noisy.gauge, rules, now_s=noisy.now_s)
    assert noisy.now == pytest.approx(rules.longest_s + rules.discard_s + rules.warmup_s, abs=0.2)
    assert times.median_ci_ms > 0.001 * times.median_ms


def test_a_fixed_window_is_kept() -> None:
    device = Device([10.0])
    rules = TimingRules.within(2.0)
    times = time_passes(device, meter_of(device), device.gauge, rules, now_s=device.now_s)
    assert device.now == pytest.approx(2.0 + rules.warmup_s, abs=0.1)
    assert rules.planned_s == pytest.approx(2.0 + rules.warmup_s)
    assert times.passes == pytest.approx(160, abs=5)


def test_long_passes_are_run_at_least_thrice() -> None:
    device = Device([4000.0], runs_ahead=False)
    times = time_passes(device, None, device.gauge, TimingRules.within(0.2), now_s=device.now_s)
    assert times.passes == 3
    assert device.runs == 2 + 1 + 3  # warm-up, discarded, window; nothing is run ahead


def test_a_counter_that_is_reset_costs_one_window() -> None:
    device = Device([10.0])

    class ResetOnce(EnergyMeter):
        def sample(self) -> None:
            if device.now > 2.0 and device.energy_offset_j == 0.0:
                device.energy_offset_j = -device.true_energy_j(device.now)
            super().sample()

    meter = ResetOnce(device, now_s=device.now_s)
    times = time_passes(device, meter, device.gauge, TimingRules(), now_s=device.now_s)
    assert device.energy_offset_j < 0
    assert times.power_w == pytest.approx(300.0, rel=0.03)


def test_a_counter_that_keeps_going_back_is_an_error() -> None:
    class Backwards(Device):
        def read_energy_j(self) -> tuple[float, ...]:
            return (-self.now,)

    device = Backwards([10.0])
    with pytest.raises(BackendError, match="went back in 3 windows"):
        time_passes(device, meter_of(device), device.gauge, TimingRules(), now_s=device.now_s)
    with pytest.raises(BackendError, match="went back"):
        time_waiting(
            meter_of(device),
            device.gauge,
            TimingRules(),
            now_s=device.now_s,
            sleep_s=device.sleep_s,
        )


def test_a_counter_that_stands_still_is_an_error_with_a_way_out() -> None:
    class Stuck(Device):
        def read_energy_j(self) -> tuple[float, ...]:
            self.now += self.read_s
            return (7.0,)

    device = Stuck([10.0])
    with pytest.raises(BackendError, match="did not move") as caught:
        time_passes(device, meter_of(device), device.gauge, TimingRules(), now_s=device.now_s)
    assert "--assume-power" in str(caught.value.hint)


def test_a_short_window_waits_for_a_slow_counter() -> None:
    device = Device([10.0], tick_s=0.4)
    rules = TimingRules.within(0.5)
    times = time_passes(device, meter_of(device), device.gauge, rules, now_s=device.now_s)
    assert times.power_w == pytest.approx(300.0, rel=0.05)


def test_waiting_draws_idle_power() -> None:
    device = Device([10.0])
    window, state = time_waiting(
        meter_of(device), device.gauge, TimingRules(), now_s=device.now_s, sleep_s=device.sleep_s
    )
    assert window.power_w == pytest.approx(80.0, rel=0.02)
    assert state.clock_mhz == 1005.0


def test_the_gauge_is_read_over_the_window() -> None:
    device = Device([10.0])
    times = time_passes(device, None, device.gauge, TimingRules(window_s=2), now_s=device.now_s)
    assert times.clock_mhz == 1005.0
    assert times.throttle == ("power cap",)
    assert times.temperature_c is not None
    assert times.temperature_c > 52.5


@given(st.lists(st.floats(1, 100), min_size=1, max_size=60))
def test_the_interval_of_a_median_is_within_the_values(values: list[float]) -> None:
    median, half = median_ci(values)
    assert median == statistics.median(values)
    assert 0 <= 2 * half <= max(values) - min(values) + 1e-9


def test_the_interval_of_a_median_covers_it_95_times_in_100() -> None:
    import random

    draw = random.Random(1)
    for count in (6, 10, 25, 100):
        covered = 0
        for _ in range(2000):
            values = [draw.gauss(0.0, 1.0) for _ in range(count)]
            median, half = median_ci(values)
            # The interval need not be centred; its width is what is stated.
            covered += abs(median) <= half
        assert 0.90 <= covered / 2000 <= 1.0, count
