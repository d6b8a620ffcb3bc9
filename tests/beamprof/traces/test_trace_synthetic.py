"""Synthetic traces: one seed, one trace; the rate that was asked for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beamprof.errors import TraceError
from beamprof.traces import synthetic
from beamprof.traces.arrivals import RateCurve, poisson_arrivals_s, seeded
from beamprof.traces.statistics import trace_statistics
from beamprof.traces.synthetic import Lengths

NODE = Lengths()


def poisson(seed=0):
    return synthetic.poisson(2.0, 600.0, lengths=NODE, seed=seed)


def step(seed=0):
    return synthetic.step(
        4.0, 20.0, 120.0, burst_start_s=30.0, burst_s=30.0, lengths=NODE, seed=seed
    )


def ramp(seed=0):
    return synthetic.ramp(2.0, 6.4, 600.0, lengths=NODE, seed=seed)


def spike(seed=0):
    return synthetic.spike(
        2.0, 120.0, every_s=30.0, requests=2, spike_input_tokens=1500, lengths=NODE, seed=seed
    )


# Written once on Linux x86-64 with numpy 2.4, with and without AVX; any machine must find the same.
GOLDEN = {
    poisson: "6a5a3e8eea6f87fde6470af1df64ab79f5141ef51eb3e7b477c1efe2307f3bd0",
    step: "0347ed86cb67ad388b4205a7d7e380d74f17e1623cd0741269e282a76207e1f7",
    ramp: "b3ec571c171bd86edc3df756c85fe462e32afa3f1acc083878ebaa977bbcb387",
    spike: "a429184619ed0b4fdf27040a292a9dc8433e14ba9e60f301171c751b760cbe49",
}


@pytest.mark.parametrize("make", GOLDEN, ids=lambda make: make.__name__)
def test_one_seed_is_one_trace_everywhere(make):
    assert make(0).sha256() == GOLDEN[make]
    assert make(1).sha256() != GOLDEN[make]


def test_poisson_has_its_rate_and_its_burstiness():
    numbers = trace_statistics(synthetic.poisson(5.0, 3600.0, lengths=NODE, seed=1))
    assert abs(numbers.requests - 18000) < 5 * 18000**0.5
    assert numbers.gap_cv == pytest.approx(1.0, abs=0.03)
    assert numbers.bins[0].dispersion == pytest.approx(1.0, abs=0.1)


def test_the_step_steps_from_4_to_20_and_back():
    trace = step()
    in_burst = (trace.arrival_s >= 30) & (trace.arrival_s < 60)
    assert abs(in_burst.sum() - 600) < 5 * 600**0.5
    assert abs((~in_burst).sum() - 360) < 5 * 360**0.5


def test_the_ramp_grows_in_a_straight_line():
    trace = synthetic.ramp(2.0, 6.4, 6000.0, lengths=NODE, seed=4)
    expected = [(2.0 + 4.4 * (part + 0.5) / 4) * 1500 for part in range(4)]
    found, _ = np.histogram(trace.arrival_s, bins=4, range=(0, 6000))
    assert np.all(np.abs(found - expected) < 5 * np.sqrt(expected))


def test_spikes_come_at_once_and_on_time():
    trace = spike()
    struck = np.isin(trace.arrival_s, [30.0, 60.0, 90.0])
    assert struck.sum() == 6
    assert (trace.input_tokens[struck] == 1500).all()
    quiet = synthetic.poisson(2.0, 120.0, lengths=NODE, seed=0)
    assert (trace.arrival_s[~struck] == quiet.arrival_s).all()


def test_lengths_are_uniform_in_their_range():
    trace = synthetic.poisson(50.0, 600.0, lengths=Lengths(1000, 100, 0.3), seed=2)
    assert (trace.input_tokens.min(), trace.input_tokens.max()) == (700, 1300)
    assert (trace.output_tokens.min(), trace.output_tokens.max()) == (70, 130)
    assert trace.input_tokens.mean() == pytest.approx(1000, rel=0.01)
    equal = synthetic.poisson(5.0, 60.0, lengths=Lengths(10, 1, 0.0), seed=2)
    assert set(equal.input_tokens) == {10}
    assert set(equal.output_tokens) == {1}


rates = st.floats(0, 20)


@settings(max_examples=60)
@given(
    points=st.lists(st.tuples(st.floats(0, 50), rates), min_size=1, max_size=5), first=rates,
    seed=st.integers(0, 3),
)  # fmt: skip
def test_arrivals_ascend_inside_any_curve(points, first, seed):
    times = np.cumsum([0.0, *(gap for gap, _ in points)])
    if times[-1] <= 0:
        return
    curve = RateCurve(tuple(times.tolist()), (first, *(rate for _, rate in points)))
    arrival_s = curve.arrivals_s(seeded(seed))
    assert np.isfinite(arrival_s).all()
    assert np.all(np.diff(arrival_s) >= 0)
    assert np.all((arrival_s >= 0) & (arrival_s <= curve.duration_s))
    assert np.all(arrival_s * 1e6 == pytest.approx(np.rint(arrival_s * 1e6)))
    expected = curve.expected_requests
    assert abs(len(arrival_s) - expected) <= 6 * expected**0.5 + 6


def test_arrivals_fall_where_the_rate_is():
    curve = RateCurve((0.0, 10.0, 10.0, 20.0, 20.0, 30.0), (0.0, 0.0, 9.0, 9.0, 0.0, 0.0))
    arrival_s = curve.arrivals_s(seeded(0))
    assert len(arrival_s) > 50
    assert np.all((arrival_s >= 10) & (arrival_s <= 20))


@pytest.mark.parametrize(
    "senseless",
    [
        lambda: synthetic.poisson(-1.0, 60.0, lengths=NODE, seed=0),
        lambda: synthetic.poisson(float("nan"), 60.0, lengths=NODE, seed=0),
        lambda: synthetic.poisson(1.0, 0.0, lengths=NODE, seed=0),
        lambda: synthetic.poisson(1.0, float("inf"), lengths=NODE, seed=0),
        lambda: synthetic.poisson(0.0, 60.0, lengths=NODE, seed=0),
        lambda: synthetic.poisson(1.0, 60.0, lengths=NODE, seed=-1),
        lambda: synthetic.step(4, 20, 60.0, burst_start_s=40.0, burst_s=30.0, lengths=NODE, seed=0),
        lambda: synthetic.spike(
            1, 60.0, every_s=60.0, requests=1, spike_input_tokens=1, lengths=NODE, seed=0
        ),
        lambda: synthetic.spike(
            1, 60.0, every_s=6.0, requests=0, spike_input_tokens=1, lengths=NODE, seed=0
        ),
        lambda: Lengths(0, 5),
        lambda: Lengths(5, 5, 1.0),
        lambda: RateCurve((0.0, 2.0, 1.0), (1.0, 1.0, 1.0)),
        lambda: RateCurve((1.0, 2.0), (1.0, 1.0)),
        lambda: RateCurve((0.0, 2.0), (1.0,)),
        lambda: poisson_arrivals_s(0.0, 5, 0),
    ],
)
def test_senseless_numbers_are_refused(senseless):
    with pytest.raises(TraceError):
        senseless()
