"""A modelled table says that it is one, and what its model was compared with, where it is used."""

import json

import pytest

from beamprof.cli.main import main
from beamprof.models.registry import registered_config
from beamprof.tables.table_file import write_table


@pytest.fixture(scope="module")
def h100(tmp_path_factory):
    path = tmp_path_factory.mktemp("h100") / "t.parquet"
    words = ["--model", "llama3-8b", "--backend", "modelled", "--device", "h100-sxm"]
    assert main(["profile", *words, "-o", str(path)]) == 0
    return path


@pytest.mark.parametrize(
    "words",
    [
        ["table", "inspect", "TABLE"],
        ["table", "check", "TABLE"],
        ["table", "lookup", "TABLE", "--prefill", "256"],
        ["decide", "TABLE", "--waiting", "1500"],
        ["replay", "-t", "TABLE", "--trace", "x.csv", "--policy", "vanilla"],
        [
            "study",
            "-t",
            "TABLE",
            "--traces",
            "x.csv",
            "--policies",
            "vanilla",
            "--workers",
            "1",
            "--force",
        ],
    ],
    ids=lambda words: words[0] + words[1],
)
def test_the_doubt_goes_with_the_table(h100, tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.csv").write_text("arrival_s,input_tokens,output_tokens\n0,100,5\n")
    line = [str(h100) if word == "TABLE" else word for word in words]
    main(line)
    assert "never compared with a measured table" in " ".join(capsys.readouterr().err.split())
    main([*line, "--json"])
    assert "never compared" in json.loads(capsys.readouterr().out)["warnings"][0]


def test_a_table_of_a_compared_device_says_with_what(capsys, tmp_path):
    path = tmp_path / "a100.parquet"
    words = ["--model", "llama3-8b", "--backend", "modelled", "--device", "a100-sxm4-80gb"]
    main(["profile", *words, "-o", str(path)])
    capsys.readouterr()
    assert main(["table", "check", str(path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    (warning,) = said["warnings"]
    assert warning.startswith("modelled numbers, by a100-sxm4-80gb's file: latency")
    assert (said["data"]["compared"], said["data"]["modelled"]) == (True, True)


def test_a_measured_table_carries_none(capsys, tmp_path, small_table):
    path = tmp_path / "small.parquet"
    write_table(small_table.columns, small_table.metadata, path)
    main(["table", "check", str(path), "--json"])
    assert json.loads(capsys.readouterr().out)["warnings"] == []


def test_a_table_of_a_server_that_cannot_be_says_so(capsys, tmp_path):
    words = ["--model", "llama3-70b", "--backend", "modelled", "--device", "h100-sxm"]
    for tp, doubted in (("1", True), ("2", False)):
        path = tmp_path / f"tp{tp}.parquet"
        assert main(["profile", *words, "--tp", tp, "-o", str(path)]) == 0
        capsys.readouterr()
        main(["table", "check", str(path), "--json"])
        warnings = json.loads(capsys.readouterr().out)["warnings"]
        assert any("137 GB of weights" in text for text in warnings) is doubted


@pytest.mark.parametrize(
    ("folder", "config", "doubted"),
    [("of-my-own", "llama3-70b", True), ("llama3-70b", "llama3-8b", False)],
)
def test_a_folder_is_judged_by_its_shape_and_not_by_its_name(
    capsys, tmp_path, folder, config, doubted
):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "config.json").write_text(json.dumps(registered_config(config)))
    path = tmp_path / "t.parquet"
    words = ["--model", str(tmp_path / folder), "--backend", "modelled", "--device", "h100-sxm"]
    assert main(["profile", *words, "-o", str(path)]) == 0
    capsys.readouterr()
    main(["table", "check", str(path), "--json"])
    warnings = json.loads(capsys.readouterr().out)["warnings"]
    assert any("137 GB of weights" in text for text in warnings) is doubted


@pytest.mark.parametrize("told", ["", "many", "nan", "-1", "9" * 400])
def test_weights_that_say_nothing_are_no_doubt(capsys, tmp_path, small_table, told):
    metadata = {**small_table.metadata, "device": "h100-sxm", "stage_weight_bytes": told}
    columns = dict(small_table.columns)
    columns["source"] = ["modelled"] * len(columns["source"])
    path = tmp_path / "t.parquet"
    write_table(columns, metadata, path)
    main(["table", "check", str(path), "--json"])
    warnings = json.loads(capsys.readouterr().out)["warnings"]
    assert not any("no such server" in text for text in warnings)
