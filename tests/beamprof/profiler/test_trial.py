import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_runtime.types import Source
from beamprof.backends.base import Measurement
from beamprof.profiler.trial import Scatter, merge_trials, pooled_scatter

NONE = Scatter(0.0, 0.0)


def measured(latency_ms: float, energy_j: float = 1.0, **more: object) -> Measurement:
    return Measurement(latency_ms, energy_j, Source.MEASURED, **more)  # type: ignore[arg-type]


@given(st.lists(st.floats(0.1, 1e4), min_size=1, max_size=9))
def test_merging_takes_the_median_and_counts_every_pass(latencies: list[float]) -> None:
    merged = merge_trials([measured(latency, passes=3) for latency in latencies], NONE)
    assert merged.latency_ms == pytest.approx(float(np.median(latencies)))
    assert merged.passes == 3 * len(latencies)


def test_one_trial_is_taken_as_it_is() -> None:
    only = measured(10.0, 2.0, latency_ci_ms=0.1, energy_ci_j=0.2, clock_reached_mhz=1400.0,
                    temperature_c=61.0, throttle="power cap", passes=7)  # fmt: skip
    assert merge_trials([only], Scatter(0.5, 0.5)) == only


def test_trials_that_disagree_widen_the_interval() -> None:
    trials = [measured(10.0, latency_ci_ms=0.1), measured(12.0, latency_ci_ms=0.1)]
    merged = merge_trials(trials, Scatter(latency=0.1, energy=0.02))
    assert merged.latency_ci_ms == pytest.approx(1.96 * 0.1 * 11.0 / math.sqrt(2))
    assert merged.energy_ci_j == pytest.approx(1.96 * 0.02 / math.sqrt(2))


def test_trials_that_agree_keep_their_own_interval() -> None:
    trials = [measured(10.0, latency_ci_ms=0.3), measured(10.0, latency_ci_ms=0.4)]
    merged = merge_trials(trials, NONE)
    assert merged.latency_ci_ms == pytest.approx(0.25)


def test_what_no_trial_knows_stays_unknown() -> None:
    merged = merge_trials([measured(1.0)], NONE)
    assert (merged.latency_ci_ms, merged.clock_reached_mhz, merged.temperature_c) == (None,) * 3


def test_the_hottest_temperature_the_mean_clock_and_every_throttle_reason_stay() -> None:
    merged = merge_trials(
        [
            measured(1.0, temperature_c=60.0, clock_reached_mhz=1400.0, throttle="power cap"),
            measured(1.0, temperature_c=70.0, clock_reached_mhz=1410.0, throttle="power cap"),
            measured(1.0, throttle="thermal, software"),
        ],
        NONE,
    )
    assert merged.temperature_c == 70.0
    assert merged.clock_reached_mhz == pytest.approx(1405.0)
    assert merged.throttle.count("power cap") == 1
    assert "thermal" in merged.throttle


def test_scatter_is_pooled_over_cells_and_recovers_the_noise_it_was_made_with() -> None:
    draw = np.random.default_rng(0)
    cells = [
        [measured(level * n, 5.0) for n in draw.normal(1, 0.03, 2)]
        for level in draw.uniform(1, 100, 500)
    ]
    scatter = pooled_scatter([*cells, [measured(3.0)]])
    assert scatter.latency == pytest.approx(0.03, rel=0.1)
    assert scatter.energy == 0.0


def test_sources_are_never_mixed() -> None:
    with pytest.raises(ValueError, match="one source"):
        merge_trials([measured(1.0), Measurement(1.0, 1.0, Source.MODELLED)], NONE)
    with pytest.raises(ValueError, match="one or more"):
        merge_trials([], NONE)
