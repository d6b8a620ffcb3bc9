"""Prefix hashes and sessions: block sizes as the counts say, and what a cache would reuse."""

import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beamprof.errors import ImportFormatError
from beamprof.traces.importing import ImportOptions, import_trace
from beamprof.traces.prefixes import prefix_blocks, prefix_reuse
from beamprof.traces.trace import Provenance, Trace, arrange


def write(tmp_path, rows):
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(prompts, block, rounded="up", **more):
    """Trace rows of prompts (lists of token numbers); ids are those of prefixes."""
    names = {}
    rows = []
    for at, tokens in enumerate(prompts):
        count = -(-len(tokens) // block) if rounded == "up" else len(tokens) // block
        keys = [tuple(tokens[: (i + 1) * block]) for i in range(count)]
        ids = [names.setdefault(key, len(names)) for key in keys]
        rows.append({"timestamp": 1000 * at, "input_length": len(tokens), "output_length": 3,
                     "hash_ids": ids, **more})  # fmt: skip
    return rows


def trace_of(prompts, block, rounded="up"):
    rows = rows_of(prompts, block, rounded)
    frame = pl.DataFrame(
        {
            "request_id": range(len(rows)),
            "arrival_s": [row["timestamp"] / 1e3 for row in rows],
            "input_tokens": [row["input_length"] for row in rows],
            "output_tokens": [3] * len(rows),
            "prefix_hashes": [row["hash_ids"] for row in rows],
        },
        schema_overrides={"prefix_hashes": pl.List(pl.Int64)},
    )
    return Trace(arrange(frame), 1e6, Provenance("t", "test", None, "none"), block)


def plain_reuse(prompts, cache_block):
    """vLLM's rule on the tokens themselves: full blocks from the front, never the last token."""
    seen, reused = set(), []
    for tokens in prompts:
        ends = range(cache_block, len(tokens) + 1, cache_block)
        hits = 0
        for end in ends:
            if tuple(tokens[:end]) not in seen:
                break
            hits = end
        reused.append(min(hits, (len(tokens) - 1) // cache_block * cache_block))
        seen |= {tuple(tokens[:end]) for end in ends}
    return reused


@given(
    # Prompts that begin alike: a few words, joined.
    words=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=12),
    length=st.integers(3, 40),
    cache_block=st.integers(1, 20),
)
def test_of_hashes_of_single_tokens_a_cache_reuses_what_the_tokens_say(words, length, cache_block):
    prompts = [[token for token in parts for _ in range(length)] for parts in words]
    reuse = prefix_reuse(trace_of(prompts, 1), cache_block)
    assert reuse.cached_tokens.tolist() == plain_reuse(prompts, cache_block)


@given(
    words=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=10),
    length=st.integers(1, 50),
    block=st.integers(1, 40),
    cache_block=st.integers(1, 40),
    rounded=st.sampled_from(["up", "down"]),
)
def test_of_any_blocks_a_cache_is_never_said_to_reuse_more_than_the_tokens_allow(
    words, length, block, cache_block, rounded
):
    prompts = [[token for token in parts for _ in range(length)] for parts in words]
    reuse = prefix_reuse(trace_of(prompts, block, rounded), cache_block)
    allowed = plain_reuse(prompts, cache_block)
    assert (reuse.cached_tokens <= np.array(allowed)).all()
    # Less than one block of the trace and one of the cache are lost at the end.
    whole = [min(n, (len(p) - 1)) for n, p in zip(allowed, prompts, strict=True)]
    assert (reuse.cached_tokens > np.array(whole) - block - cache_block).all()


def test_six_equal_prompts_of_four_mooncake_blocks():
    reuse = prefix_reuse(trace_of([[7] * 2048] * 6, 512), 16)
    assert reuse.cached_tokens.tolist() == [0] + [2032] * 5  # the last token is computed anew
    assert reuse.share == pytest.approx(5 * 2032 / (6 * 2048))


def test_ids_that_name_content_and_not_prefixes_need_the_whole_front_to_agree():
    frame = trace_of([[0], [0]], 1).frame.with_columns(
        input_tokens=pl.lit(64, pl.Int64),
        prefix_hashes=pl.Series([[5, 6, 7, 8], [9, 6, 7, 8]]),
    )
    trace = Trace(frame, 1e6, Provenance("t", "test", None, "none"), 16)
    assert prefix_reuse(trace, 16).reused_tokens == 0


def sessions(*turns):
    frame = pl.DataFrame(
        {
            "request_id": range(len(turns)),
            "arrival_s": [float(i) for i in range(len(turns))],
            "input_tokens": [turn[1] for turn in turns],
            "output_tokens": [turn[2] for turn in turns],
            "session_id": [turn[0] for turn in turns],
        }
    )
    return Trace(arrange(frame), 1e6, Provenance("t", "test", None, "none"))


def test_turns_of_a_session_repeat_prompt_and_answer_of_the_turn_before():
    trace = sessions(("a", 100, 28), ("b", 100, 28), ("a", 200, 50), (None, 200, 50), ("a", 251, 1))
    reuse = prefix_reuse(trace, 16)
    assert reuse.source == "sessions"
    # 127 of 128 tokens were fed to the engine: 7 blocks. Then 249 of 250: 15.
    assert reuse.cached_tokens.tolist() == [0, 0, 112, 0, 240]


def test_a_turn_shorter_than_what_came_before_has_a_history_of_its_own():
    trace = sessions(("a", 1000, 100), ("a", 500, 100), ("a", 700, 10))
    assert prefix_reuse(trace, 16).cached_tokens.tolist() == [0, 0, 592]


def test_a_trace_that_says_nothing_of_prefixes_has_no_reuse():
    trace = sessions(("a", 5, 5))
    bare = Trace(trace.frame.drop("session_id"), 1e6, trace.provenance)
    assert prefix_reuse(bare) is None
    assert prefix_blocks(bare) is None
    with pytest.raises(ValueError, match="1 token or more"):
        prefix_blocks(trace, 0)


def test_a_long_prompt_of_small_blocks_is_counted_at_once():
    ids = [list(range(8192)), list(range(8192))]
    frame = trace_of([[0], [0]], 1).frame.with_columns(
        input_tokens=pl.lit(131072, pl.Int64), prefix_hashes=pl.Series(ids)
    )
    trace = Trace(frame, 1e6, Provenance("t", "test", None, "none"), 16)
    assert prefix_reuse(trace, 16).cached_tokens.tolist() == [0, 131056]


PROMPTS = [list(range(n)) for n in (1200, 90, 700, 1537)]


@pytest.mark.parametrize("block", [16, 64, 128, 512])
@pytest.mark.parametrize("rounded", ["up", "down"])
def test_a_blocks_size_shows_in_the_counts_of_ids(tmp_path, block, rounded):
    rows = rows_of(PROMPTS, block, rounded, session_id="s")
    trace = import_trace(write(tmp_path, rows))
    assert trace.prefix_block_tokens == block
    assert trace.provenance.transforms[0].parameters["prefix_block_tokens"] == block


def test_mooncakes_columns_with_other_blocks_are_refused_with_the_row(tmp_path):
    rows = rows_of(PROMPTS, 512)
    rows[2]["hash_ids"].append(99)
    with pytest.raises(ImportFormatError, match="not its blocks of 512") as caught:
        import_trace(write(tmp_path, rows))
    assert "row 2 has 3 ids for a prompt of 700 tokens" in str(caught.value)
    with pytest.raises(ImportFormatError, match="not its blocks of 512"):
        import_trace(write(tmp_path, rows_of(PROMPTS, 16)))


@pytest.mark.parametrize(
    "ids", ["--1", "9" * 5000, "1 x", 10**30, [10**30], {"a": 1}], ids=range(6)
)
def test_ids_that_are_no_whole_numbers_are_refused(tmp_path, ids):
    rows = rows_of(PROMPTS, 512)
    rows[1]["hash_ids"] = ids
    with pytest.raises(ImportFormatError, match="row 1"):
        import_trace(write(tmp_path, rows))


def test_counts_that_fit_no_size_or_several_need_the_users_word(tmp_path):
    none = rows_of(PROMPTS, 16, session_id="s")
    none[0]["hash_ids"] = [1]
    several = [{"timestamp": 5, "input_length": 600, "output_length": 1, "hash_ids": [1],
                "turn_id": 3}]  # fmt: skip
    for rows, words in ((none, "fit no size"), (several, "1024, 2048")):
        with pytest.raises(ImportFormatError, match="how many tokens") as caught:
            import_trace(write(tmp_path, rows))
        assert words in str(caught.value)
        options = ImportOptions(block_tokens=16, time_unit="ms")
        assert import_trace(write(tmp_path, rows), options=options).prefix_block_tokens == 16


def test_bailians_chats_are_sessions_by_their_first_chat(tmp_path):
    rows = [
        {"chat_id": chat, "parent_chat_id": parent, "timestamp": 40.5 * at, "input_length": 100,
         "output_length": 5, "type": "text", "turn": 1, "hash_ids": list(range(7))}
        for at, (chat, parent) in enumerate([(5, -1), (6, 5), (7, -1), (9, 6), (11, 3)])
    ]  # fmt: skip
    trace = import_trace(write(tmp_path, rows))
    assert trace.provenance.format == "bailian"
    assert trace.frame["session_id"].to_list() == ["5", "5", "7", "5", "3"]
    assert trace.prefix_block_tokens == 16
    assert trace.arrival_s[-1] == 162.0
    assert trace.provenance.transforms[0].parameters["columns_not_read"] == ["type"]
