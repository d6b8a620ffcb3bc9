"""Requests that the table's model does not take are said to be that, and counted."""

import json

import pytest
from replay_cases import make_table, make_trace

from beam_runtime.table.perf_table import PerfTable
from beamprof.cli.main import main
from beamprof.replay.model_length import beyond_the_model
from beamprof.replay.options import ReplayOptions
from beamprof.tables.model_length import longest_request
from beamprof.tables.table_file import write_table

LONG = make_trace([(0.0, 8192, 1), (1.0, 8000, 192), (2.0, 100, 5)], 3.0)


def test_they_are_counted_against_the_models_context():
    table = make_table(model="llama3-8b")
    said = beyond_the_model(table, LONG, ReplayOptions())
    assert said.startswith("1 of 3 requests have more than the 8,192 tokens that llama3-8b takes")
    assert "--max-model-len 8192" in said


def test_a_length_that_somebody_says_counts_instead():
    table = make_table(model="llama3-8b")
    assert beyond_the_model(table, LONG, ReplayOptions(max_model_len=16384)) == ""


def test_a_folders_model_has_the_length_that_its_table_tells():
    table = make_table(model="my-folder")
    told = {**table.metadata, "model_shape": json.dumps({"max_model_len": 4096})}
    said = beyond_the_model(PerfTable.from_columns(table.columns, told), LONG, ReplayOptions())
    assert said.startswith("2 of 3 requests have more than the 4,096 tokens that my-folder takes")


@pytest.mark.parametrize("shape", ["", "no JSON", "[]", '{"max_model_len": "4096"}', '{"a": 1}'])
def test_a_table_that_tells_none_goes_by_the_registry(shape):
    known, unknown = (make_table(model=name) for name in ("llama3-8b", "my-folder"))
    for table, most in ((known, 8192), (unknown, None)):
        told = {**table.metadata, "model_shape": shape}
        assert longest_request(PerfTable.from_columns(table.columns, told)) == most


def test_of_a_model_that_nobody_knows_nothing_is_said():
    assert beyond_the_model(make_table(), LONG, ReplayOptions()) == ""


@pytest.mark.parametrize("long", [True, False])
def test_a_replay_says_it(tmp_path, capsys, long):
    table = make_table(model="llama3-8b")
    write_table(table.columns, table.metadata, tmp_path / "t.parquet")
    rows = "0,9000,2\n1,100,2\n" if long else "0,8000,2\n1,100,2\n"
    (tmp_path / "x.csv").write_text("arrival_s,input_tokens,output_tokens\n" + rows)
    words = ["-t", str(tmp_path / "t.parquet"), "--trace", str(tmp_path / "x.csv")]
    assert main(["replay", *words, "--policy", "vanilla", "--json"]) == 0
    warnings = json.loads(capsys.readouterr().out)["warnings"]
    assert any("1 of 2 requests" in text for text in warnings) is long


def test_one_prompt_is_told_in_the_singular(capsys, tmp_path):
    table = make_table()
    write_table(table.columns, table.metadata, tmp_path / "t.parquet")
    words = ["-t", str(tmp_path / "t.parquet"), "--policy", "vanilla"]
    for prompts, told in ((1, "1 prompt is too long"), (2, "2 prompts are too long")):
        rows = "".join(f"{at},100000,2\n" for at in range(prompts))
        (tmp_path / "x.csv").write_text("arrival_s,input_tokens,output_tokens\n" + rows)
        assert main(["replay", *words, "--trace", str(tmp_path / "x.csv")]) == 1
        assert told in capsys.readouterr().out
