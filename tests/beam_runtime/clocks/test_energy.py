import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_runtime.clocks.energy import EnergyMeter, WindowVerdict
from beam_runtime.clocks.nvml import NvmlGpus
from beam_runtime.testing.nvml import FakeGpu, FakeNvml, fake_gpus


class TickingCounter:
    """Devices of constant power whose counters update every ``tick_s``."""

    def __init__(self, power_w: list[float], tick_s: float, phase_s: float = 0.0) -> None:
        self.power_w = power_w
        self.tick_s = tick_s
        self.phase_s = phase_s
        self.now = 0.0

    def now_s(self) -> float:
        return self.now

    def read_energy_j(self) -> tuple[float, ...]:
        ticks = math.floor((self.now + self.phase_s) / self.tick_s + 1e-9)
        return tuple(power_w * ticks * self.tick_s for power_w in self.power_w)


def measured(counter: TickingCounter, seconds: float, pass_s: float) -> EnergyMeter:
    meter = EnergyMeter(counter, now_s=counter.now_s)
    for at in range(round(seconds / pass_s) + 1):
        counter.now = at * pass_s
        meter.sample()
    return meter


@given(
    power_w=st.floats(50, 700),
    tick_s=st.sampled_from([0.02, 0.1]),
    phase_s=st.floats(0, 0.1),
    pass_s=st.floats(0.002, 0.05),
    seconds=st.floats(1, 6),
)
def test_the_true_power_lies_inside_the_stated_resolution(
    power_w: float, tick_s: float, phase_s: float, pass_s: float, seconds: float
) -> None:
    window = measured(TickingCounter([power_w], tick_s, phase_s), seconds, pass_s).window()
    assert window.verdict is WindowVerdict.GOOD
    # Both edges can be late by a sample's distance: never more than that.
    worst = min(pass_s, tick_s) * 1.001 / window.seconds
    assert window.power_w == pytest.approx(power_w, rel=worst)
    assert window.relative_ci >= 0


def test_reads_at_edges_beat_reads_at_any_moment() -> None:
    counter = TickingCounter([400.0], tick_s=0.1, phase_s=0.03)
    window = measured(counter, seconds=1.05, pass_s=0.01).window()
    naive_w = counter.read_energy_j()[0] / counter.now
    assert abs(window.power_w - 400) < abs(naive_w - 400) / 3


def test_devices_are_added_up() -> None:
    window = measured(TickingCounter([100.0, 300.0], tick_s=0.1), 3.0, 0.01).window()
    assert window.power_w == pytest.approx(400.0, rel=0.01)


def test_unsteady_power_widens_the_interval() -> None:
    steady = measured(TickingCounter([400.0], tick_s=0.02), 3.0, 0.01).window()

    class Drifting(TickingCounter):
        def read_energy_j(self) -> tuple[float, ...]:
            ticks = math.floor(self.now / self.tick_s + 1e-9) * self.tick_s
            return (400.0 * ticks + 30.0 * ticks**2,)

    drifting = measured(Drifting([400.0], tick_s=0.02), 3.0, 0.01).window()
    assert drifting.relative_ci > 3 * steady.relative_ci


def test_equal_reads_are_too_short_a_window() -> None:
    meter = measured(TickingCounter([400.0], tick_s=0.1), seconds=0.09, pass_s=0.01)
    assert meter.window().verdict is WindowVerdict.TOO_SHORT


def test_no_sample_is_too_short_a_window() -> None:
    assert EnergyMeter(TickingCounter([1.0], 0.1)).window().verdict is WindowVerdict.TOO_SHORT


def test_a_device_that_stands_still_makes_the_whole_window_too_short() -> None:
    meter = measured(TickingCounter([400.0, 0.0], tick_s=0.1), seconds=3.0, pass_s=0.01)
    assert meter.window().verdict is WindowVerdict.TOO_SHORT


@pytest.mark.parametrize("after_mj", [0, 5])  # wrapped, or reset by a driver reload
def test_a_counter_that_goes_back_asks_for_the_window_again(after_mj: int) -> None:
    nvml = FakeNvml(fake_gpus(2))
    reads = 0

    def tick(gpu: FakeGpu) -> None:
        nonlocal reads
        reads += 1
        gpu.energy_mj = after_mj if reads == 41 else gpu.energy_mj + 4000

    nvml.on_energy = tick
    clock = iter(x * 0.01 for x in range(10_000))
    meter = EnergyMeter(NvmlGpus([0, 1], nvml=nvml), now_s=lambda: next(clock))
    for _ in range(30):
        meter.sample()
    assert meter.window().verdict is WindowVerdict.WENT_BACK
    meter.restart()
    for _ in range(30):
        meter.sample()
    window = meter.window()
    assert window.verdict is WindowVerdict.GOOD
    # 2 GPUs, 4 J per read of each, 20 ms between reads: the meter asks the time twice.
    assert window.power_w == pytest.approx(2 * 4 / 0.02)
