"""Native ServeGen pools: drawn alike everywhere, parsed without trust."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beamprof.errors import BeamError, ImportFormatError, TraceError
from beamprof.traces.policies import MissingDataset
from beamprof.traces.servegen_pool import parse_lengths, read_pool
from beamprof.traces.servegen_sampler import Draw, draw_from_pool, sample, scale_for_tokens_per_s
from beamprof.traces.statistics import tokens_per_s

LAWS = {"input_tokens": "{10: 0.25, 20: 0.5, 4000: 0.25}", "output_tokens": "{0: 0.5, 7: 0.5}"}
NEWER = {"input_tokens": "{99: 1.0}", "output_tokens": "{9: 1.0}"}


def chunk(folder, client_id, windows, blocks):
    """``windows``: (start, rate, family, shape, scale); ``blocks``: dataset or None."""
    lines = [
        f"{start},{rate},0,{family},{shape},{scale}\n"
        for start, rate, family, shape, scale in windows
    ]
    (folder / f"chunk-{client_id}-trace.csv").write_text("".join(lines))
    if blocks is not None:
        (folder / f"chunk-{client_id}-dataset.json").write_text(json.dumps(blocks))


@pytest.fixture
def pool(tmp_path):
    """Three clients over half an hour; client 10 changes its lengths after 20 minutes."""
    chunk(
        tmp_path,
        2,
        [(0, 0.5, "Gamma", 0.8, 2.0), (600, 0.2, "Weibull", 0.6, 3.0), (1200, 0, "", 0, 0)],
        {"0": LAWS},
    )
    chunk(
        tmp_path,
        10,
        [(start, 0.3, "Gamma", 1.5, 1.0) for start in (0, 600, 1200)],
        {"0": LAWS, "1200": NEWER},
    )
    chunk(tmp_path, 3, [(start, 0.001, "Gamma", 1.0, 1.0) for start in (0, 600, 1200)], {"0": LAWS})
    return tmp_path


def test_same_clients_window_scale_and_seed_give_the_same_trace_on_any_machine(pool):
    trace = draw_from_pool(pool, Draw(0, 1800, scale=1.5, seed=11))
    # Written once on Linux x86-64 with numpy 2.4, with and without AVX.
    assert trace.sha256() == "5262a60a7694e8787598c94cb2169e037523b019d450cd0cc00226ad2335173d"
    assert draw_from_pool(pool, Draw(0, 1800, scale=1.5, seed=12)).sha256() != trace.sha256()


def test_every_window_has_its_share_less_the_arrival_on_its_end(pool):
    trace = draw_from_pool(pool, Draw(0, 1800, scale=1.5, seed=11))
    for client_id, rates in (("2", (0.5, 0.2, 0)), ("10", (0.3, 0.3, 0.3)), ("3", (0.001,) * 3)):
        arrival_s = trace.frame.filter(client_id=client_id)["arrival_s"].to_numpy()
        found, _ = np.histogram(arrival_s, bins=3, range=(0, 1800))
        assert found.tolist() == [max(0, int(np.ceil(rate * 1.5 * 600)) - 1) for rate in rates]
    counts = trace.provenance.transforms[0].counts
    assert counts["active_clients"] == 3
    assert counts["clients_too_slow_to_appear"] == 1


def test_a_part_of_the_span_is_a_slice_of_the_whole(pool):
    whole = draw_from_pool(pool, Draw(0, 1800, seed=4)).frame
    part = draw_from_pool(pool, Draw(700, 800, seed=4)).frame
    inside = whole.filter(whole["arrival_s"].is_between(700, 1500, closed="left"))
    assert part["arrival_s"].to_list() == pytest.approx(
        (inside["arrival_s"] - 700).to_list(), abs=1e-9
    )
    assert part.drop("request_id", "arrival_s").equals(inside.drop("request_id", "arrival_s"))


def test_a_client_draws_the_same_whoever_else_is_there(pool):
    both = draw_from_pool(pool, Draw(0, 1800, seed=4)).frame
    (pool / "chunk-2-trace.csv").unlink()
    alone = draw_from_pool(pool, Draw(0, 1800, seed=4)).frame
    kept = both.filter(client_id="10").drop("request_id")
    assert alone.filter(client_id="10").drop("request_id").equals(kept)


def test_the_order_of_files_on_disk_means_nothing(pool):
    clients = read_pool(pool, 0, 1800).clients
    assert [client.client_id for client in clients] == [2, 3, 10]


def test_one_uniform_number_gives_both_lengths(pool):
    frame = draw_from_pool(pool, Draw(0, 1200, scale=4, seed=1)).frame.filter(client_id="2")
    pairs = set(frame.select("input_tokens", "output_tokens").iter_rows())
    # Quantiles: (0, .25) -> 10 and 0; (.25, .5) -> 20 and 0; (.5, .75) -> 20, 7; above -> 4000, 7.
    assert pairs == {(10, 1), (20, 1), (20, 7), (4000, 7)}


def test_lengths_of_zero_become_one_and_are_counted(pool):
    trace = draw_from_pool(pool, Draw(0, 1200, seed=1))
    ones = int((trace.output_tokens == 1).sum())
    assert ones > 0
    assert trace.provenance.transforms[0].counts["lengths_clipped_to_1"] == ones


def test_the_newest_block_at_or_before_the_window_counts(pool):
    frame = draw_from_pool(pool, Draw(0, 1800, seed=1)).frame.filter(client_id="10")
    late = frame["arrival_s"] >= 1200
    assert set(frame.filter(late)["input_tokens"]) == {99}
    assert 99 not in set(frame.filter(~late)["input_tokens"])


def test_gaps_follow_their_law(tmp_path):
    windows = [(0, 20.0, "Gamma", 0.25, 1.0), (600, 20.0, "Weibull", 2.0, 1.0)]
    chunk(tmp_path, 1, windows, {"0": LAWS})
    arrival_s = draw_from_pool(tmp_path, Draw(0, 1200, seed=2)).arrival_s
    for part, cv in ((arrival_s[arrival_s < 600], 2.0), (arrival_s[arrival_s >= 600], 0.5227)):
        gaps = np.diff(part)
        assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)  # 1/sqrt(shape); Weibull(2)


def test_an_extreme_shape_still_makes_a_trace(tmp_path):
    chunk(tmp_path, 1, [(0, 1.0, "Gamma", 1e-9, 1.0)], {"0": LAWS})
    assert draw_from_pool(tmp_path, Draw(0, 600)).requests == 599


def test_a_scale_is_found_for_a_load(pool):
    clients = read_pool(pool, 0, 1800)
    draw = scale_for_tokens_per_s(clients, Draw(0, 1800, seed=3), 5000.0, lambda trace: trace)
    assert tokens_per_s(sample(clients, draw)) == pytest.approx(5000.0, rel=0.02)
    with pytest.raises(TraceError, match="must be above 0"):
        scale_for_tokens_per_s(clients, Draw(0, 1800), 0.0, lambda trace: trace)


def test_a_client_without_a_dataset_is_an_error_or_a_counted_skip(pool):
    (pool / "chunk-10-dataset.json").unlink()
    with pytest.raises(TraceError, match="1 of 3 active clients have no lengths") as caught:
        draw_from_pool(pool, Draw(0, 1800))
    assert "clients 10" in str(caught.value)
    assert "--missing-dataset skip" in str(caught.value)
    trace = draw_from_pool(pool, Draw(0, 1800, missing=MissingDataset.SKIP))
    assert set(trace.frame["client_id"]) == {"2"}
    counts = trace.provenance.transforms[0].counts
    assert (counts["clients_without_dataset"], counts["clients_too_slow_to_appear"]) == (1, 1)


def test_a_silent_client_needs_no_dataset(pool):
    chunk(pool, 55, [(0, 0.0, "", 0, 0)], None)
    assert [client.client_id for client in read_pool(pool, 0, 1800).clients] == [2, 3, 10]


def test_an_empty_block_counts_as_no_dataset(pool):
    empty = {"input_tokens": "{}", "output_tokens": "{}"}
    (pool / "chunk-10-dataset.json").write_text(json.dumps({"0": LAWS, "1200": empty}))
    assert draw_from_pool(pool, Draw(0, 1200)).requests > 0
    with pytest.raises(TraceError, match="no lengths"):
        draw_from_pool(pool, Draw(600, 1200))


UNSAFE = [
    "__import__('os').system('touch owned')",
    "{1: __import__('os')}",
    "{1: 0.5, **{2: 0.5}}",
    "{i: 1 for i in range(9)}",
    "[1, 2]",
    "{1: 2}; import os",
    "{'1': 0.5}",
    "{1: (0.5)}",
    "{1: 0.5}\n{2: 0.5}",
    "{" * 500 + "}" * 500,
    "",
    "1",
]
BROKEN = ["{1: }", "{1, 2}", "{1: 0.5 2: 0.5}", "{1: -0.5, 2: 1}", "{1.5: 1}", "{-1: 1.0}",
          "{1: 0.0}", f"{{1: 1{'0' * 400}}}", "{1: 1e999}", "{99999999999: 1.0}",
          "{1: 1+1}"]  # fmt: skip


@pytest.mark.parametrize("text", UNSAFE)
def test_an_unsafe_literal_is_refused_unread(pool, text):
    dataset = {"0": {"input_tokens": text, "output_tokens": "{1: 1.0}"}}
    (pool / "chunk-2-dataset.json").write_text(json.dumps(dataset))
    with pytest.raises(ImportFormatError, match="unsafe literal") as caught:
        draw_from_pool(pool, Draw(0, 600))
    assert "chunk-2-dataset.json: block 0: input_tokens" in str(caught.value)


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_literal_is_refused(text):
    with pytest.raises(ImportFormatError):
        parse_lengths(text, "here")


@settings(max_examples=100)
@given(st.text("{}0123456789eE.:,+- \n", max_size=60))
def test_any_text_of_harmless_characters_is_a_law_or_an_error_in_words(text):
    try:
        law = parse_lengths(text, "here")
    except BeamError:
        return
    assert (np.diff(law.tokens) > 0).all()
    assert (np.diff(law.cumulative) >= 0).all()


@settings(max_examples=100)
@given(
    weights=st.dictionaries(st.integers(0, 10**6), st.floats(1e-9, 1), min_size=1, max_size=30),
    uniforms=st.lists(st.floats(0, 1, exclude_max=True), min_size=2, max_size=20),
)
def test_lengths_come_from_the_law_and_rise_with_the_uniform(weights, uniforms):
    law = parse_lengths(repr(weights), "here")
    drawn = law.at(np.sort(uniforms))
    assert set(drawn.tolist()) <= set(weights)
    assert (np.diff(drawn) >= 0).all()
    total = sum(weights.values())
    expected = sum(max(tokens, 1) * weight for tokens, weight in weights.items()) / total
    assert law.mean_tokens == pytest.approx(expected, rel=1e-6)


BAD_WINDOWS = {
    "NaN rate": "0,nan,0,Gamma,1,1\n",
    "negative rate": "0,-1,0,Gamma,1,1\n",
    "another law": "0,1,0,Pareto,1,1\n",
    "no law": "0,1,0,,0,0\n",
    "zero shape": "0,1,0,Gamma,0,1\n",
    "infinite scale": "0,1,0,Gamma,1,inf\n",
    "words": "0,often,0,Gamma,1,1\n",
    "too few cells": "0,1,0\n",
    "windows that overlap": "0,1,0,Gamma,1,1\n300,1,0,Gamma,1,1\n",
    "windows that go back": "600,1,0,Gamma,1,1\n0,1,0,Gamma,1,1\n",
    "nothing": "",
    "a time without an end": "inf,1,0,Gamma,1,1\n",
    "a cell without an end": f"0,{'x' * 200_000},0,Gamma,1,1\n",
    "no text": b"\xff\xfe",
}


@pytest.mark.parametrize("content", BAD_WINDOWS.values(), ids=BAD_WINDOWS)
def test_a_broken_trace_file_is_named(pool, content):
    content = content if isinstance(content, bytes) else content.encode()
    (pool / "chunk-2-trace.csv").write_bytes(content)
    with pytest.raises(ImportFormatError, match=r"chunk-2-trace\.csv"):
        read_pool(pool, 0, 1800)


@pytest.mark.parametrize(
    "content", ["", "[1]", "{", '{"now": {}}', '{"0": 5}', '{"0": {"input_tokens": "{1: 1.0}"}}']
)
def test_a_broken_dataset_is_named(pool, content):
    (pool / "chunk-2-dataset.json").write_text(content)
    with pytest.raises(ImportFormatError, match=r"chunk-2-dataset\.json"):
        read_pool(pool, 0, 1800)


def test_a_span_outside_the_pool_names_what_it_covers(pool):
    for start_s, end_s in ((1800, 2400), (86400, 90000)):
        with pytest.raises(TraceError, match="covers 0 s to 1800 s"):
            read_pool(pool, start_s, end_s)


def test_a_folder_that_is_no_pool_and_a_senseless_draw_are_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nix"):
        with pytest.raises(ImportFormatError, match="no ServeGen pool"):
            read_pool(folder, 0, 600)
    for senseless in ((-1, 600, 1), (0, 0, 1), (0, 600, 0), (0, 600, float("nan"))):
        with pytest.raises(TraceError, match="a draw starts at"):
            Draw(*senseless)


def test_a_draw_beyond_reason_is_refused_before_it_fills_the_memory(pool):
    with pytest.raises(TraceError, match="means about"):
        draw_from_pool(pool, Draw(0, 1800, scale=1e9))


def test_a_draw_without_a_request_says_so(pool):
    with pytest.raises(TraceError, match="no requests"):
        draw_from_pool(pool, Draw(0, 1800, scale=1e-6))
