"""Whatever carries a trace: packed files, Parquet, JSON of any shape, pipes and standard input."""

import bz2
import gzip
import io
import json
import lzma
import os
import sys
import threading

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beamprof.errors import BeamError, ImportFormatError
from beamprof.traces.importing import ImportOptions, import_trace, open_trace
from beamprof.traces.policies import BadRows
from beamprof.traces.trace_file import load_trace, save_trace

ROWS = [
    {"timestamp": 1000 * i, "input_length": 1024, "output_length": 5, "hash_ids": [i, i + 100]}
    for i in range(4)
]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def zstd(data):
    sink = io.BytesIO()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
        stream.flush()
        return sink.getvalue()


PACKERS = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
@pytest.mark.parametrize("name", ["t.jsonl.gz", "t.jsonl", "no-suffix"])
def test_a_packed_file_is_unpacked_by_its_first_bytes(tmp_path, pack, name):
    path = tmp_path / name
    path.write_bytes(pack(LINES.encode()))
    plain = tmp_path / "plain"
    plain.write_text(LINES)
    assert import_trace(path).sha256() == import_trace(plain).sha256()
    assert import_trace(path).provenance.sha256 != import_trace(plain).provenance.sha256


def test_zstd_too(tmp_path):
    path = tmp_path / "t.zst"
    with pa.CompressedOutputStream(str(path), "zstd") as stream:
        stream.write(LINES.encode())
    assert import_trace(path).requests == 4


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
def test_a_packed_file_that_ends_early_is_refused(tmp_path, pack):
    path = tmp_path / "t.gz"
    path.write_bytes(pack(os.urandom(4000))[:-300])
    with pytest.raises(ImportFormatError, match="cannot be unpacked"):
        import_trace(path)


def test_a_packed_file_that_fell_over_is_refused(tmp_path):
    path, packed = tmp_path / "t.gz", bytearray(gzip.compress(LINES.encode()))
    packed[10:14] = b"\xff\xff\xff\xff"
    path.write_bytes(packed)
    with pytest.raises(ImportFormatError, match="cannot be unpacked"):
        import_trace(path)


def test_a_header_without_an_end_is_refused(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,input_tokens," + "x" * 200_000 + "\n0,1,2\n")
    with pytest.raises(ImportFormatError, match="no header"):
        import_trace(path)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "~nobody-of-this-name/t.csv"], ids=len)
def test_a_name_that_no_file_can_have(name):
    from pathlib import Path

    for read in (open_trace, import_trace):
        with pytest.raises(ImportFormatError, match=r"cannot read|there is no file"):
            read(Path(name))


def test_any_format_may_lie_in_parquet(tmp_path):
    path = tmp_path / "mooncake.parquet"
    pl.DataFrame(ROWS).write_parquet(path)
    lines = tmp_path / "t.jsonl"
    lines.write_text(LINES)
    trace = import_trace(path)
    assert trace.provenance.format == "mooncake"
    assert trace.sha256() == import_trace(lines).sha256()
    azure = tmp_path / "azure.parquet"
    pl.DataFrame({
        "TIMESTAMP": ["2024-05-10 00:00:00", "2024-05-10 00:00:01.5"],
        "ContextTokens": [5, 6], "GeneratedTokens": [7, 8], "NumImages": [0, 2],
    }).with_columns(pl.col("TIMESTAMP").str.to_datetime(time_unit="us", format="%Y-%m-%d %H:%M:%S%.f")).write_parquet(azure)  # fmt: skip  # noqa: E501
    trace = import_trace(azure)
    assert trace.arrival_s.tolist() == [0.0, 1.5]
    assert trace.provenance.transforms[0].parameters["requests_with_images"] == 1


def test_our_parquet_without_its_sidecar_is_a_foreign_one(tmp_path):
    source = tmp_path / "t.jsonl"
    source.write_text(LINES)
    ours, sidecar = save_trace(import_trace(source), tmp_path / "ours.parquet")
    sidecar.unlink()
    with pytest.raises(BeamError, match="how many tokens"):
        open_trace(ours)
    again = import_trace(ours, options=ImportOptions(block_tokens=512))
    assert again.input_tokens.tolist() == [1024] * 4


@pytest.mark.parametrize("indent", [None, 1])
def test_json_may_be_one_list(tmp_path, indent):
    path = tmp_path / "t.json"
    path.write_text(json.dumps(ROWS, indent=indent))
    assert import_trace(path).requests == 4


@pytest.mark.parametrize("separator", ["\t", ";", ","])
def test_csv_by_any_separator(tmp_path, separator):
    path = tmp_path / "t.txt"
    path.write_text("input_toks,output_toks,arrival_time_ns\n5,6,0\n7,8,2500000000\n".replace(
        ",", separator
    ))  # fmt: skip
    assert import_trace(path).arrival_s.tolist() == [0.0, 2.5]


def test_standard_input_and_pipes_are_read(tmp_path, monkeypatch):
    class Stdin:
        buffer = io.BytesIO(gzip.compress(LINES.encode()))

    monkeypatch.setattr(sys, "stdin", Stdin)
    from pathlib import Path

    trace = open_trace(Path("-"))
    assert (trace.requests, trace.provenance.source) == (4, "standard input")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=lambda: fifo.write_text(LINES), daemon=True)
    writer.start()
    try:
        assert import_trace(fifo).requests == 4
    finally:
        writer.join(10)


def test_what_goes_down_a_pipe_comes_out_the_same(tmp_path):
    source = tmp_path / "t.jsonl"
    source.write_text(LINES)
    trace = import_trace(source)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=lambda: save_trace(trace, fifo), daemon=True)
    writer.start()
    try:
        came = open_trace(fifo)
    finally:
        writer.join(10)
    assert came.sha256() == trace.sha256()
    assert fifo.is_fifo()


def test_half_a_character_is_kept_as_an_escape_and_counted(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(
        '{"arrival_s": 0, "input_tokens": 1, "output_tokens": 1, "client_id": "\\ud800"}\n'
        '{"arrival_s": 1, "input_tokens": 1, "output_tokens": 1, "client_id": "\\udfff", '
        '"\\ud801": 1}\n'
    )
    trace = import_trace(path)
    assert trace.frame["client_id"].to_list() == ["\\ud800", "\\udfff"]
    step = trace.provenance.transforms[0]
    assert step.counts == {"text_with_broken_characters": 2}
    assert step.parameters["columns_not_read"] == ["\\ud801"]
    saved, _ = save_trace(trace, tmp_path / "out.csv")
    assert load_trace(saved).sha256() == trace.sha256()


def test_a_name_that_is_no_text_does_no_harm(tmp_path):
    path = tmp_path / os.fsdecode(b"t\xff.jsonl")
    path.write_text(LINES)
    trace = import_trace(path, options=ImportOptions(licence="\ud800"))
    assert trace.provenance.source == "t\\udcff.jsonl"
    saved, _ = save_trace(trace, tmp_path / "out.parquet")
    assert load_trace(saved).provenance.licence == "\\ud800"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["1", "-1", "nan", "\ud800", 10**400, -1, 0, 1790000000000]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner,
                                                                max_size=2),
    max_leaves=4,
)  # fmt: skip
KEYS = {
    "mooncake": ("timestamp", "input_length", "output_length", "hash_ids"),
    "aiperf": ("timestamp", "input_length", "output_length", "session_id", "delay", "hash_ids"),
    "bailian": ("chat_id", "parent_chat_id", "timestamp", "input_length", "output_length", "turn",
                "hash_ids"),
    "served": ("arrival_time", "queued_ts", "first_token_ts", "last_token_ts", "input_toks",
               "output_toks"),
    "ours": ("arrival_s", "input_tokens", "output_tokens", "client_id", "slo_class",
             "first_token_s", "last_token_s", "slo_ttft_ms", "prefix_hashes",
             "prefix_block_tokens", "duration_s"),
    "aiperf records": ("metadata", "metrics", "error"),
    "guidellm": ("benchmarks",),
    "usage log": ("created", "timestamp", "usage", "prompt_tokens", "completion_tokens"),
    "vllm-bench": ("input_lens", "output_lens", "ttfts", "itls", "errors", "start_times"),
}  # fmt: skip


@given(
    st.sampled_from(sorted(KEYS)).flatmap(
        lambda name: st.lists(
            st.fixed_dictionaries(dict.fromkeys(KEYS[name], JSON)), min_size=1, max_size=4
        )
    ),
    st.sampled_from(list(BadRows)),
    st.sampled_from([None, "s", "ms"]),
)
def test_any_json_ends_in_a_trace_or_in_words(tmp_path_factory, rows, bad_rows, unit):
    path = tmp_path_factory.mktemp("any") / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ImportOptions(bad_rows=bad_rows, sort=True, time_unit=unit)
    try:
        trace = import_trace(path, options=options)
    except BeamError:
        return
    assert trace.requests <= max(len(rows), 1)


@given(st.binary(max_size=300), st.sampled_from(["", "\x1f\x8b", "BZh", "PAR1", "{", "["]))
def test_any_bytes_end_in_words(tmp_path_factory, data, start):
    path = tmp_path_factory.mktemp("any") / "t"
    path.write_bytes(start.encode("latin-1") + data)
    with pytest.raises(BeamError):
        import_trace(path)


CELL = st.text('0123456789.-eE+: TZ,naif"', max_size=12) | st.sampled_from(
    ["1", "5", "0", "-1", "1e400", "nan", "inf", "2024-05-10 00:00:00", "1790000000", "1" * 400]
)
HEADERS = {
    "azure": ["TIMESTAMP", "ContextTokens", "GeneratedTokens", "NumImages"],
    "burstgpt": ["Timestamp", "Session ID", "Request tokens", "Response tokens"],
    "vidur": ["arrived_at", "num_prefill_tokens", "num_decode_tokens"],
    "splitwise": ["arrival_timestamp", "batch_size", "prompt_size", "token_size"],
    "llmservingsim": ["input_toks", "output_toks", "arrival_time_ns"],
    "served log": ["input_toks", "output_toks", "arrival_time", "first_token_ts", "last_token_ts"],
    "usage log": ["created_at", "prompt_tokens", "completion_tokens"],
    "ours by another clock": ["timestamp", "arrival_ms", "input_tokens", "output_tokens"],
    "ours": ["arrival_s", "input_tokens", "output_tokens", "client_id", "prefix_hashes",
             "prefix_block_tokens", "duration_s", "slo_tbt_ms", "last_token_s"],
}  # fmt: skip


@given(
    st.sampled_from(sorted(HEADERS)).flatmap(
        lambda name: st.tuples(
            st.just(HEADERS[name]),
            st.lists(
                st.lists(CELL, min_size=len(HEADERS[name]), max_size=len(HEADERS[name])),
                min_size=1,
                max_size=5,
            ),
        )
    ),
    st.sampled_from(list(BadRows)),
    st.booleans(),
)
def test_any_cells_end_in_a_trace_or_in_words(tmp_path_factory, table, bad_rows, parquet):
    header, rows = table
    path = tmp_path_factory.mktemp("any") / "t"
    frame = pl.DataFrame(rows, schema=dict.fromkeys(header, pl.String), orient="row")
    if parquet:
        frame.write_parquet(path)
    else:
        frame.write_csv(path)
    try:
        trace = import_trace(path, options=ImportOptions(bad_rows=bad_rows, sort=True))
    except BeamError:
        return
    assert trace.requests <= len(rows)
    saved = save_trace(trace, path.with_name("out.csv"))[0]
    assert load_trace(saved).sha256() == trace.sha256()
