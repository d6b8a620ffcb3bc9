"""max-q: a power limit, as the driver holds it, and the best one found with hindsight."""

from dataclasses import replace

import numpy as np
import pytest
from replay_cases import make_trace, random_trace

from beam_runtime.types import Slo
from beamprof.errors import ReplayError
from beamprof.replay.goodput import promises
from beamprof.replay.ladder import replay
from beamprof.replay.options import ReplayOptions
from beamprof.replay.plant import play
from beamprof.replay.policies.power_limit import PowerLimit, highest_pass_w
from beamprof.replay.policies.registry import policy_named
from beamprof.replay.policies.static import Static
from beamprof.replay.rivals import AS_GOOD, LIMIT_SHARES, Hindsight, find_limit, find_rivals


def flood(requests=200):
    """Every stage is busy all the time."""
    return make_trace([(0.01 * i, 400, 30) for i in range(requests)], 30)


def test_a_limit_above_all_draws_is_vanilla(table, site):
    assert highest_pass_w(table) == pytest.approx(600.0 / table.tp)  # 200 + 400 J/s at the top
    trace = random_trace(3)
    limited = play(trace, PowerLimit("max-q", 601.0, 1), site)
    vanilla = play(trace, Static("vanilla", None), site)
    assert limited.energy_j == vanilla.energy_j
    assert limited.finish_ms.tolist() == vanilla.finish_ms.tolist()


@pytest.mark.parametrize(("limit_w", "highest_mhz"), [(520.0, 1390), (360.0, 1100), (250.0, 800)])
def test_a_busy_stage_stays_within_its_limit(table, site, limit_w, highest_mhz):
    """The clock goes down to where passes and waiting draw what they may."""
    played = play(flood(), PowerLimit("max-q", limit_w, 1), site)
    steps = played.steps
    settled = steps[steps["issued_ms"] > 1000.0]
    span_ms = site.limits.pp * (settled["finished_ms"].max() - 1000.0)
    waiting_j = 90.0 * (span_ms - settled["busy_ms"].sum()) / 1e3
    power_w = (settled["energy_j"].sum() + waiting_j) / span_ms * 1e3
    assert 0.75 * limit_w < power_w <= 1.02 * limit_w
    used_mhz = np.average(settled["clock"], weights=settled["busy_ms"])
    assert used_mhz <= highest_mhz
    assert played.energy_j < play(flood(), Static("vanilla", None), site).energy_j


def test_waiting_counts_so_that_a_light_load_is_not_slowed(table, site):
    """One pass a second draws more than the limit for a moment, and less on average."""
    trace = make_trace([(float(i), 64, 1) for i in range(20)], 21)
    played = play(trace, PowerLimit("max-q", 500.0, 1), site)
    assert set(played.steps["clock"].tolist()) == {1400.0}


def test_the_limit_is_each_gpus_and_the_table_gives_a_stages(table, site):
    one = play(flood(), PowerLimit("max-q", 360.0, 1), site)
    two = play(flood(), PowerLimit("max-q", 180.0, 2), site)
    assert one.energy_j == two.energy_j


@pytest.mark.parametrize("slo", [Slo(1000.0, 150.0), Slo(4000.0, 300.0)])
def test_hindsight_takes_the_cheapest_limit_that_keeps_as_many(table, site, slo):
    trace = random_trace(8, requests=120, rate=8.0)
    where = replace(site, slo=slo, noise=0.03)
    vanilla = find_rivals(trace, where, [slo])[0].vanilla
    found = find_limit(trace, where, table, vanilla)
    goodput, energy_j = {}, {}
    for share in LIMIT_SHARES:
        limit_w = share * highest_pass_w(table)
        played = play(trace, PowerLimit("x", limit_w, 2, vanilla.chunk_tokens), where)
        goodput[limit_w], energy_j[limit_w] = promises(played).goodput, played.energy_j
    enough = [at for at in goodput if goodput[at] >= vanilla.goodput - AS_GOOD]
    if enough:
        assert found.limit_w == min(enough, key=energy_j.get)
    assert str(Hindsight(trace, where, table).named("max-q")) == str(found)


def test_it_stands_in_the_ladder_with_its_watts(table):
    report = replay(table, random_trace(2), ["max-q", "max-q:400W"], ReplayOptions())
    by_name = {rung.metrics.policy: rung for rung in report.rungs}
    assert "W a GPU, chunk " in by_name["max-q"].setting
    assert by_name["max-q"].metrics.goodput >= report.vanilla.goodput - AS_GOOD
    assert by_name["max-q:400W"].setting == ""


def test_limits_that_no_driver_takes_are_refused(table):
    assert isinstance(policy_named("max-q:300W", table), PowerLimit)
    assert policy_named("max-q:300", table).limit_w == 300.0
    with pytest.raises(ReplayError, match="no GPU holds a limit so far under") as refused:
        policy_named("max-q:20W", table)
    assert "300 W" in refused.value.cause
    for name in ("max-q:warm", "max-q:-5W", "max-q:300J"):
        with pytest.raises(Exception, match="max-q"):
            policy_named(name, table)
