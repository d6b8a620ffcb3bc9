"""Files as other programs write them: encodings, blank lines, Parquet's types, names of times."""

import datetime as dt
import io
import json
import sys
import zipfile

import polars as pl
import pytest

from beamprof.errors import BeamError, ImportFormatError, TraceError
from beamprof.report.trace_views import import_words
from beamprof.traces.importing import ImportOptions, import_trace
from beamprof.traces.policies import BadRows

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
TWO = AZURE + "2024-05-10 00:00:00,100,10\n2024-05-10 00:00:01.5,200,20\n"
OURS = "arrival_s,input_tokens,output_tokens\n"
LINES = (
    '{"arrival_s": 0, "input_tokens": 5, "output_tokens": 2}\n'
    '{"arrival_s": 1, "input_tokens": 6, "output_tokens": 2}\n'
)


def imported(tmp_path, content, name="t.csv", **options):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return import_trace(path, options=ImportOptions(**options))


def refused(tmp_path, content, name="t.csv", **options):
    with pytest.raises(BeamError) as caught:
        imported(tmp_path, content, name, **options)
    return caught.value


def step(trace):
    return trace.provenance.transforms[0]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_utf_16_as_spreadsheets_write_it_is_read(tmp_path, encoding, end):
    bom = "" if encoding == "utf-16" else "\ufeff"
    trace = imported(tmp_path, (bom + TWO.replace("\n", end)).encode(encoding))
    assert trace.input_tokens.tolist() == [100, 200]
    assert imported(tmp_path, (bom + LINES).encode(encoding), "t.jsonl").requests == 2


def test_utf_16_that_ends_early_is_refused(tmp_path):
    error = refused(tmp_path, TWO.encode("utf-16")[:-1])
    assert "UTF-16" in error.message


def test_letters_of_another_encoding_do_no_harm_where_nobody_reads_them(tmp_path):
    text = AZURE.strip() + ",R\u00e9gion\n2024-05-10 00:00:00,100,10,Z\u00fcrich\n"
    trace = imported(tmp_path, text.encode("cp1252"))
    assert trace.requests == 1
    assert step(trace).counts == {}
    assert step(trace).parameters["columns_not_read"] == ["R\u00e9gion"]


def test_letters_of_another_encoding_that_are_kept_are_counted(tmp_path):
    text = "arrival_s,input_tokens,output_tokens,client_id\n0,5,2,Z\u00fcrich\n1,5,2,Bern\n"
    trace = imported(tmp_path, text.encode("cp1252"))
    assert trace.frame["client_id"].to_list() == ["Z\ufffdrich", "Bern"]
    assert step(trace).counts == {"text_with_broken_characters": 1}


@pytest.mark.parametrize("before", ["", "\n", " \r\n\n"])
@pytest.mark.parametrize("behind", ["", "\n", "\r\n\r\n", "   \n", "  "])
@pytest.mark.parametrize("text", [TWO, LINES])
def test_blank_lines_around_the_rows_are_none_of_them(tmp_path, before, behind, text):
    assert imported(tmp_path, before + text + behind).requests == 2


def test_a_last_row_without_a_line_end_stays(tmp_path):
    assert imported(tmp_path, TWO.rstrip("\n")).requests == 2


def test_a_blank_line_between_rows_is_named_or_counted(tmp_path):
    text = TWO.replace("10\n", "10\n\n", 1)
    assert "row 1 (from 0)" in refused(tmp_path, text).message
    trace = imported(tmp_path, text, bad_rows=BadRows.DROP)
    assert (trace.requests, step(trace).counts) == (2, {"arrival_not_a_number": 1})


NOTHING = {
    "a header alone": AZURE, "carriage returns alone": TWO.replace("\n", "\r"),
}  # fmt: skip


@pytest.mark.parametrize("text", NOTHING.values(), ids=NOTHING)
def test_a_file_without_rows_is_said_to_hold_no_requests(tmp_path, text):
    error = refused(tmp_path, text)
    assert "holds no requests" in error.message
    assert "window" not in str(error.hint)


def test_what_is_no_trace_is_told_by_its_kind(tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("t.csv", TWO)
    assert refused(tmp_path, packed.getvalue()).cause == "it is a zip file"
    assert refused(tmp_path, b"\x89PNG\r\n\x1a\n" + bytes(50)).cause == "it is a picture"
    pointer = "version https://git-lfs.example/spec/v1\noid sha256:4d\nsize 12\n"
    assert "git-lfs" in refused(tmp_path, pointer).message
    assert "web page" in refused(tmp_path, "<!DOCTYPE html>\n<html></html>").message


def test_two_columns_of_one_name_matter_only_where_they_are_read(tmp_path):
    error = refused(tmp_path, "TIMESTAMP,ContextTokens,ContextTokens,GeneratedTokens\nx,1,2,3\n")
    assert "two columns are called ContextTokens" in error.message
    text = ",," + AZURE + "0,0,2024-05-10 00:00:00,100,10\n"
    trace = imported(tmp_path, text)
    assert trace.requests == 1
    assert "not read: (unnamed), (unnamed)" in import_words(trace.provenance)


def test_a_header_in_other_letters_is_named_as_the_nearest(tmp_path):
    assert "nearest is azure" in refused(tmp_path, TWO.lower()).hint


@pytest.mark.parametrize(("name", "content"), [
    ("chunk-78-trace.csv", "43200, 2.5, 0.8, Gamma, 1.4, 0.27\n"),
    ("chunk-9-dataset.json", '{"43200": {"input_tokens": "{}"}}'),
])  # fmt: skip
def test_a_part_of_a_servegen_pool_leads_to_its_folder(tmp_path, name, content):
    error = refused(tmp_path, content, name)
    assert "ServeGen pool" in error.message
    assert f"beam trace generate servegen {tmp_path}" in error.hint


def test_standard_input_is_called_so(monkeypatch):
    class Stdin:
        buffer = io.BytesIO(b"")

    monkeypatch.setattr(sys, "stdin", Stdin)
    from pathlib import Path

    with pytest.raises(ImportFormatError, match="standard input is empty"):
        import_trace(Path("-"))


# Parquet's own types.

START = dt.datetime(2024, 5, 10)
DATES = [START, START + dt.timedelta(seconds=1.5)]


def parquet(tmp_path, **columns):
    path = tmp_path / "t.parquet"
    pl.DataFrame(columns).write_parquet(path)
    return import_trace(path)


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
@pytest.mark.parametrize("name", ["arrival_s", "timestamp"])
def test_dates_in_parquet_are_dates_whatever_the_name_says(tmp_path, unit, name):
    dates = pl.Series(DATES).cast(pl.Datetime(unit))
    trace = parquet(tmp_path, **{name: dates}, input_tokens=[5, 6], output_tokens=[1, 2])
    assert trace.arrival_s.tolist() == [0.0, 1.5]


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_spans_in_parquet_are_seconds(tmp_path, unit):
    spans = pl.Series([dt.timedelta(0), dt.timedelta(seconds=1.5)]).cast(pl.Duration(unit))
    trace = parquet(tmp_path, arrival_s=spans, input_tokens=[5, 6], output_tokens=[1, 2])
    assert trace.arrival_s.tolist() == [0.0, 1.5]


def test_categories_and_decimals_in_parquet_are_what_they_say(tmp_path):
    words = pl.Series(["700", "60"])
    for kind in (pl.Categorical, pl.Enum(["60", "700"])):
        trace = parquet(
            tmp_path,
            arrival_s=pl.Series([0.0, 1.5]).cast(pl.Decimal(10, 3)),
            input_tokens=words.cast(kind),
            output_tokens=pl.Series([1, 2]).cast(pl.UInt8),
        )
        assert trace.input_tokens.tolist() == [700, 60]


@pytest.mark.parametrize("values", [
    [[1], [2]], [{"a": 1}, {"a": 2}], [True, False], [dt.timedelta(1), None], [b"1", b"2"],
    [dt.time(1), dt.time(2)],
], ids=lambda values: type(values[0]).__name__)  # fmt: skip
def test_a_column_of_parquet_that_holds_no_numbers_is_refused_in_words(tmp_path, values):
    if isinstance(values[0], bytes):
        values = [b"\xff", b"\xfe"]
    with pytest.raises(TraceError, match="input tokens not a whole number"):
        parquet(tmp_path, arrival_s=[0.0, 1.0], input_tokens=values, output_tokens=[1, 2])


def test_objects_in_parquet_are_reached_into(tmp_path):
    usage = [{"prompt_tokens": 5, "completion_tokens": 1}, None]
    with pytest.raises(TraceError, match="row 1"):
        parquet(tmp_path, created=[1_790_000_000, 1_790_000_002], usage=usage)
    usage[1] = {"prompt_tokens": 6, "completion_tokens": 2}
    trace = parquet(tmp_path, created=[1_790_000_000, 1_790_000_002], usage=usage)
    assert (trace.arrival_s.tolist(), trace.input_tokens.tolist()) == ([0.0, 2.0], [5, 6])


# Rows that are no requests, shown as the file has them.


def test_numbers_in_quotes_are_numbers(tmp_path):
    text = LINES.replace(": 5,", ': "5",').replace(": 0,", ': " 0.0 ",')
    assert imported(tmp_path, text, "t.jsonl").input_tokens.tolist() == [5, 6]


@pytest.mark.parametrize("word", ["1_000", "five", "0x10", "", "1,024"])
def test_words_that_are_no_numbers_are_shown(tmp_path, word):
    text = LINES.replace('"input_tokens": 6', f'"input_tokens": {json.dumps(word)}')
    error = refused(tmp_path, text, "t.jsonl")
    assert f"input_tokens {word or 'nothing'}, " in error.cause
    assert "--bad-rows drop" in error.hint


def test_a_key_that_the_first_object_lacks_is_shown_too(tmp_path):
    text = '{"input_tokens": 5, "output_tokens": 2}\n' + LINES
    assert "arrival_s nothing" in refused(tmp_path, text, "t.jsonl").cause


HINTS = {
    "a date as Americans write it": (
        AZURE + "05/10/2024 00:00:00,100,10\n", "05/10/2024 00:00:00", "year first",
    ),
    "a zone by name": (
        AZURE + "2024-05-10 00:00:00 EST,100,10\n", "2024-05-10 00:00:00 EST", "zones",
    ),
    "separators": (AZURE + '2024-05-10 00:00:00,"1,024",10\n', "1,024", "separators"),
    "nothing but zeros": (OURS + "0,0,0\n", "input_tokens 0", "--format"),
}  # fmt: skip


@pytest.mark.parametrize("case", HINTS)
def test_where_every_row_is_bad_nobody_is_told_to_drop_them(tmp_path, case):
    text, shown, hint = HINTS[case]
    error = refused(tmp_path, text)
    assert shown in error.cause
    assert hint in error.hint
    assert "--bad-rows" not in error.hint


@pytest.mark.parametrize("moments", [
    ("2024/05/10 00:00:00", "2024/05/10 00:00:01.5"),
    ("2024-05-10T02:00:00+02", "2024-05-10T02:00:01.5+02"),
    ("2024-05-10 00:00:00,0Z", "2024-05-10 00:00:01,500Z"),
])  # fmt: skip
def test_dates_that_can_mean_one_thing_only_are_read(tmp_path, moments):
    rows = "".join(f'"{moment}",100,10\n' for moment in moments)
    assert imported(tmp_path, AZURE + rows).arrival_s.tolist() == [0.0, 1.5]


def test_times_of_which_some_state_their_zone_are_refused(tmp_path):
    text = AZURE + "2024-05-10T00:00:00+00:00,100,10\n2024-05-10T00:00:01,100,10\n"
    error = refused(tmp_path, text)
    assert "zone" in error.message
    assert "row 1 has 2024-05-10T00:00:01" in error.cause


# Times under other names.


@pytest.mark.parametrize(("name", "cells"), [
    ("arrival_ms", ("0", "1500")), ("arrival_us", ("0", "1500000")),
    ("timestamp", ("1790000000", "1790000001.5")),
    ("timestamp", ("1790000000000", "1790000001500")),
    ("created_at", ("2024-05-10T00:00:00Z", "2024-05-10T00:00:01.5Z")),
    ("arrival_time", ("1790000000", "1790000001.5")),
])  # fmt: skip
def test_the_usual_names_of_an_arrival_are_known(tmp_path, name, cells):
    text = f"{name},input_tokens,output_tokens\n{cells[0]},5,2\n{cells[1]},6,2\n"
    trace = imported(tmp_path, text)
    assert trace.arrival_s.tolist() == pytest.approx([0.0, 1.5], abs=3e-7)
    assert "columns_not_read" not in step(trace).parameters


def test_a_time_without_a_unit_is_asked_for(tmp_path):
    text = "timestamp,input_tokens,output_tokens\n0,5,2\n90,6,2\n"
    assert "has no unit" in refused(tmp_path, text).message
    assert imported(tmp_path, text, time_unit="s").arrival_s.tolist() == [0.0, 90.0]


def test_our_own_time_goes_before_others(tmp_path):
    text = "timestamp,arrival_s,input_tokens,output_tokens\n1790000000,0,5,2\n1790000009,1,6,2\n"
    trace = imported(tmp_path, text)
    assert trace.arrival_s.tolist() == [0.0, 1.0]
    assert step(trace).parameters["columns_not_read"] == ["timestamp"]


def test_a_time_that_nobody_knows_is_named_before_arrivals_are_drawn(tmp_path):
    error = refused(tmp_path, "when,input_tokens,output_tokens\n0,5,2\n")
    assert "not read: when" in error.cause
    assert "arrival_s" in error.hint


USAGE = {
    "columns of their own": {"startTime": 1790000000.0, "prompt_tokens": 5, "completion_tokens": 2},
    "in usage": {"created": 1790000000,
                 "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}},
    "Anthropic's": {"timestamp": "2024-05-10T00:00:00Z",
                    "usage": {"input_tokens": 5, "output_tokens": 2}},
    "of a batch": {"custom_id": "a", "response": {"status_code": 200, "body": {
        "created": 1790000000, "usage": {"prompt_tokens": 5, "completion_tokens": 2}}}},
}  # fmt: skip


@pytest.mark.parametrize("row", USAGE.values(), ids=USAGE)
def test_logs_of_an_openai_style_api(tmp_path, row):
    trace = imported(tmp_path, json.dumps(row) + "\n", "t.jsonl")
    assert trace.provenance.format == "usage-log"
    assert (trace.input_tokens[0], trace.output_tokens[0], trace.arrival_s[0]) == (5, 2, 0.0)


def test_a_log_without_counts_of_tokens_says_what_is_missing(tmp_path):
    error = refused(tmp_path, '{"created": 1790000000, "usage": null}\n', "t.jsonl")
    assert "how many tokens" in error.message
    assert "include_usage" in error.hint
