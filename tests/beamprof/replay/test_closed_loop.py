"""A closed loop: so many requests in flight, each that ends sends the next."""

from dataclasses import replace

import numpy as np
import pytest
from replay_cases import make_trace, random_trace

from beamprof.cli.main import main
from beamprof.errors import ReplayError
from beamprof.replay.ladder import replay
from beamprof.replay.options import ReplayOptions
from beamprof.replay.plant import play
from beamprof.replay.policies.registry import policy_named
from beamprof.replay.policies.static import Static


@pytest.mark.parametrize("concurrency", [1, 3, 8])
def test_there_are_never_more_or_fewer_in_flight(site, concurrency):
    trace = random_trace(4, requests=60)
    closed = replace(site, concurrency=concurrency, noise=0.03, front_end_ms=5.0)
    played = play(trace, Static("one", 1000), closed)
    assert np.isfinite(played.finish_ms).all()
    assert played.arrival_ms[:concurrency].tolist() == [0.0] * concurrency
    assert (np.diff(played.arrival_ms) >= 0).all()
    # Every later request is sent the moment another ends.
    ends = np.sort(played.finish_ms)[: trace.requests - concurrency]
    assert played.arrival_ms[concurrency:] == pytest.approx(ends)
    assert (played.first_token_ms - played.arrival_ms > 5.0).all()
    assert played.duration_ms == played.end_ms == played.finish_ms.max()


def test_the_traces_arrivals_do_not_count(site):
    lengths = [(100 + 30 * i, 5 + i) for i in range(12)]
    slow = make_trace([(100.0 * i, *one) for i, one in enumerate(lengths)], 2000)
    fast = make_trace([(0.001 * i, *one) for i, one in enumerate(lengths)], 1)
    one, other = (
        play(trace, Static("one", 1000), replace(site, concurrency=2)) for trace in (slow, fast)
    )
    assert one.finish_ms.tolist() == other.finish_ms.tolist()
    assert one.energy_j == other.energy_j


def test_as_many_as_there_are_is_all_at_once(site):
    trace = random_trace(4, requests=10)
    together = make_trace(
        [(0.0, i, o) for i, o in zip(trace.input_tokens, trace.output_tokens, strict=True)], 1
    )
    closed = play(trace, Static("one", 1000), replace(site, concurrency=50))
    opened = play(together, Static("one", 1000), site)
    assert closed.finish_ms.tolist() == opened.finish_ms.tolist()


def test_idling_counts_until_the_last_token(site):
    played = play(random_trace(4, requests=20), Static("one", 1000), replace(site, concurrency=1))
    waiting_ms = site.limits.pp * played.end_ms - played.busy_ms
    assert played.idle_energy_j == pytest.approx(site.cost.idle_power_w[0] * waiting_ms / 1e3)


@pytest.mark.parametrize("policy", ["beam", "window-dvfs", "beam-paper"])
def test_policies_that_decide_serve_it_too(table, site, policy):
    played = play(random_trace(2), policy_named(policy, table), replace(site, concurrency=4))
    assert np.isfinite(played.finish_ms).all()


def test_the_report_says_so(table, tmp_path, capsys):
    report = replay(table, random_trace(1), [], ReplayOptions(concurrency=4))
    assert "a closed loop of 4 requests, arrivals not used" in report.assumed
    with pytest.raises(ReplayError, match="--concurrency"):
        ReplayOptions(concurrency=0)
    assert main(["replay", "-t", "t", "--trace", "x", "--concurrency", "0"]) == 2
    assert "--concurrency" in capsys.readouterr().err
