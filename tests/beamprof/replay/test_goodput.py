"""Goodput by hand, for every kind of SLO; the rivals found with hindsight against a full search."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from replay_cases import random_trace

from beam_runtime.types import Slo
from beamprof.replay.goodput import promises, tpot_ms
from beamprof.replay.plant import play
from beamprof.replay.policies.registry import policy_named
from beamprof.replay.policies.static import Static
from beamprof.replay.promised import promised_slos
from beamprof.replay.rivals import AS_GOOD, CHUNKS, find_rivals


@pytest.fixture(scope="module")
def trace():
    return random_trace(5, requests=80, rate=8.0)


@pytest.fixture(scope="module")
def played(table, site, trace):
    return play(trace, policy_named("static:1000", table), replace(site, noise=0.05))


def token_times(played):
    """By request: when each of its tokens came."""
    times = [[first] for first in played.first_token_ms.tolist()]
    for request, at_ms, _ in played.tokens.tolist():
        times[int(request)].append(at_ms)
    return [sorted(one) for one in times]


@pytest.mark.parametrize(
    ("slo", "keeps"),
    [
        (Slo(150.0, 90.0), lambda arrival, t: all(b - a <= 90 for a, b in itertools.pairwise(t))),
        (
            Slo(150.0, 60.0, tbt_share=0.8),
            lambda arrival, t: (
                sum(b - a > 60 for a, b in itertools.pairwise(t)) <= 0.2 * (len(t) - 1)
            ),
        ),
        (
            Slo(150.0, tpot_ms=60.0),
            lambda arrival, t: len(t) == 1 or (t[-1] - t[0]) / (len(t) - 1) <= 60.0,
        ),
        (Slo(150.0, e2e_ms=1300.0), lambda arrival, t: t[-1] - arrival <= 1300.0),
    ],
    ids=["gap", "share of gaps", "tpot", "e2e"],
)
def test_a_request_counts_where_every_promise_was_kept(played, trace, slo, keeps):
    kept = promises(played, promised_slos(trace, slo))
    times = token_times(played)
    stream = [keeps(a, t) for a, t in zip(played.arrival_ms, times, strict=True)]
    first = [t[0] - a <= 150.0 for a, t in zip(played.arrival_ms, times, strict=True)]
    assert 0 < sum(stream) < 80 and 0 < sum(first) < 80  # the case tells them apart
    assert kept.stream.tolist() == stream
    assert kept.first.tolist() == first
    assert kept.goodput == pytest.approx(np.mean(np.array(stream) & np.array(first)))


def test_tokens_in_time_flatter_requests(played, trace):
    slo = Slo(1e6, 90.0)
    in_time = float((played.tokens["gap_ms"] <= 90.0).mean())
    assert promises(played, promised_slos(trace, slo)).goodput < in_time


def test_one_token_answers_have_no_stream_to_break(site):
    trace = random_trace(1)
    lone = trace.transformed(
        trace.frame.with_columns(output_tokens=1).cast(
            {"output_tokens": trace.frame.schema["output_tokens"]}
        ),
        "lone",
        {},
        {},
    )
    promised = promised_slos(lone, Slo(1e6, tpot_ms=1e-3))
    kept = promises(play(lone, Static("one", 1400), site), promised)
    assert kept.goodput == 1.0


def test_unfinished_requests_keep_nothing(played, trace):
    finish_ms = played.finish_ms.copy()
    finish_ms[3] = np.nan
    cut = replace(played, finish_ms=finish_ms)
    assert np.isnan(tpot_ms(cut)[3])
    for slo in (Slo(1e6, tpot_ms=1e6), Slo(1e6, e2e_ms=1e9)):
        both = promises(cut, promised_slos(trace, slo)).both
        assert both.tolist() == [number != 3 for number in range(80)]


def test_a_static_setting_plays_the_same_whatever_is_promised(site):
    trace = random_trace(2)
    plays = [
        play(trace, Static("one", 1000), replace(site, slo=slo, noise=0.03))
        for slo in (Slo(100.0, 20.0), Slo(9e3, tpot_ms=500.0), Slo(9e3, e2e_ms=10.0))
    ]
    assert plays[0].energy_j == plays[1].energy_j == plays[2].energy_j
    assert plays[0].finish_ms.tolist() == plays[1].finish_ms.tolist() == plays[2].finish_ms.tolist()


@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_rivals_are_those_of_every_clock_and_chunk(site, noise):
    trace = random_trace(8, requests=150, rate=6.0)
    where = replace(site, noise=noise)
    slos = (Slo(400.0, 150.0), Slo(400.0, 90.0), Slo(300.0, tpot_ms=80.0), Slo(800.0, e2e_ms=2e3))
    every = {
        (clock, chunk): play(trace, Static("one", clock, chunk), where)
        for clock in site.cost.clocks_mhz.tolist()
        for chunk in CHUNKS
    }
    for slo, found in zip(slos, find_rivals(trace, where, slos), strict=True):
        promised = promised_slos(trace, slo)
        goodput = {at: promises(one, promised).goodput for at, one in every.items()}
        most = max(goodput[1400, chunk] for chunk in CHUNKS)
        assert found.vanilla.clock_mhz == 1400
        assert found.vanilla.goodput == pytest.approx(most)
        enough = [at for at in every if goodput[at] >= most - AS_GOOD]
        cheapest = min(every[at].energy_j for at in enough)
        assert found.static.energy_j == pytest.approx(cheapest)
        assert found.static.goodput >= most - AS_GOOD
        assert found.plays <= len(every)
