"""Time and power of a pass that is repeated: when to stop, and what the numbers are worth.

      warm up          discard      window
    | pass pass pass | pass pass | pass pass pass ... pass |      passes run back to back;
                                 ^  ^  ^  ^  ^  ^  ^  ^  ^        ^ counter, clock, temperature
                                                                   are read while they run

Passes are handed over in batches of about 20 ms, one batch ahead of the one that is waited
for, so that the device never idles while the host reads a counter. Latency is the median over
the passes; energy is mean power over the window times the mean pass. Knows neither torch nor
NVML: it sees a PassRunner, an EnergyMeter and a Gauge.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from beam_runtime.clocks.energy import EnergyMeter, EnergyWindow, WindowVerdict
from beamprof.errors import BackendError

BATCH_S = 0.02
LONGEST_BATCH_PASSES = 1000
GAUGE_EVERY_S = 0.1
IDLE_SAMPLE_S = 0.01
WINDOW_TRIES = 3
_Z95 = 1.96


class PassRunner(Protocol):
    """Runs one prepared pass again and again."""

    @property
    def runs_ahead(self) -> bool:
        """Whether enqueue returns before the passes have run."""
        ...

    def enqueue(self, passes: int) -> None:
        """Hand over so many passes, to run back to back."""
        ...

    def collect(self) -> list[float]:
        """Wait for the oldest passes handed over; milliseconds of each."""
        ...


@dataclass(frozen=True, slots=True)
class GaugeReading:
    """What a device says of itself; None where it cannot."""

    clock_mhz: float | None = None
    temperature_c: float | None = None
    throttle: tuple[str, ...] = ()


Gauge = Callable[[], GaugeReading]


@dataclass(frozen=True, slots=True)
class TimingRules:
    """How long to measure and how well.

    Attributes:
        window_s: the shortest window; longest_s: where to stop even if the targets are missed.
        discard_s: passes before the window, until clock and power have settled.
        warmup_s: passes before that, never fewer than two.
        latency_target, energy_target: half-widths of the 95 % intervals that are good enough.
        least_passes: that the window must hold.
    """

    window_s: float = 1.0
    longest_s: float = 8.0
    discard_s: float = 1.0
    warmup_s: float = 0.1
    latency_target: float = 0.01
    energy_target: float = 0.02
    least_passes: int = 3

    @classmethod
    def within(cls, window_s: float) -> "TimingRules":
        """A sweep's fixed window: its first fifth is discarded, nothing is added to it."""
        discard_s = window_s / 5
        return cls(
            window_s=window_s - discard_s,
            longest_s=window_s - discard_s,
            discard_s=discard_s,
            warmup_s=min(0.1, window_s / 5),
        )

    @property
    def planned_s(self) -> float:
        """Seconds of a cell whose targets are met early."""
        return self.warmup_s + self.discard_s + self.window_s


@dataclass(frozen=True, slots=True)
class PassTimes:
    """What a window says; half-widths are of 95 % intervals.

    Attributes:
        median_ms, mean_ms: of the passes; power_w: of all metered devices, None without meter.
        clock_mhz: mean; temperature_c: last; throttle: every reason seen, once.
    """

    median_ms: float
    median_ci_ms: float
    mean_ms: float
    passes: int
    power_w: float | None = None
    power_relative_ci: float | None = None
    clock_mhz: float | None = None
    temperature_c: float | None = None
    throttle: tuple[str, ...] = ()


def median_ci(values: Sequence[float]) -> tuple[float, float]:
    """Median and the half-width of its 95 % interval, without assuming a distribution.

    From the order statistics whose ranks are n/2 -+ 0.98 sqrt(n), the normal approximation of
    the binomial (Conover, Practical Nonparametric Statistics, section 3.2). With fewer than six
    values no pair of them covers 95 %: then their whole range is taken.
    """
    ordered = sorted(values)
    count = len(ordered)
    reach = _Z95 * math.sqrt(count) / 2
    low = max(0, math.floor(count / 2 - reach) - 1) if count >= 6 else 0
    high = min(count - 1, math.ceil(count / 2 + reach)) if count >= 6 else count - 1
    return statistics.median(ordered), (ordered[high] - ordered[low]) / 2


def time_passes(
    runner: PassRunner,
    meter: EnergyMeter | None,
    gauge: Gauge,
    rules: TimingRules,
    *,
    now_s: Callable[[], float] = time.perf_counter,
) -> PassTimes:
    """Repeat a prepared pass as the drawing shows.

    Raises:
        BackendError: the energy counter stands still or keeps going back.
    """
    batch = _warm_up(runner, rules, now_s)
    for _ in range(WINDOW_TRIES):
        times = _window(runner, meter, gauge, rules, batch, now_s)
        if times is not None:
            return times
    raise BackendError(
        f"the energy counter went back in {WINDOW_TRIES} windows out of {WINDOW_TRIES}",
        cause="the driver was reloaded, or something resets the counter",
        hint="see that nothing else manages this GPU, then run the same command again",
    )


def time_waiting(
    meter: EnergyMeter,
    gauge: Gauge,
    rules: TimingRules,
    *,
    now_s: Callable[[], float] = time.perf_counter,
    sleep_s: Callable[[float], None] = time.sleep,
) -> tuple[EnergyWindow, GaugeReading]:
    """Power of a device that waits: the same window with nothing to do.

    Raises:
        BackendError: as time_passes.
    """
    sleep_s(rules.discard_s)
    for _ in range(WINDOW_TRIES):
        meter.restart()
        begun_s = now_s()
        while True:
            meter.sample()
            power = meter.window()
            if _stop(now_s() - begun_s, rules, power, reached=_good_power(power, rules)):
                break
            sleep_s(IDLE_SAMPLE_S)
        if power.verdict is WindowVerdict.GOOD:
            return power, gauge()
    raise BackendError(
        "the energy counter went back while the device waited",
        hint="see that nothing else manages this GPU, then run the same command again",
    )


def _warm_up(runner: PassRunner, rules: TimingRules, now_s: Callable[[], float]) -> int:
    """Run until launches are steady; how many passes make up a batch."""
    runner.enqueue(1)  # the first pass loads kernels and chooses algorithms
    runner.collect()
    begun_s = now_s()
    while True:
        runner.enqueue(1)
        (last_ms,) = runner.collect()
        if now_s() - begun_s >= rules.warmup_s:
            return max(1, min(LONGEST_BATCH_PASSES, round(BATCH_S * 1e3 / last_ms)))


def _window(
    runner: PassRunner,
    meter: EnergyMeter | None,
    gauge: Gauge,
    rules: TimingRules,
    batch: int,
    now_s: Callable[[], float],
) -> PassTimes | None:
    """One window; None if its energy has to be measured again."""
    if meter is not None:
        meter.restart()
    ahead = runner.runs_ahead
    latencies_ms: list[float] = []
    readings: list[GaugeReading] = []
    power: EnergyWindow | None = None
    begun_s, read_at_s = now_s(), -math.inf
    discarding = True
    if ahead:
        runner.enqueue(batch)
    while True:
        runner.enqueue(batch)
        latencies_ms += runner.collect()
        at_s = now_s()
        if discarding:
            discarding = at_s - begun_s < rules.discard_s
            if not discarding:
                begun_s = at_s
            latencies_ms.clear()
            continue
        if meter is not None:
            meter.sample()
            power = meter.window()
        if at_s - read_at_s >= GAUGE_EVERY_S:
            readings.append(gauge())
            read_at_s = at_s
        reached = _good_latency(latencies_ms, rules) and _good_power(power, rules)
        enough = len(latencies_ms) >= rules.least_passes
        if enough and _stop(at_s - begun_s, rules, power, reached=reached):
            break
    if ahead:
        runner.collect()
    if power is not None and power.verdict is WindowVerdict.WENT_BACK:
        return None
    return _summary(latencies_ms, power, readings)


def _stop(spent_s: float, rules: TimingRules, power: EnergyWindow | None, *, reached: bool) -> bool:
    """Whether a window may end now.

    Raises:
        BackendError: the counter has not moved in three times the longest window.
    """
    if power is not None and power.verdict is WindowVerdict.WENT_BACK:
        return True
    if power is not None and power.verdict is WindowVerdict.TOO_SHORT:
        patience_s = max(3 * rules.longest_s, 2.0)
        if spent_s > patience_s:
            raise BackendError(
                f"the energy counter did not move in {spent_s:.1f} s",
                cause="equal values were read throughout",
                hint="nvidia-smi -q -d POWER shows whether the board counts; otherwise state "
                "the power with --assume-power, for example --assume-power 300W",
            )
        return False
    return spent_s >= rules.longest_s or (spent_s >= rules.window_s and reached)


def _good_latency(latencies_ms: Sequence[float], rules: TimingRules) -> bool:
    if len(latencies_ms) < rules.least_passes:
        return False
    median_ms, half_ms = median_ci(latencies_ms)
    return half_ms <= rules.latency_target * median_ms


def _good_power(power: EnergyWindow | None, rules: TimingRules) -> bool:
    if power is None:
        return True
    return power.verdict is WindowVerdict.GOOD and power.relative_ci <= rules.energy_target


def _summary(
    latencies_ms: Sequence[float], power: EnergyWindow | None, readings: Sequence[GaugeReading]
) -> PassTimes:
    median_ms, half_ms = median_ci(latencies_ms)
    clocks_mhz = [reading.clock_mhz for reading in readings if reading.clock_mhz is not None]
    reasons = [reason for reading in readings for reason in reading.throttle]
    return PassTimes(
        median_ms=median_ms,
        median_ci_ms=half_ms,
        mean_ms=statistics.fmean(latencies_ms),
        passes=len(latencies_ms),
        power_w=power.power_w if power else None,
        power_relative_ci=power.relative_ci if power else None,
        clock_mhz=statistics.fmean(clocks_mhz) if clocks_mhz else None,
        temperature_c=readings[-1].temperature_c if readings else None,
        throttle=tuple(dict.fromkeys(reasons)),
    )
