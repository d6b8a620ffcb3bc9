"""Window, limit, thinning: what holds for every trace."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beamprof.errors import TraceError
from beamprof.traces import synthetic
from beamprof.traces.policies import OverLimit
from beamprof.traces.preparation import Preparation
from beamprof.traces.statistics import tokens_per_s
from beamprof.traces.transforms import cap_total_tokens, thin_to_tokens_per_s, window

HOUR = synthetic.ramp(2.0, 6.4, 300.0, lengths=synthetic.Lengths(spread=0.9), seed=3)


def totals(trace):
    return trace.input_tokens + trace.output_tokens


@settings(max_examples=60)
@given(cuts=st.lists(st.floats(0, 300), min_size=1, max_size=4, unique=True))
def test_windows_that_tile_a_trace_hold_every_request_once(cuts):
    edges = [0.0, *sorted(cut for cut in cuts if 0 < cut < 300), 300.0]
    seen, arrivals = [], []
    for start_s, end_s in itertools.pairwise(edges):
        try:
            part = window(HOUR, start_s, end_s)
        except TraceError:
            continue  # nothing arrived in it
        assert part.duration_s == pytest.approx(end_s - start_s)
        counts = part.provenance.transforms[-1].counts
        assert counts["outside_window"] == HOUR.requests - part.requests
        seen += part.frame["request_id"].to_list()
        arrivals += (part.arrival_s + start_s).tolist()
    assert seen == HOUR.frame["request_id"].to_list()
    assert arrivals == pytest.approx(HOUR.arrival_s.tolist(), abs=1e-9)


def test_an_arrival_on_a_cut_belongs_to_the_window_that_begins_there():
    cut_s = float(HOUR.arrival_s[50])
    before, after = window(HOUR, 0.0, cut_s), window(HOUR, cut_s, HOUR.duration_s)
    assert before.frame["request_id"].to_list() == list(range(50))
    assert after.frame["request_id"].to_list() == list(range(50, HOUR.requests))
    assert after.arrival_s[0] == 0.0


def test_a_window_over_the_whole_trace_changes_nothing():
    assert window(HOUR, 0.0, HOUR.duration_s).frame.equals(HOUR.frame)


@pytest.mark.parametrize("span", [(10.0, 10.0), (20.0, 10.0), (-1.0, 10.0), (0.0, 301.0)])
def test_a_senseless_window_is_refused(span):
    with pytest.raises(TraceError, match="a window lies inside"):
        window(HOUR, *span)


@settings(max_examples=60)
@given(limit=st.integers(2, 3000))
def test_truncation_keeps_every_request_under_the_limit_and_counts_what_it_cut(limit):
    cut = cap_total_tokens(HOUR, limit, OverLimit.TRUNCATE)
    counts = cut.provenance.transforms[-1].counts
    assert cut.requests == HOUR.requests
    assert totals(cut).max() <= limit
    assert cut.input_tokens.min() >= 1
    assert cut.output_tokens.min() >= 1
    fits = totals(HOUR) <= limit
    assert (totals(cut)[fits] == totals(HOUR)[fits]).all()
    assert (totals(cut)[~fits] == limit).all()
    assert counts["truncated_requests"] == (~fits).sum()
    lost = counts["truncated_input_tokens"] + counts["truncated_output_tokens"]
    assert lost == totals(HOUR).sum() - totals(cut).sum()


@settings(max_examples=30)
@given(limit=st.integers(700, 3000))
def test_dropping_leaves_exactly_those_that_fit(limit):
    kept = cap_total_tokens(HOUR, limit, OverLimit.DROP)
    fits = totals(HOUR) <= limit
    assert kept.frame.equals(HOUR.frame.filter(fits))
    assert kept.provenance.transforms[-1].counts == {"over_max_total_tokens": (~fits).sum()}


def test_a_request_over_the_limit_is_an_error_when_asked():
    longest = int(totals(HOUR).max())
    assert cap_total_tokens(HOUR, longest, OverLimit.ERROR).requests == HOUR.requests
    with pytest.raises(TraceError, match=f"exceed {longest - 1} tokens") as caught:
        cap_total_tokens(HOUR, longest - 1, OverLimit.ERROR)
    assert "--over-limit" in str(caught.value)


def test_dropping_everything_and_a_limit_of_one_are_errors():
    with pytest.raises(TraceError, match="no requests") as caught:
        cap_total_tokens(HOUR, 2, OverLimit.DROP)
    assert f"over_max_total_tokens {HOUR.requests}" in str(caught.value)
    with pytest.raises(TraceError, match="holds none"):
        cap_total_tokens(HOUR, 1, OverLimit.TRUNCATE)


@settings(max_examples=40)
@given(share=st.floats(0.02, 1.0), lower=st.floats(0.1, 1.0), seed=st.integers(0, 5))
def test_thinning_hits_the_target_and_is_nested(share, lower, seed):
    target = share * tokens_per_s(HOUR)
    thin = thin_to_tokens_per_s(HOUR, target, seed)
    nearest = totals(HOUR).max() / HOUR.duration_s / 2  # half of the longest request
    assert abs(tokens_per_s(thin) - target) <= nearest * (1 + 1e-9)
    assert thin.duration_s == HOUR.duration_s
    assert thin.provenance.transforms[-1].counts == {"thinned_out": HOUR.requests - thin.requests}
    thinner = thin_to_tokens_per_s(HOUR, lower * target, seed)
    assert set(thinner.frame["request_id"]) <= set(thin.frame["request_id"])


def test_thinning_is_one_draw_per_seed():
    halves = [
        thin_to_tokens_per_s(HOUR, tokens_per_s(HOUR) / 2, seed).frame["request_id"].to_list()
        for seed in (1, 1, 2)
    ]
    assert halves[0] == halves[1] != halves[2]


@pytest.mark.parametrize("target", [0.0, -5.0, float("nan"), 1e9])
def test_a_target_that_thinning_cannot_reach_is_refused(target):
    with pytest.raises(TraceError, match="thinning can only lower"):
        thin_to_tokens_per_s(HOUR, target, 0)


def test_preparation_goes_window_limit_load_and_records_each():
    prepared = Preparation(
        window_s=(100.0, None),
        max_total_tokens=2000,
        over_limit=OverLimit.DROP,
        target_tps=3000.0,
        seed=7,
    ).apply(HOUR)
    names = [step.name for step in prepared.provenance.transforms]
    assert names == ["generate", "window", "max_total_tokens", "target_tps"]
    steps = prepared.provenance.transforms
    for before, after in itertools.pairwise(steps):
        assert before.requests_after == after.requests_before
    for one in steps[1:]:
        assert one.requests_before - one.requests_after == sum(one.counts.values())
    assert prepared.duration_s == 200.0
    assert totals(prepared).max() <= 2000
    assert tokens_per_s(prepared) == pytest.approx(3000.0, rel=0.01)
    assert np.all(np.diff(prepared.arrival_s) >= 0)
