"""Foreign formats: their quirks from small files, and every bad row named or counted."""

import json

import pytest

from beamprof.errors import BeamError, ImportFormatError, TraceError
from beamprof.traces.importers.registry import IMPORTERS, importer_named
from beamprof.traces.importing import ImportOptions, import_trace, open_trace
from beamprof.traces.policies import BadRows
from beamprof.traces.trace_file import save_trace

DROP = ImportOptions(bad_rows=BadRows.DROP)
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
OURS = "arrival_s,input_tokens,output_tokens\n"

TEN, SEVEN = list(range(10)), [0, 1, 2, 3, 4, 5, 77]

SAMPLES = {
    "azure": AZURE + "2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.0319600,3180,8",
    "beam-artifact": "TIMESTAMP,ContextTokens,GeneratedTokens,timestamp\n"
    "1970-01-01 19:00:00.1+0000,4808,10,x\n1970-01-01 19:00:00.152+0000,3180,8,x\n",
    "burstgpt": "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,GPT-4,4808,10,4818,API log\n5.052,ChatGPT,3180,8,3188,API log\n",
    "vidur": "arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,4808,10\n0.052,3180,8\n",
    "servegen": "request_id,arrival_s,input_tokens,output_tokens,client_id\n"
    "0,0.0,4808,10,7\n1,0.052,3180,8,7\n",
    "mooncake": f'{{"timestamp": 0, "input_length": 4808, "output_length": 10, '
    f'"hash_ids": {TEN}}}\n'
    f'{{"timestamp": 52, "input_length": 3180, "output_length": 8, "hash_ids": {SEVEN}}}\n',
    "bailian": '{"chat_id": 5, "parent_chat_id": -1, "timestamp": 0.0, "input_length": 4808, '
    '"output_length": 10, "turn": 1}\n{"chat_id": 6, "parent_chat_id": 5, "timestamp": 0.052, '
    '"input_length": 3180, "output_length": 8, "turn": 2}\n',
    "aiperf": '{"timestamp": 0, "input_length": 4808, "output_length": 10, "session_id": "a"}\n'
    '{"timestamp": 52, "input_length": 3180, "output_length": 8, "session_id": "b"}\n',
    "splitwise": "request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,"
    "token_size\n0,0,0,0.0,1,4808,10\n1,0,0,0.052,1,3180,8\n",
    "llmservingsim": "input_toks\toutput_toks\tarrival_time_ns\n4808\t10\t0\n3180\t8\t52000000\n",
    "served-log": '{"input_toks": 4808, "output_toks": 10, "arrival_time": 1790000000.0, '
    '"first_token_ts": 1790000001.0, "last_token_ts": 1790000002.0}\n'
    '{"input_toks": 3180, "output_toks": 8, "arrival_time": 1790000000.052, '
    '"first_token_ts": 1790000001.0, "last_token_ts": 1790000003.0}\n',
    "guidellm": json.dumps(
        {
            "benchmarks": [
                {
                    "requests": {
                        "successful": [
                            {
                                "prompt_tokens": 4808,
                                "output_tokens": 10,
                                "start_time": 1790000000.0,
                                "first_token_time": 1790000001.0,
                                "last_token_time": 1790000002.0,
                            },
                            {
                                "prompt_tokens": 3180,
                                "output_tokens": 8,
                                "start_time": 1790000000.052,
                                "first_token_time": 1790000001.0,
                                "last_token_time": 1790000003.0,
                            },
                        ]
                    }
                }
            ]
        },
        indent=1,
    ),
    "aiperf-records": "".join(
        json.dumps(
            {
                "metadata": {"request_start_ns": start_ns, "benchmark_phase": "profiling"},
                "metrics": {
                    "input_sequence_length": {"value": tokens, "unit": "tokens"},
                    "output_sequence_length": {"value": answer, "unit": "tokens"},
                    "time_to_first_token": {"value": 250.0, "unit": "ms"},
                    "request_latency": {"value": 900.0, "unit": "ms"},
                },
                "error": None,
            }
        )
        + "\n"
        for start_ns, tokens, answer in (
            (1790000000000000000, 4808, 10),
            (1790000000052000000, 3180, 8),
        )
    ),
    "vllm-bench": json.dumps(
        {
            "input_lens": [4808, 3180],
            "output_lens": [10, 8],
            "start_times": [71.5, 71.552],
            "ttfts": [0.5, 0.25],
            "itls": [[0.125] * 9, [0.25] * 7],
            "errors": ["", ""],
        },
        indent=1,
    ),
    "usage-log": '{"id": "a", "created": 1790000000.0, "usage": {"prompt_tokens": 4808, '
    '"completion_tokens": 10}}\n{"id": "b", "created": 1790000000.052, "usage": '
    '{"prompt_tokens": 3180, "completion_tokens": 8}}\n',
    "token-counts": "timestamp,prompt_tokens_count,output_tokens_count\n"
    "1790000000.0,4808,10\n1790000000.052,3180,8\n",
    "jsonl": '{"arrival_s": 0, "input_tokens": 4808, "output_tokens": 10}\n'
    '\n{"arrival_s": 0.052, "input_tokens": 3180, "output_tokens": 8, "slo_class": "chat"}\n',
}


def write(tmp_path, text, name="t.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_there_is_a_sample_of_every_format():
    assert set(SAMPLES) == {importer.name for importer in IMPORTERS}


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("forced", [False, True])
def test_each_format_is_found_by_its_first_line_and_means_the_same(tmp_path, name, forced):
    path = write(tmp_path, SAMPLES[name])
    trace = import_trace(path, format_name=name if forced else None)
    assert trace.provenance.format == name
    # A float of Unix seconds keeps a quarter of a microsecond.
    assert trace.arrival_s.tolist() == pytest.approx([0.0, 0.052], abs=3e-7)
    assert trace.input_tokens.tolist() == [4808, 3180]
    assert trace.output_tokens.tolist() == [10, 8]
    assert trace.duration_s == 1.0
    assert not trace.provenance.transforms[0].counts.get("failed_requests")
    assert len(trace.provenance.sha256) == 64


@pytest.mark.parametrize("name", SAMPLES)
def test_windows_line_ends_and_a_byte_order_mark_change_nothing(tmp_path, name):
    plain = import_trace(write(tmp_path, SAMPLES[name]))
    marked = b"\xef\xbb\xbf" + SAMPLES[name].replace("\n", "\r\n").encode()
    assert import_trace(write(tmp_path, marked, "crlf.csv")).sha256() == plain.sha256()


def test_a_format_may_be_forced_where_headers_agree(tmp_path):
    trace = import_trace(write(tmp_path, SAMPLES["azure"]), format_name="beam-artifact")
    assert trace.provenance.format == "beam-artifact"


def test_2024_times_have_an_offset_and_perhaps_no_fraction(tmp_path):
    text = AZURE + (
        "2024-05-10 00:00:00+00:00,1,1\n"
        "2024-05-10 00:00:00.500000+00:00,1,1\n"
        "2024-05-10 03:00:01.25+03:00,1,1\n"
        "2024-05-09T20:00:02-0400,1,1\n"
        "2024-05-10 00:00:03Z,1,1\n"
    )
    assert import_trace(write(tmp_path, text)).arrival_s.tolist() == [0.0, 0.5, 1.25, 2.0, 3.0]


def test_a_week_keeps_its_microseconds(tmp_path):
    text = AZURE + "2024-05-10 00:00:00.000001+00:00,1,1\n2024-05-17 00:00:00.000004+00:00,1,1\n"
    assert import_trace(write(tmp_path, text)).arrival_s[-1] == 604800.000003


def test_burstgpt_drops_failures_and_keeps_sessions(tmp_path):
    text = (
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,"
        "Log Type\n100.0,,1,GPT-4,9,0,9,API log\n101.0,s-1,1,GPT-4,9,3,12,Conversation log\n"
        "103.0,,1,GPT-4,9,4,13,API log\n"
    )
    trace = import_trace(write(tmp_path, text))
    assert trace.arrival_s.tolist() == [0.0, 2.0]
    assert trace.frame["session_id"].to_list() == ["s-1", None]
    assert trace.frame["request_id"].to_list() == [1, 2]
    (step,) = trace.provenance.transforms
    assert (step.requests_before, step.requests_after) == (3, 2)
    assert step.counts == {"failed_requests": 1}


def test_mooncake_blocks_become_prefix_hashes_of_512_tokens(tmp_path):
    trace = import_trace(write(tmp_path, SAMPLES["mooncake"]))
    assert trace.frame["prefix_hashes"].to_list() == [TEN, SEVEN]
    assert trace.prefix_block_tokens == 512


def test_jsonl_keeps_what_it_states(tmp_path):
    line = {
        "arrival_s": 1.5,
        "input_tokens": 3,
        "output_tokens": 2,
        "client_id": 17,
        "session_id": "s",
        "prefix_hashes": [5],
        "prefix_block_tokens": 16,
    }
    trace = import_trace(write(tmp_path, json.dumps(line)))
    assert trace.frame.row(0) == (0, 1.5, 3, 2, "17", "s", [5])
    assert trace.prefix_block_tokens == 16


@pytest.mark.parametrize(
    ("name", "duration_s"),
    [
        ("requests_x_19h00m-20h00m_3600s_3rps.csv", 3600.0),
        ("requests.csv", 1.0),
        ("x_0s_.csv", 1.0),
    ],
)
def test_the_artifact_states_its_duration_in_its_name(tmp_path, name, duration_s):
    assert import_trace(write(tmp_path, SAMPLES["beam-artifact"], name)).duration_s == duration_s


def test_lengths_without_times_need_a_rate(tmp_path):
    path = write(tmp_path, "num_prefill_tokens,num_decode_tokens,pd_ratio\n5,4,1\n6,4,1\n7,4,1\n")
    with pytest.raises(ImportFormatError, match="no arrival times") as caught:
        import_trace(path)
    assert "--rate" in str(caught.value)
    drawn = import_trace(path, options=ImportOptions(rate_rps=2.0, seed=3))
    again = import_trace(path, options=ImportOptions(rate_rps=2.0, seed=3))
    assert drawn.sha256() == again.sha256()
    assert drawn.arrival_s[0] == 0.0
    assert drawn.provenance.transforms[0].parameters["rate_rps"] == 2.0
    with pytest.raises(TraceError, match="arrival times of its own"):
        import_trace(write(tmp_path, SAMPLES["azure"]), options=ImportOptions(rate_rps=2.0))


BAD_ROWS = {
    "a time that is none": ("abc,5,5", "arrival_not_a_number"),
    "NaN time": ("NaN,5,5", "arrival_not_a_number"),
    "infinite time": ("inf,5,5", "arrival_not_a_number"),
    "empty time": (",5,5", "arrival_not_a_number"),
    "negative time": ("-1,5,5", "arrival_negative"),
    "NaN prompt": ("1,NaN,5", "input_tokens_not_a_whole_number"),
    "empty prompt": ("1,,5", "input_tokens_not_a_whole_number"),
    "half a token": ("1,5,2.5", "output_tokens_not_a_whole_number"),
    "words": ("1,5,many", "output_tokens_not_a_whole_number"),
    "endless output": ("1,5,1e300", "output_tokens_more_than_any_model_takes"),
    "zero prompt": ("1,0,5", "input_tokens_below_1"),
    "zero output": ("1,5,0", "output_tokens_below_1"),
    "negative output": ("1,5,-3", "output_tokens_below_1"),
    "short row": ("1", "input_tokens_not_a_whole_number"),
}


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_named_or_dropped_and_counted(tmp_path, row, reason):
    path = write(tmp_path, OURS + f"0,7,7\n{row}\n2,8,8\n")
    with pytest.raises(TraceError, match=f"row 1 .*{reason.replace('_', ' ')}") as caught:
        import_trace(path)
    assert "--bad-rows drop" in str(caught.value)
    assert "1 of 3 rows" in str(caught.value)
    trace = import_trace(path, options=DROP)
    assert trace.frame["request_id"].to_list() == [0, 2]
    (step,) = trace.provenance.transforms
    assert (step.requests_before, step.requests_after) == (3, 2)
    assert step.counts == {reason: 1}


@pytest.mark.parametrize(
    "line",
    [
        '{"timestamp": "soon", "input_length": 5, "output_length": 5}',
        '{"timestamp": NaN, "input_length": 5, "output_length": 5}',
        '{"timestamp": 1, "input_length": true, "output_length": 5}',
        '{"timestamp": 1, "input_length": 5}',
        '{"timestamp": 1' + "0" * 400 + ', "input_length": 5, "output_length": 5}',
    ],
)
def test_json_lines_are_judged_by_the_same_rule(tmp_path, line):
    path = write(tmp_path, SAMPLES["mooncake"] + line.replace("}", ', "hash_ids": [1]}') + "\n")
    with pytest.raises(TraceError, match=r"row 2 .*is no request"):
        import_trace(path)
    assert sum(import_trace(path, options=DROP).provenance.transforms[0].counts.values()) == 1


def test_a_time_that_is_no_time_is_a_bad_row(tmp_path):
    path = write(tmp_path, AZURE + "2023-11-16 18:17:03,5,5\n16/11/2023 18:17,5,5\n")
    with pytest.raises(TraceError, match=r"row 1 .*arrival not a number"):
        import_trace(path)


def test_times_that_go_back_are_an_error_or_sorted_and_counted(tmp_path):
    path = write(tmp_path, OURS + "0,1,1\n5,2,2\n3,3,3\n4,4,4\n6,5,5\n")
    with pytest.raises(TraceError, match="times go back at row 2") as caught:
        import_trace(path)
    assert "--sort" in str(caught.value)
    trace = import_trace(path, options=ImportOptions(sort=True))
    assert trace.arrival_s.tolist() == [0, 3, 4, 5, 6]
    assert trace.frame["request_id"].to_list() == [0, 2, 3, 1, 4]
    assert trace.provenance.transforms[0].counts == {"out_of_order": 2}


def test_wall_clock_times_that_go_back_start_at_the_earliest(tmp_path):
    text = AZURE + "2023-11-16 18:17:05,5,5\n2023-11-16 18:17:03,6,6\n"
    trace = import_trace(write(tmp_path, text), options=ImportOptions(sort=True))
    assert trace.arrival_s.tolist() == [0.0, 2.0]


BAD_FILES = {
    "empty": ("", "is empty"),
    "blank": ("\n\n", "is empty"),
    "unknown header": ("time,question_length,answer\n1,2,3\n", "no trace format has these columns"),
    "a wrong column": (
        AZURE.replace("GeneratedTokens", "Generated") + "x,1,1\n",
        "no trace format",
    ),
    "bars": (OURS.replace(",", "|") + "0|1|1\n", "no trace format"),
    "not text": (b"\x80\x81\x82\n", "not text"),
    "not text below": (OURS.encode() + b"0,1,\xff\n", "output tokens not a whole number"),
    "too many cells": (OURS + "0,1,1,9\n", "not a readable CSV"),
    "a name twice": (OURS.strip() + ",arrival_s\n0,1,1,0\n", "two columns are called arrival_s"),
    "broken JSON": ('{"timestamp": 0, "input_length": 5, "output_length": 5}\n{"ti', "line 2"),
    "a JSON list": (SAMPLES["mooncake"] + "[1]\n", "line 3 is not a JSON object"),
    "JSON of something else": ('{"colour": "blue"}\n', "no trace format"),
    "texts": ('{"prompt": "hello"}\n', "texts, not lengths"),
    "turns of texts": ('{"session_id": "a", "turns": [{"text": "hello"}]}\n', "texts"),
    "deep JSON": ('{"timestamp": ' + "[" * 100_000, "line 1 is not JSON"),
    "hash ids that are words": (
        '{"timestamp": 0, "input_length": 5, "output_length": 5, "hash_ids": ["a"]}',
        "block ids",
    ),
    "a block of no tokens": (
        '{"arrival_s": 0, "input_tokens": 5, "output_tokens": 5, "prefix_block_tokens": 0}',
        "prefix_block_tokens",
    ),
    "hashes of blocks of unknown size": (
        '{"arrival_s": 0, "input_tokens": 5, "output_tokens": 5, "prefix_hashes": [1]}',
        "how many tokens",
    ),
    "a header and no rows": (OURS, "no requests"),
    "bad rows only": (OURS + "-1,1,1\n", "no request"),
}


@pytest.mark.parametrize(("content", "words"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_an_error_in_words(tmp_path, content, words):
    with pytest.raises(BeamError, match=words):
        import_trace(write(tmp_path, content))


def test_dropping_every_row_says_what_was_dropped(tmp_path):
    with pytest.raises(TraceError, match="no requests") as caught:
        import_trace(write(tmp_path, OURS + "-1,1,1\n0,0,1\n"), options=DROP)
    assert "arrival_negative 1" in str(caught.value)
    assert "input_tokens_below_1 1" in str(caught.value)


def test_the_wrong_importer_names_what_it_misses(tmp_path):
    with pytest.raises(ImportFormatError, match="Request tokens") as caught:
        import_trace(write(tmp_path, SAMPLES["azure"]), format_name="burstgpt")
    assert "ContextTokens" in str(caught.value)
    with pytest.raises(ImportFormatError, match="expected the columns timestamp"):
        import_trace(write(tmp_path, SAMPLES["azure"]), format_name="mooncake")
    with pytest.raises(ImportFormatError, match="missing: TIMESTAMP"):
        import_trace(write(tmp_path, SAMPLES["mooncake"]), format_name="azure")
    with pytest.raises(ImportFormatError, match="not of format served-log"):
        import_trace(write(tmp_path, SAMPLES["mooncake"]), format_name="served-log")
    with pytest.raises(ImportFormatError, match="unknown trace format") as caught:
        importer_named("azur")
    assert "burstgpt" in str(caught.value)


def test_a_missing_file_and_a_folder_are_errors_in_words(tmp_path):
    with pytest.raises(ImportFormatError, match="there is no file"):
        import_trace(tmp_path / "nix.csv")
    with pytest.raises(ImportFormatError, match="is a directory") as caught:
        import_trace(tmp_path)
    assert "name a file in it" in str(caught.value)


def test_a_stated_duration_must_hold_every_arrival(tmp_path):
    path = write(tmp_path, OURS + "0,1,1\n5,2,2\n")
    assert import_trace(path, options=ImportOptions(duration_s=60.0)).duration_s == 60.0
    with pytest.raises(TraceError, match="lasts at least until its last arrival"):
        import_trace(path, options=ImportOptions(duration_s=4.0))


def test_open_trace_takes_ours_and_foreign_ones(tmp_path):
    foreign = open_trace(write(tmp_path, SAMPLES["azure"]))
    ours, _ = save_trace(foreign, tmp_path / "ours.csv")
    assert open_trace(ours).sha256() == foreign.sha256()
    with pytest.raises(ImportFormatError, match="there is no file"):
        open_trace(tmp_path / "nix.parquet")
