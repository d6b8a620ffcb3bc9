"""Requests that bring promises of their own are served and counted by them."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from replay_cases import make_trace, random_trace

from beam_runtime.emulator.promises import E2E, GAP, TPOT
from beam_runtime.types import Slo
from beamprof.errors import ReplayError
from beamprof.replay.goodput import promises
from beamprof.replay.ladder import replay
from beamprof.replay.metrics import measure, servable_in_time
from beamprof.replay.plant import play
from beamprof.replay.policies.registry import policy_named
from beamprof.replay.promised import own_slos, promised_slos
from beamprof.replay.results import request_frame


def with_columns(trace, **columns):
    frame = trace.frame.with_columns(
        **{name: pl.Series(values, dtype=pl.Float64) for name, values in columns.items()}
    )
    return trace.transformed(frame, "slo", {}, {})


def test_a_requests_own_promise_stands_in_for_the_replays():
    trace = with_columns(
        make_trace([(i, 10, 5) for i in range(4)], 5),
        slo_ttft_ms=[None, 50.0, None, 70.0],
        slo_tpot_ms=[None, None, 30.0, None],
        slo_e2e_ms=[None, None, None, 900.0],
    )
    rows = promised_slos(trace, Slo(1000.0, 200.0, tbt_share=0.9))
    assert rows["ttft_slo_ms"].tolist() == [1000.0, 50.0, 1000.0, 70.0]
    assert rows["stream_slo_ms"].tolist() == [200.0, 200.0, 30.0, 900.0]
    assert rows["slo_kind"].tolist() == [GAP, GAP, TPOT, E2E]
    assert rows["tbt_share"].tolist() == [0.9] * 4
    assert own_slos(trace) == 3
    assert own_slos(make_trace([(0, 1, 1)], 1)) == 0


def test_two_promises_of_one_stream_are_refused(site):
    trace = with_columns(
        make_trace([(0, 10, 5), (1, 10, 5)], 5),
        slo_tbt_ms=[None, 50.0],
        slo_e2e_ms=[900.0, 900.0],
    )
    with pytest.raises(ReplayError, match="one thing of its stream") as refused:
        promised_slos(trace, site.slo)
    assert refused.value.cause == "request 1 brings slo_e2e_ms and slo_tbt_ms"


def test_goodput_counts_each_request_by_its_own(table, site):
    trace = random_trace(5, requests=80, rate=8.0)
    random = np.random.default_rng(1)
    ttft_ms = random.choice([60.0, 150.0, 1e4], 80)
    tbt_ms = np.where(random.random(80) < 0.5, 50.0, 500.0)
    own = with_columns(trace, slo_ttft_ms=ttft_ms.tolist(), slo_tbt_ms=tbt_ms.tolist())
    where = replace(site, noise=0.05)
    played = play(own, policy_named("static:1000", table), where)
    kept = promises(played)
    assert kept.first.tolist() == (played.first_token_ms - played.arrival_ms <= ttft_ms).tolist()
    worst_ms = np.zeros(80)
    np.maximum.at(worst_ms, played.tokens["request"], played.tokens["gap_ms"])
    assert kept.stream.tolist() == (worst_ms <= tbt_ms).tolist()
    assert 0 < kept.both.sum() < 80
    metrics = measure(played, servable_in_time(own, where, 512))
    assert metrics.goodput == kept.goodput
    late = played.tokens["gap_ms"] > tbt_ms[played.tokens["request"]]
    assert metrics.attainment.tbt == pytest.approx(1 - late.mean())
    assert request_frame(played, own.frame["request_id"])["late_tokens"].sum() == late.sum()


def test_who_could_be_served_in_time_is_asked_by_request(site):
    rows = [(float(i), 3000, 1) for i in range(2)]
    own = with_columns(make_trace(rows, 5), slo_ttft_ms=[200.0, None])
    assert servable_in_time(own, replace(site, slo=Slo(5000.0)), 512).tolist() == [False, True]


def test_beam_serves_the_strict_as_strictly_as_they_ask(table, site):
    """Half of the requests allow 60 ms a token, half 400: the first keep theirs, too."""
    trace = random_trace(7, requests=60, rate=2.0)
    strict = np.arange(60) % 2 == 0
    own = with_columns(trace, slo_tbt_ms=np.where(strict, 60.0, 400.0).tolist())
    where = replace(site, slo=Slo(2000.0, 400.0))
    loose = play(trace, policy_named("beam", table), where)
    played = play(own, policy_named("beam", table), where)
    assert promises(played).both[strict].mean() > 0.9
    # Played for 400 ms alone, hardly one of them would have been kept.
    assert promises(loose, promised_slos(own, where.slo)).both[strict].mean() < 0.3


def test_the_report_says_how_many(table):
    trace = random_trace(1)
    own = with_columns(trace, slo_ttft_ms=[100.0] * 30 + [None] * 10)
    assert "30 of 40 requests with SLOs of their own" in replay(table, own, []).assumed
    assert not any("of their own" in words for words in replay(table, trace, []).assumed)
