"""A trace's numbers, checked by hand on small ones."""

import io

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from beamprof.report.trace_views import BARS, BARS_ASCII, show_trace, sparkline
from beamprof.traces.preparation import report_trace
from beamprof.traces.statistics import rate_over_time, trace_statistics
from beamprof.traces.trace import Provenance, Trace, arrange


def made(arrival_s, duration_s, **more):
    columns = {
        "request_id": range(len(arrival_s)),
        "arrival_s": [float(time) for time in arrival_s],
        "input_tokens": [10 * (i + 1) for i in range(len(arrival_s))],
        "output_tokens": [1] * len(arrival_s),
        **more,
    }
    provenance = Provenance("made here", "test", None, "none")
    return Trace(arrange(pl.DataFrame(columns)), duration_s, provenance, 512)


def test_rates_lengths_and_gaps():
    numbers = trace_statistics(made([0, 1, 1, 4], 8.0))
    assert numbers.requests_per_s == 0.5
    assert numbers.tokens_per_s == (10 + 20 + 30 + 40 + 4) / 8
    assert (numbers.input_tokens_per_s, numbers.output_tokens_per_s) == (12.5, 0.5)
    assert (numbers.input.mean_tokens, numbers.input.p50_tokens) == (25, 25)
    assert (numbers.input.p90_tokens, numbers.input.max_tokens) == (37, 40)
    assert numbers.longest_request_tokens == 41
    assert (numbers.distinct_arrivals, numbers.copies) == (3, 0)
    gaps = np.array([1, 0, 3])
    assert numbers.gap_cv == pytest.approx(gaps.std() / gaps.mean())


@pytest.mark.parametrize(("lengths", "said"), [([10, 10, 20, 30], True), ([10] * 4, False)])
def test_a_request_that_is_there_twice_is_told(lengths, said):
    """But not where all are of one length, as benchmarks send them."""
    trace = made([0, 0, 1, 1], 4.0, input_tokens=lengths)
    console = Console(file=io.StringIO(), width=100)
    show_trace(report_trace(trace), "next", console)
    assert ("repeat another's arrival" in console.file.getvalue()) == said


def test_bins_are_whole_and_half_open():
    numbers = trace_statistics(made([0, 1, 1.5, 3], 3.0))
    (second,) = numbers.bins  # 10 s and 60 s are wider than the trace
    assert (second.bin_s, second.bins) == (1, 3)
    # Requests per bin 1, 2, 0: the arrival at 3.0 s lies beyond the last bin.
    assert second.dispersion == pytest.approx((1 + 4 + 0) / 3 - 1)
    assert second.max_tokens_per_s == 21 + 31
    assert second.p90_tokens_per_s == pytest.approx(np.percentile([11, 52, 0], 90))


def test_a_trace_of_one_request_or_one_moment_has_no_gap_statistics():
    assert trace_statistics(made([0], 0.5)).gap_cv is None
    assert trace_statistics(made([0], 0.5)).bins == ()
    assert trace_statistics(made([2, 2, 2], 4.0)).gap_cv is None


def test_clients_sessions_and_prefixes_are_counted_where_they_are():
    bare = trace_statistics(made([0, 1, 2], 4.0))
    assert (bare.clients, bare.sessions, bare.prefix, bare.observed) == (None, None, None, None)
    numbers = trace_statistics(
        made(
            [0, 1, 2],
            4.0,
            client_id=["a", "b", "a"],
            session_id=["s", None, None],
            prefix_hashes=[[1, 2], [1, 3], None],
        )
    )
    assert (numbers.clients, numbers.sessions) == (2, 1)
    assert numbers.prefix is not None
    assert numbers.prefix.source == "prefix_hashes"


def test_bins_are_counted_not_held_however_long_the_trace_lasts():
    numbers = trace_statistics(made([0, 0, 3e9], 3e9 + 0.5))
    second = numbers.bins[0]
    assert second.bins == 3_000_000_000
    assert second.max_tokens_per_s == 32.0
    assert second.p90_tokens_per_s == 0.0
    # One of three billion bins holds two (the last arrival is beyond whole bins).
    assert second.dispersion == pytest.approx(2.0)


@given(
    arrivals=st.lists(st.floats(0, 40, allow_nan=False), min_size=1, max_size=30),
    tail_s=st.floats(1, 30),
)
def test_bins_are_those_of_a_plain_count(arrivals, tail_s):
    trace = made(sorted(arrivals), max(arrivals) + tail_s)
    for load in trace_statistics(trace).bins:
        counts = np.zeros(load.bins)
        tokens = np.zeros(load.bins)
        for at, size in zip(trace.arrival_s, trace.input_tokens + trace.output_tokens, strict=True):
            if at // load.bin_s < load.bins:
                counts[int(at // load.bin_s)] += 1
                tokens[int(at // load.bin_s)] += size
        assert load.max_tokens_per_s == tokens.max() / load.bin_s
        assert load.p90_tokens_per_s == pytest.approx(np.percentile(tokens, 90) / load.bin_s)
        expected = counts.var() / counts.mean() if counts.mean() else 0.0
        assert load.dispersion == pytest.approx(expected)


def test_the_rate_over_time_keeps_every_request():
    rates = rate_over_time(made([0, 1, 1, 8], 8.0), 4)
    assert rates.tolist() == [1.5, 0.0, 0.0, 0.5]


def test_a_sparkline_shows_whatever_is_above_nothing():
    assert sparkline(np.array([0.0, 1e-9, 0.5, 1.0]), BARS) == " ▁▄█"
    assert sparkline(np.array([0.0, 1e-9, 0.5, 1.0]), BARS_ASCII) == " .=#"
    assert sparkline(np.zeros(3), BARS) == "   "
