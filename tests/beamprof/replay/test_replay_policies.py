"""Policies in cases whose answer is known by hand or by brute force."""

from dataclasses import replace

import numpy as np
import pytest
from replay_cases import CLOCKS_MHZ, IDLE_W, make_trace, random_trace

from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import Slo, StepShape
from beamprof.errors import ReplayError
from beamprof.replay.knee import knee_mhz
from beamprof.replay.plant import play
from beamprof.replay.policies import beam_paper
from beamprof.replay.policies.beam import PARTS
from beamprof.replay.policies.oracle import lower_bound
from beamprof.replay.policies.registry import policy_named
from beamprof.tables.table_file import seal_table

PLAYABLE = ("vanilla", "static:800", "window-dvfs", "lowest-feasible", "beam-paper", "beam")


def clocks(played):
    return set(played.steps["clock"].astype(int).tolist())


def test_vanilla_runs_at_the_top_with_its_chunk(table, site):
    trace = make_trace([(0, 1000, 3)], 5)
    played = play(trace, policy_named("vanilla", table), site)
    assert clocks(played) == {1400}
    assert played.steps["prefill_tokens"].tolist() == [256, 256, 256, 232, 0, 0]
    wide = play(trace, policy_named("vanilla:2048", table), site)
    assert wide.steps["prefill_tokens"].tolist() == [1000, 0, 0]


def test_static_knee_is_the_clock_of_least_energy_over_all_steps(table, site):
    # Power 200 + 400 x^3, time 0.5 + 0.5 / x, for every step alike: the least product.
    by_hand = min(CLOCKS_MHZ, key=lambda c: (200 + 400 * (c / 1400) ** 3) * (0.5 + 0.5 * 1400 / c))
    assert knee_mhz(table) == by_hand
    played = play(make_trace([(0, 100, 5)], 5), policy_named("static:knee", table), site)
    assert clocks(played) == {by_hand}


def test_the_knee_counts_every_step_the_same(table):
    # One huge step that is cheapest at the top does not outvote the others.
    columns = {name: values.copy() for name, values in table.columns.items()}
    huge = (columns["prefill_tokens"] == 512) & (columns["kind"] == "forward")
    columns["energy_j"][huge] = 1e5 / columns["clock_mhz"][huge]
    assert knee_mhz(seal_table(columns, table.metadata)) == knee_mhz(table)


def test_lowest_feasible_follows_the_slo_down_and_up(table, site):
    trace = make_trace([(0.0, 64, 60)], 5)

    def settled(slo):
        where = replace(site, slo=slo)
        played = play(trace, policy_named("lowest-feasible", table), where)
        return set(played.steps["clock"][3:].astype(int).tolist())

    assert settled(Slo(5000.0, 1000.0)) == {600}
    assert settled(Slo(40.0, 20.0)) == {1400}  # nothing is in time: as fast as it goes


def test_window_dvfs_speeds_up_with_the_load_and_waits_for_its_window(table, site):
    light = make_trace([(0.5 * i, 100, 10) for i in range(60)], 30)
    flood = make_trace([(0.05 * i, 1500, 10) for i in range(600)], 30)
    site = replace(site, slo=Slo(250.0, 150.0))
    calm = play(light, policy_named("window-dvfs", table), site)
    busy = play(flood, policy_named("window-dvfs", table), site)
    assert calm.steps["clock"][-1] < 1400
    assert busy.steps["clock"][-1] == 1400
    in_first_window = calm.steps["issued_ms"] < 5000
    assert (calm.steps["clock"][in_first_window] == 1400).all()


def best_of_paper(cost, prompt, slo):
    """Brute force over the formulas for one prompt that has just come, nobody decoding."""
    pp, o = 4, 12.0
    edges = cost.edges_tokens
    found = []
    for chunk in beam_paper.CHUNKS:
        full, rest = divmod(prompt, chunk)

        def at(tokens):
            size = int(min(e for e in edges if e >= tokens))
            return cost.predict(StepShape(size))

        for m, clock in enumerate(cost.clocks_mhz):
            t, e = at(chunk).latency_ms[m], at(chunk).energy_j[m]
            t_rest, e_rest = (at(rest).latency_ms[m], at(rest).energy_j[m]) if rest else (0, 0)
            kept = (t + o) * pp <= slo.tbt_ms
            kept &= (full + pp - 1) * (t + o) + t_rest <= slo.ttft_ms
            if kept:
                found.append((pp * (full * e + e_rest), int(clock), chunk))
    return min(found) if found else None


@pytest.mark.parametrize("prompt", [200, 300, 1000, 2500])
def test_beam_paper_takes_the_cheapest_point_of_its_formulas(table, site, cost, prompt):
    slo = Slo(1500.0, 250.0)
    _, clock, chunk = best_of_paper(cost, prompt, slo)
    played = play(
        make_trace([(0.0, prompt, 1)], 5),
        policy_named("beam-paper", table),
        replace(site, slo=slo, limits=replace(site.limits, clock_delay_ms=0.0)),
    )
    assert played.steps["chunk_tokens"][0] == chunk
    assert played.steps["clock"][0] == clock


def test_beam_paper_with_nothing_in_time_is_fast_with_256_or_128(table, site):
    def first(slo):
        where = replace(site, slo=slo)
        return play(
            make_trace([(0.0, 1000, 1)], 5), policy_named("beam-paper", table), where
        ).steps[["clock", "chunk_tokens"]][0].tolist()  # fmt: skip

    assert first(Slo(10.0, 1000.0)) == (1400, 256)
    assert first(Slo(1000.0, 10.0)) == (1400, 128)


def test_beam_paper_slows_decodes_after_five_decode_only_steps(table, site):
    where = replace(site, slo=Slo(60.0, 1000.0), limits=replace(site.limits, clock_delay_ms=0.0))
    played = play(make_trace([(0.0, 256, 30)], 5), policy_named("beam-paper", table), where)
    clocks_mhz = played.steps["clock"].tolist()
    # TTFT cannot be kept: the prompt and five decodes at the top, then the cheapest clock.
    assert set(clocks_mhz[:6]) == {1400}
    assert set(clocks_mhz[7:]) == {600} or max(clocks_mhz[7:]) < 1400


def test_beam_paper_merges_decodes_into_the_microbatches_it_chose(table, site):
    where = replace(site, slo=Slo(5000.0, 400.0))
    rows = [(0.02 * i, 64, 200) for i in range(8)]
    steps = play(make_trace(rows, 20), policy_named("beam-paper", table), where).steps
    settled = steps[(steps["prefill_tokens"] == 0) & (steps["running_requests"] == 8)][20:]
    assert set(settled["microbatches"]) == {1}
    assert set(settled["decode_requests"]) == {8}


def test_beam_saves_energy_and_keeps_what_vanilla_keeps(table, site):
    trace = random_trace(11, requests=60, rate=2.0)
    slow = replace(site, slo=Slo(1500.0, 200.0))
    vanilla = play(trace, policy_named("vanilla", table), slow)
    beam = play(trace, policy_named("beam", table), slow)
    assert beam.energy_j < 0.8 * vanilla.energy_j
    ttft_ms = beam.first_token_ms - beam.arrival_ms
    assert (ttft_ms <= 1500.0).all()
    assert (beam.tokens["gap_ms"] <= 200.0).mean() >= 0.999


@pytest.mark.parametrize("seed", range(3))
def test_nothing_stays_under_the_oracle(table, site, cost, seed):
    trace = random_trace(seed, requests=50, rate=3.0)
    bound = lower_bound(trace, cost, site.limits, 512)
    assert bound.idle_j == pytest.approx(4 * IDLE_W * trace.duration_s)
    assert bound.tokens_j > 0
    for name in PLAYABLE:
        assert play(trace, policy_named(name, table), site).energy_j >= bound.energy_j


def test_the_oracle_is_reached_by_full_steps_at_the_best_clock(table, site, cost):
    # Prompts that fill 512-token steps, one token each, nothing else: only idling differs.
    trace = make_trace([(0.0, 512, 1)] * 40, 10)
    bound = lower_bound(trace, cost, site.limits, 512)
    best = min(play(trace, chunked(clock), site).energy_j for clock in CLOCKS_MHZ)
    assert best >= bound.energy_j
    assert best == pytest.approx(bound.energy_j, rel=0.02)


def chunked(clock_mhz):
    from beamprof.replay.policies.static import Static

    return Static("full", clock_mhz, 512)


@pytest.mark.parametrize(
    "name",
    [
        "venilla",
        "static:",
        "static:slow",
        "static:5000",
        "beam:fast",
        "beam:clock+fast",
        "beam:no-fast",
        "beam:chunk",
        "vanilla:0",
        "",
        *(f"{kind}:{'9' * 5000}" for kind in ("vanilla", "static", "static:1410")),
    ],
    ids=range(13),
)
def test_a_policy_that_is_none(table, name):
    with pytest.raises(ReplayError) as caught:
        policy_named(name, table)
    assert caught.value.cause or "known are vanilla" in caught.value.hint


def test_beam_with_parts_left_out_has_those_knobs_as_vllm_has_them(table, site):
    trace = random_trace(4, requests=60, rate=3.0)

    def seen(name, column):
        return set(play(trace, policy_named(name, table), site).steps[column].tolist())

    assert seen("beam:clock", "chunk_tokens") == {256}
    assert seen("beam:clock", "microbatches") == {1}
    assert len(seen("beam:clock", "clock")) > 1
    assert len(seen("beam:clock+chunk", "chunk_tokens")) > 1
    assert policy_named("beam:no-pace", table) is not None


def test_every_part_together_is_beam(table, site):
    trace = random_trace(5, requests=30)
    whole = "beam:clock+" + "+".join(PARTS)
    one, other = (play(trace, policy_named(name, table), site) for name in ("beam", whole))
    assert np.array_equal(one.steps, other.steps)


def test_policies_may_be_played_twice(table, site):
    trace = random_trace(2)
    for name in PLAYABLE:
        policy = policy_named(name, table)
        once, again = play(trace, policy, site), play(trace, policy, site)
        assert once.energy_j == again.energy_j, name
        assert np.array_equal(once.steps, again.steps), name


def test_a_cost_at_other_clocks_is_refused(site, table):
    other = StepCost.from_table(table, [600, 1400])
    with pytest.raises(ReplayError, match="same clocks"):
        replace(site, believed=other)


def test_paced_streams_leave_seats_to_those_to_come(table, site):
    # Eight seats, and a request every 0.4 s that a paced engine would hold for six seconds.
    where = replace(site, limits=replace(site.limits, max_num_seqs=8), slo=Slo(1000.0, 300.0))
    trace = make_trace([(0.4 * i, 32, 20) for i in range(60)], 30)
    played = play(trace, policy_named("beam", table), where)
    steps = played.steps[played.steps["prefill_tokens"] == 0]
    assert (steps["pace_ms"] > 0.0).any()
    assert steps["running_requests"].mean() < 7.0
    assert (played.first_token_ms - played.arrival_ms <= 1000.0).mean() > 0.9


def test_paced_streams_leave_kv_blocks_to_those_to_come(table, site):
    """Where the KV cache is what is short, whoever stays long keeps others out."""
    trace = random_trace(3, requests=200, rate=4.0)
    where = replace(site, slo=Slo(1000.0, 400.0), kv_blocks=200)
    beam, vanilla = (play(trace, policy_named(one, table), where) for one in ("beam", "vanilla"))

    def late(played):
        return int((played.first_token_ms - played.arrival_ms > 1000.0).sum())

    assert late(beam) <= late(vanilla) + 4, "187 of 200 before"
    assert beam.energy_j < 0.8 * vanilla.energy_j


def test_beam_keeps_up_where_no_chunk_can_be_in_time(table, site):
    # A chunk of 256 takes 4 x 23 ms at the top: tokens that ride in it are late for 60 ms.
    where = replace(site, slo=Slo(400.0, 60.0))
    trace = random_trace(21, requests=80, rate=3.0)

    def ttft_kept(name):
        played = play(trace, policy_named(name, table), where)
        return (played.first_token_ms - played.arrival_ms <= 400.0).mean(), played

    vanilla, _ = ttft_kept("vanilla")
    beam, _ = ttft_kept("beam")
    assert beam >= vanilla - 0.03


def test_beam_serves_as_vllm_would_where_nothing_keeps_the_promise(table, site):
    where = replace(site, slo=Slo(400.0, 10.0))
    trace = random_trace(21, requests=80, rate=3.0)
    vanilla, beam = (play(trace, policy_named(name, table), where) for name in ("vanilla", "beam"))
    assert beam.energy_j == vanilla.energy_j
    assert np.array_equal(beam.first_token_ms, vanilla.first_token_ms)
