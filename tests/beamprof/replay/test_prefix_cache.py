"""Prompts that begin alike: what the plant's prefix cache spares, keeps and forgets."""

from collections import OrderedDict
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_cases import make_trace, random_trace

from beam_runtime.emulator.compiler import COMPILES
from beam_runtime.types import Knobs, Slo
from beamprof.cli.main import main
from beamprof.replay.ladder import replay
from beamprof.replay.metrics import servable_in_time
from beamprof.replay.options import ReplayOptions
from beamprof.replay.plant import _Plant, play
from beamprof.replay.policies.base import Wake
from beamprof.replay.policies.registry import policy_named
from beamprof.replay.policies.static import Static
from beamprof.replay.prefix_cache import UNKNOWN
from beamprof.tables.table_file import write_table
from beamprof.traces.prefixes import prefix_reuse
from beamprof.traces.trace import Trace

BLOCK = 16


def hashed(rows, hashes, duration_s, block=BLOCK):
    bare = make_trace(rows, duration_s)
    frame = bare.frame.with_columns(prefix_hashes=pl.Series(hashes, dtype=pl.List(pl.Int64)))
    return Trace(frame, bare.duration_s, bare.provenance, block)


def random_prompts(random, count, rate=4.0, apart_s=0.0):
    """Prompts out of a small forest: every one continues another or begins anew."""
    known = [[]]
    rows, hashes, now_s = [], [], 0.0
    for number in range(count):
        begin = known[random.integers(len(known))]
        keep = random.integers(len(begin) + 1)
        prompt = begin[:keep] + [1000 * number + i for i in range(random.integers(1, 12))]
        known.append(prompt)
        now_s += apart_s + random.exponential(1 / rate)
        tokens = BLOCK * len(prompt) - random.integers(BLOCK)
        rows.append((now_s, int(tokens), int(random.integers(1, 40))))
        hashes.append(prompt)
    return hashed(rows, hashes, np.ceil(now_s) + 1)


def lru_hits(trace, kv_blocks):
    """By request: its hit, where each is done before the next comes; vLLM's rules, plainly."""
    free = OrderedDict((("never used", number), None) for number in range(kv_blocks))
    hits = []
    for hashes, tokens, answer in zip(
        trace.frame["prefix_hashes"], trace.input_tokens, trace.output_tokens, strict=True
    ):
        prompt = [tuple(hashes[:end]) for end in range(1, tokens // BLOCK + 1)]
        hit = 0
        while hit < min(len(prompt), (tokens - 1) // BLOCK) and prompt[hit] in free:
            hit += 1
        hits.append(hit * BLOCK)
        for block in prompt[:hit]:
            del free[block]
        for _ in range(-(-tokens // BLOCK) - hit):
            free.popitem(last=False)
        # A block whose content is known by another one that is free is a second one.
        held = [
            name if name not in free else ("second", len(hits), at)
            for at, name in enumerate(prompt)
        ]
        needed = -(-(tokens + answer - 1) // BLOCK)
        for _ in range(needed - -(-tokens // BLOCK)):
            free.popitem(last=False)
        held += [("answer", len(hits), at) for at in range(needed - len(prompt))]
        for name in reversed(held):
            free[name] = None
        assert len(free) == kv_blocks
    return hits


def test_with_room_for_all_every_repeat_is_a_hit_and_is_not_computed(site):
    trace = hashed([(5.0 * i, 2040, 4) for i in range(6)], [list(range(128))] * 6, 40)
    warm = play(trace, Static("one", 1000), site)
    cold = play(trace, Static("one", 1000), replace(site, prefix_cache=False))
    assert warm.cached_tokens.tolist() == prefix_reuse(trace).cached_tokens.tolist()
    assert warm.cached_tokens.tolist() == [0] + [2032] * 5
    computed = warm.steps["prefill_tokens"].sum()
    assert computed == trace.input_tokens.sum() - warm.cached_tokens.sum()
    assert cold.steps["prefill_tokens"].sum() == trace.input_tokens.sum()
    assert cold.cached_tokens.sum() == 0
    ttft_ms = warm.first_token_ms - warm.arrival_ms
    assert (ttft_ms[1:] < 0.5 * ttft_ms[0]).all()
    # What is computed still attends all that is cached.
    last = warm.steps[warm.steps["prefill_tokens"] > 0][-1]
    assert (last["prefill_context_tokens"], last["prefill_tokens"]) == (2032, 8)
    assert last["prefill_pairs"] == 8 * 2032 + 36
    assert warm.active_energy_j < cold.active_energy_j


def test_blocks_are_known_from_the_step_that_fills_them(site):
    """The second of two equal prompts hits what the first still has under way."""
    long, chunk = 64 * BLOCK, 256
    trace = hashed([(0.0, long, 1), (0.001, long, 1)], [list(range(64))] * 2, 5)
    played = play(trace, Static("one", 1000, chunk), site)
    assert played.cached_tokens.tolist() == [0, long - BLOCK]
    assert played.steps["prefill_tokens"].tolist() == [chunk] * 4 + [BLOCK]
    assert played.steps["issued_ms"][4] < played.first_token_ms[0]


@given(seed=st.integers(0, 10_000), kv_blocks=st.integers(60, 150))
@settings(max_examples=40 if COMPILES else 5, deadline=None)
def test_one_after_another_forget_the_longest_free_first(site, seed, kv_blocks):
    trace = random_prompts(np.random.default_rng(seed), 30, apart_s=30.0)
    played = play(trace, Static("one", 1400), replace(site, kv_blocks=kv_blocks, noise=0.0))
    assert played.cached_tokens.tolist() == lru_hits(trace, kv_blocks)


class Audit(Static):
    """Counts blocks at every event: held by somebody, or free."""

    wakes = Wake.ARRIVAL | Wake.COMPLETION | Wake.STEP

    def decide(self, view):
        plant, state = self.plant.plant, view.state
        cache, rows = plant.prefixes, view.running
        books, requests = cache.books[0], state.requests
        free = int(state.engine["free_blocks"][0])
        assert books["fresh"] + books["queued"] == free >= 0
        own = -(-requests["computed_tokens"][rows] // BLOCK) - requests["shared_blocks"][rows]
        assert (own >= 0).all()
        assert own.sum() == view.kv_blocks - free
        for row in rows.tolist():
            number, hit = (int(plant.hidden[name][row]) for name in ("request", "hit_blocks"))
            ids = cache.ids[cache.offsets[number] :][:hit]
            assert (cache.holder[ids] != UNKNOWN).all()
            assert (cache.holder[ids] >= 0).all()
            assert (cache.holder[ids] != row).sum() == requests["shared_blocks"][row]
        self.audits += 1
        return Knobs(1400, self.chunk_tokens)


@pytest.mark.parametrize("kv_blocks", [50, 70, 1000, 1 << 30])
@pytest.mark.parametrize("seed", range(6))
def test_every_block_is_held_once_or_free(site, seed, kv_blocks):
    trace = random_prompts(np.random.default_rng(seed), 120, rate=60.0)
    policy = Audit("audit", 1400)
    policy.plant = _Plant(trace, policy, replace(site, kv_blocks=kv_blocks, noise=0.02))
    policy.audits = 0
    played = policy.plant.run()
    assert policy.audits > 200
    assert np.isfinite(played.finish_ms).all()
    assert (played.preemptions > 0) == (kv_blocks < 1000)
    assert played.cached_tokens.sum() > 0
    assert (played.cached_tokens <= prefix_reuse(trace).cached_tokens).all()
    cache = policy.plant.prefixes
    assert (cache.holder < 0).all()
    assert cache.books["fresh"][0] + cache.books["queued"][0] == kv_blocks


def test_more_memory_never_hits_less_where_requests_do_not_meet(site):
    trace = random_prompts(np.random.default_rng(3), 60, apart_s=30.0)
    hits = [
        play(trace, Static("one", 1400), replace(site, kv_blocks=blocks)).cached_tokens.sum()
        for blocks in (30, 50, 100, 400)
    ]
    assert hits == sorted(hits) and hits[0] < hits[-1]
    assert hits[-1] == prefix_reuse(trace).reused_tokens


def test_a_session_hits_its_own_answers(site):
    bare = make_trace([(0.0, 160, 33), (30.0, 320, 10), (60.0, 900, 1)], 90)
    trace = Trace(
        bare.frame.with_columns(session_id=pl.Series(["a", "a", "b"])),
        bare.duration_s,
        bare.provenance,
    )
    assert play(trace, Static("one", 1000), site).cached_tokens.tolist() == [0, 192, 0]


def test_a_trace_that_says_nothing_plays_as_ever(site):
    trace = random_trace(2)
    on, off = (
        play(trace, Static("one", 1000), replace(site, prefix_cache=wanted))
        for wanted in (True, False)
    )
    assert on.energy_j == off.energy_j
    assert on.cached_tokens.sum() == 0


@pytest.mark.parametrize("policy", ["beam", "beam-paper", "window-dvfs", "lowest-feasible"])
def test_policies_serve_hits(table, site, policy):
    trace = random_prompts(np.random.default_rng(5), 80, rate=6.0)
    warm, cold = (
        play(trace, policy_named(policy, table), replace(site, prefix_cache=wanted))
        for wanted in (True, False)
    )
    assert np.isfinite(warm.finish_ms).all()
    computed = [played.steps["prefill_tokens"].sum() for played in (warm, cold)]
    assert computed[0] == computed[1] - warm.cached_tokens.sum() < 0.8 * computed[1]


def test_a_prompt_is_possible_with_its_hit(site):
    rows = [(0.0, 4000, 1), (60.0, 4010, 1)]
    trace = hashed(rows, [list(range(250)), [*range(250), 999]], 90)
    where = replace(site, slo=Slo(300.0, 150.0))
    assert servable_in_time(trace, where, 512).tolist() == [False, True]
    cold = servable_in_time(trace, replace(where, prefix_cache=False), 512)
    assert cold.tolist() == [False, False]


def test_the_bound_stays_below_what_hits_make_of_it(table):
    trace = random_prompts(np.random.default_rng(6), 60, rate=4.0)
    report = replay(table, trace, ["beam", "oracle"], ReplayOptions(noise=0.0))
    assert report.oracle_j < min(rung.metrics.energy_j for rung in report.rungs)
    cold = replay(table, trace, ["oracle"], ReplayOptions(noise=0.0, prefix_cache=False))
    assert report.oracle_j < cold.oracle_j


def test_the_result_says_what_was_played_cold(table):
    rows, hashes = [(i, 64, 2) for i in range(4)], [[1, 2, 3, 4]] * 4
    with_hashes = hashed(rows, hashes, 5)
    words = replay(table, with_hashes, []).assumed
    assert "a prefix cache, by prefix hashes in 16-token blocks" in words
    words = replay(table, with_hashes, [], ReplayOptions(prefix_cache=False)).assumed
    assert "all 256 prompt tokens played cold, though 144 repeat what came before" in words
    words = replay(table, make_trace(rows, 5), []).assumed
    assert "all 256 prompt tokens played cold: the trace does not say which repeat" in words


def test_the_command_says_what_was_hit(table, tmp_path, capsys):
    write_table(table.columns, table.metadata, tmp_path / "small.parquet")
    lines = [
        f'{{"timestamp": {1000 * i}, "input_length": 1024, "output_length": 8, '
        f'"hash_ids": [7, {7 if i else 8}]}}'
        for i in range(6)
    ]
    path = tmp_path / "alike.jsonl"
    path.write_text("\n".join(lines))
    words = [
        "replay",
        "-t",
        str(tmp_path / "small.parquet"),
        "--trace",
        str(path),
        "--policy",
        "vanilla",
    ]
    assert main(words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "prefix cache: 74 % of prompt tokens were hits" in said
    assert main([*words, "--no-prefix-cache"]) == 0
    shown = capsys.readouterr()
    assert "prefix cache" not in shown.out
    assert "all 6,144 prompt tokens played cold, though" in " ".join(shown.err.split())
