"""Logs of served requests: arrivals and tokens on one clock, kept through every step."""

import json
from pathlib import Path

import pytest

from beamprof.errors import BeamError, ImportFormatError, TraceError
from beamprof.traces.importing import ImportOptions, import_trace
from beamprof.traces.policies import BadRows, OverLimit
from beamprof.traces.statistics import trace_statistics
from beamprof.traces.trace_file import load_trace, save_trace
from beamprof.traces.transforms import cap_total_tokens, window

SERVED = Path(__file__).parents[4] / "shared" / "data" / "served-rtxpro6000"


def log(*rows, names=("arrival_time", "first_token_ts", "last_token_ts")):
    return [
        {"input_toks": 100, "output_toks": 11, **dict(zip(names, row, strict=True))} for row in rows
    ]


def write(tmp_path, rows):
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


EPOCH = log((1790000000.0, 1790000000.5, 1790000001.5), (1790000002.0, 1790000003.0, 1790000005.0))


def test_observed_times_count_from_the_first_arrival_and_are_told(tmp_path):
    trace = import_trace(write(tmp_path, EPOCH))
    assert trace.provenance.format == "served-log"
    assert trace.frame["first_token_s"].to_list() == [0.5, 3.0]
    assert trace.frame["last_token_s"].to_list() == [1.5, 5.0]
    seen = trace_statistics(trace).observed
    assert (seen.requests, seen.ttft_mean_s, seen.request_mean_s) == (2, 0.75, 2.25)
    assert seen.tpot_mean_ms == pytest.approx(150.0)


def test_they_stay_in_the_file_in_windows_and_go_with_a_length_that_is_cut(tmp_path):
    trace = import_trace(write(tmp_path, EPOCH))
    saved = save_trace(trace, tmp_path / "log.parquet")[0]
    assert load_trace(saved).sha256() == trace.sha256()
    as_csv = load_trace(save_trace(trace, tmp_path / "log.csv")[0])
    assert as_csv.sha256() == trace.sha256()
    late = window(trace, 1.0, 2.0)
    assert late.frame["arrival_s"].to_list() == [1.0]
    assert late.frame["last_token_s"].to_list() == [4.0]
    cut = cap_total_tokens(trace, 50, OverLimit.TRUNCATE)
    assert cut.frame["first_token_s"].null_count() == 2


def test_vllms_two_clocks_are_joined_by_the_time_of_queueing(tmp_path):
    rows = log((1790000000.0, 50.5, 51.5), (1790000002.0, 53.0, 55.0))
    for row, queued in zip(rows, (50.0, 52.04), strict=True):
        row["queued_ts"] = queued
    trace = import_trace(write(tmp_path, rows))
    # Nobody waited less than the first, so his arrival is his queueing.
    assert trace.frame["first_token_s"].to_list() == pytest.approx([0.5, 3.0], abs=1e-6)
    assert trace.provenance.transforms[0].parameters["clocks_joined_by"] == "queued_ts"


@pytest.mark.parametrize(
    ("queued", "words"),
    [((None, None), "nothing joins them"), ((50.0, 400.0), "do not run together")],
)
def test_clocks_that_nothing_joins_are_refused(tmp_path, queued, words):
    rows = log((1790000000.0, 50.5, 51.5), (1790000002.0, 53.0, 55.0))
    for row, time in zip(rows, queued, strict=True):
        if time is not None:
            row["queued_ts"] = time
    with pytest.raises(ImportFormatError, match=words):
        import_trace(write(tmp_path, rows))


def test_tokens_before_their_request_are_bad_rows_or_two_clocks(tmp_path):
    rows = [*EPOCH, *log((1790000006.0, 1790000001.0, 1790000009.0))]
    with pytest.raises(TraceError, match="first token before arrival") as caught:
        import_trace(write(tmp_path, rows))
    assert "--bad-rows drop" in str(caught.value)
    kept = import_trace(write(tmp_path, rows), options=ImportOptions(bad_rows=BadRows.DROP))
    assert kept.provenance.transforms[0].counts == {"first_token_before_arrival": 1}
    with pytest.raises(TraceError, match="on one clock"):
        import_trace(write(tmp_path, rows[2:]))
    with pytest.raises(TraceError, match="last token before first token"):
        import_trace(write(tmp_path, log((1790000000.0, 1790000002.0, 1790000001.0))))


NAMES = {
    "in ms": (("arrival_time_ms", "first_token_time_ms", "last_token_time_ms"), 1e3),
    "in ns": (("arrival_time_ns", "first_token_time_ns", "finished_time_ns"), 1e9),
    "in s": (("arrival_time_s", "first_token_time_s", "last_token_time_s"), 1.0),
}


@pytest.mark.parametrize(("names", "scale"), NAMES.values(), ids=NAMES)
def test_units_in_names_are_obeyed_on_any_clock(tmp_path, names, scale):
    rows = log((7 * scale, 8 * scale, 9 * scale), (8 * scale, 9 * scale, 11 * scale), names=names)
    trace = import_trace(write(tmp_path, rows))
    assert trace.arrival_s.tolist() == pytest.approx([0.0, 1.0])
    assert trace.frame["last_token_s"].to_list() == pytest.approx([2.0, 4.0])


def test_a_log_without_units_needs_the_users_word(tmp_path):
    path = write(tmp_path, log((1.0, 2.0, 3.0), (5.0, 6.0, 9.0)))
    with pytest.raises(ImportFormatError, match="has no unit"):
        import_trace(path)
    assert import_trace(path, options=ImportOptions(time_unit="s")).arrival_s.tolist() == [0, 4]


def test_rows_with_our_names_and_promises_of_their_own_are_kept(tmp_path):
    row = {"arrival_s": 0, "input_tokens": 5, "output_tokens": 4, "first_token_s": 0.5,
           "last_token_s": 2, "slo_class": "chat", "slo_ttft_ms": 300,
           "slo_tpot_ms": 40.0}  # fmt: skip
    bare = {"arrival_s": 1, "input_tokens": 5, "output_tokens": 4}
    trace = import_trace(write(tmp_path, [row, bare]))
    assert trace.frame["slo_ttft_ms"].to_list() == [300.0, None]
    assert trace.frame["slo_tpot_ms"].to_list() == [40.0, None]
    assert "slo_tbt_ms" not in trace.frame.columns
    for name in ("t.parquet", "t.csv"):
        assert load_trace(save_trace(trace, tmp_path / name)[0]).sha256() == trace.sha256()
    for bad in (0, -1, float("inf")):
        with pytest.raises(TraceError, match="slo ttft ms not above 0"):
            import_trace(write(tmp_path, [{**row, "slo_ttft_ms": bad}]))


def record(start_ns, **more):
    metrics = {
        "input_sequence_length": {"value": 550, "unit": "tokens"},
        "output_sequence_length": {"value": 9, "unit": "tokens"},
        "time_to_first_token": {"value": 255.0, "unit": "ms"},
        "request_latency": {"value": 0.9, "unit": "s"},
    }
    return {
        "metadata": {"request_start_ns": start_ns, "benchmark_phase": "profiling",
                     "was_cancelled": False, **more.get("metadata", {})},
        "metrics": {**metrics, **more.get("metrics", {})},
        "error": more.get("error"),
    }  # fmt: skip


def test_aiperfs_records_without_warm_up_and_failures(tmp_path):
    at = 1790000000000000000
    rows = [
        record(at - 9_000_000_000, metadata={"benchmark_phase": "warmup"}),
        record(at + 2_000_000_000),
        record(at),
        record(at + 3_000_000_000, error={"type": "timeout"}),
        record(at + 4_000_000_000, metadata={"was_cancelled": True}),
    ]
    trace = import_trace(write(tmp_path, rows))
    assert trace.provenance.format == "aiperf-records"
    assert trace.arrival_s.tolist() == [0.0, 2.0]
    assert trace.frame["first_token_s"].to_list() == pytest.approx([0.255, 2.255], abs=1e-6)
    assert trace.frame["last_token_s"].to_list() == pytest.approx([0.9, 2.9], abs=1e-6)
    assert trace.provenance.transforms[0].counts == {
        "failed_requests": 1, "cancelled_requests": 1, "warm_up_requests": 1,
    }  # fmt: skip
    bad = record(at, metrics={"request_latency": {"value": 1, "unit": "fortnights"}})
    with pytest.raises(ImportFormatError, match="fortnights"):
        import_trace(write(tmp_path, [bad]))


def test_guidellms_file_has_one_benchmark_and_its_failures_are_counted(tmp_path):
    done = {"prompt_tokens": 9, "output_tokens": 4, "request_start_time": 1790000000.0,
            "info": {"timings": {"first_token_iteration": 1790000000.25,
                                 "last_token_iteration": 1790000001.0}}}  # fmt: skip
    requests = {"successful": [done], "incomplete": [{}], "errored": [{}, {}]}
    path = tmp_path / "benchmarks.json"
    path.write_text(json.dumps({"benchmarks": [{"requests": requests}]}, indent=2))
    trace = import_trace(path)
    assert trace.frame["first_token_s"].to_list() == [0.25]
    assert trace.provenance.transforms[0].counts == {
        "incomplete_requests": 1,
        "errored_requests": 2,
    }
    for broken, words in (
        ([{}, {}], "2 guidellm benchmarks"),
        ([], "no guidellm benchmark"),
        ([{"requests": 5}], "holds no requests"),
        ([{"requests": {"successful": []}}], "no requests"),
    ):
        path.write_text(json.dumps({"benchmarks": broken}))
        with pytest.raises(BeamError, match=words):
            import_trace(path)


def test_vllms_benchmark_holds_lists_and_its_failures_are_counted(tmp_path):
    lists = {
        "input_lens": [9, 5, 7], "output_lens": [3, 0, 1], "start_times": [52.0, 50.0, 50.5],
        "ttfts": [0.5, 0.0, 0.25], "itls": [[0.1, 0.2], [], []], "errors": ["", "timeout", ""],
    }  # fmt: skip
    path = write(tmp_path, [lists])
    trace = import_trace(path)
    assert trace.provenance.format == "vllm-bench"
    assert trace.arrival_s.tolist() == [0.0, 1.5]
    assert trace.frame["first_token_s"].to_list() == [0.25, 2.0]
    assert trace.frame["last_token_s"].to_list() == pytest.approx([0.25, 2.3])
    assert trace.provenance.transforms[0].counts == {"failed_requests": 1}
    bare = {name: lists[name] for name in ("input_lens", "output_lens")}
    with pytest.raises(ImportFormatError, match="no arrival times"):
        import_trace(write(tmp_path, [bare]))
    for broken in ({**lists, "itls": [[]]}, {**lists, "ttfts": 5}, {**lists, "output_lens": []}):
        with pytest.raises(ImportFormatError, match=r"one length|should be a list"):
            import_trace(write(tmp_path, [broken]))


def test_splitwises_batches_are_refused(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("arrival_timestamp,batch_size,prompt_size,token_size\n0,1,5,5\n1,4,5,5\n")
    with pytest.raises(ImportFormatError, match="row 1 is a batch of 4 prompts"):
        import_trace(path)


def test_turns_that_wait_for_an_answer_are_counted_not_played(tmp_path):
    rows = [
        {"timestamp": 0, "input_length": 10, "output_length": 5, "session_id": "a"},
        {"delay": 500, "input_length": 30, "output_length": 5, "session_id": "a"},
        {"timestamp": 900, "input_length": 20, "output_length": 5, "session_id": "b"},
    ]
    trace = import_trace(write(tmp_path, rows))
    assert trace.arrival_s.tolist() == [0.0, 0.9]
    assert trace.provenance.transforms[0].counts == {"turns_after_a_delay": 1}


LENGTHS_ONLY = {
    "aiperf": '{"input_length": 5, "output_length": 4}\n',
    "llmservingsim": "input_toks,output_toks\n5,4\n",
    "token-counts": "prompt_tokens_count,output_tokens_count\n5,4\n",
    "splitwise": "prompt_size,token_size\n5,4\n",
    "jsonl": "input_tokens,output_tokens\n5,4\n",
    "vidur": "num_prefill_tokens,num_decode_tokens\n5,4\n",
}


@pytest.mark.parametrize("name", LENGTHS_ONLY)
def test_rows_without_times_need_a_rate(tmp_path, name):
    path = tmp_path / "t"
    path.write_text(LENGTHS_ONLY[name])
    with pytest.raises(ImportFormatError, match="no arrival times"):
        import_trace(path)
    drawn = import_trace(path, options=ImportOptions(rate_rps=3.0))
    assert (drawn.provenance.format, drawn.requests) == (name, 1)


@pytest.mark.skipif(not SERVED.is_dir(), reason="the shared data is not beside this checkout")
@pytest.mark.parametrize("model", ["Llama-3.1-8B", "Qwen3-30B-A3B-Instruct-2507"])
def test_the_published_logs_say_what_their_publishers_say(model):
    summary = (SERVED / model / "their_simulator_summary.txt").read_text()
    stated = {line.rsplit(None, 3)[0]: float(line.rsplit(None, 3)[1])
              for line in summary.splitlines() if "Mean" in line}  # fmt: skip
    seen = trace_statistics(import_trace(SERVED / model / "vllm_requests.jsonl")).observed
    assert seen.requests == 300
    # Theirs leave out what a request waits before vLLM queues it: 0 to 0.11 s.
    assert seen.ttft_mean_s * 1e3 == pytest.approx(stated["TTFT Mean"], abs=60)
    assert seen.tpot_mean_ms == pytest.approx(stated["TPOT Mean"], abs=0.06)
