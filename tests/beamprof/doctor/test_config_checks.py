"""`beam doctor --config beam.toml`: could an engine be started with this file, on this machine?"""

import json
import socket
from pathlib import Path

import pytest

from beam_runtime.control.decision_log import SCHEMA, DecisionLog
from beam_runtime.errors import BeamError
from beam_runtime.testing.nvml import FakeGpu, FakeNvml
from beamprof.cli.main import main
from beamprof.doctor.config_checks import config_checks
from beamprof.doctor.gpus import find_gpus
from beamprof.tables.table_file import seal_table, write_table


@pytest.fixture
def folder(small_table, tmp_path):
    write_table(small_table.columns, small_table.metadata, tmp_path / "t.parquet")
    return tmp_path


def looked(folder, text, gpus=()):
    path = folder / "beam.toml"
    path.write_text(text)
    return {check.name: check for check in config_checks(path, gpus)}


def test_a_good_file_is_all_good(folder):
    found = looked(folder, 'table = "t.parquet"\nlog = "d.jsonl"\nmetrics_port = 9464\n')
    assert found["policy"].found.startswith("observe")
    assert found["table"].ok and found["slo"].ok and found["log"].ok and found["metrics"].ok
    assert found["slo"].found == "1s/200ms"
    assert found["clock"].ok is None and "clocks stay as they are" in found["clock"].found
    assert all(check.ok is not False for check in found.values())


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("", "table", "none is named"),
        ('table = "nix.parquet"', "table", "nix.parquet"),
        ('table = "beam.toml"', "table", ""),
        ('table = "t.parquet"\n[slo]\ntbt_ms = 1', "slo", "1s/1ms: a token beside"),
        ('table = "t.parquet"\n[slo.chat]\ntpot_ms = 0.5', "slo.chat", "a token takes"),
        ('table = "t.parquet"\nlog = "no/where.jsonl"', "log", "where.jsonl"),
        ('table = "t.parquet"\nlog = "."', "log", "is a folder"),
        ('table = "t.parquet"\nlog = "beam.toml"', "log", "beam.toml"),
        ('table = "t.parquet"\nmetrics_port = 1\ntoken_file = "nix"', "metrics", "cannot read"),
        ('table = "t.parquet"\n[clock]\ngpus = [7]', "clock", "not on this machine: 7"),
        ('table = "t.parquet"\n[clock]\ngpus = ["GPU-x"]', "clock", "GPU-x"),
    ],
)
def test_what_stands_in_the_way_is_named_with_what_helps(folder, text, name, words):
    check = looked(folder, text)[name]
    assert check.ok is False
    assert words in check.found
    assert check.remedy


def test_a_class_named_default_is_refused_here_as_by_an_engine(folder, capsys):
    path = folder / "beam.toml"
    path.write_text('table = "t.parquet"\n[slo]\nttft_ms = 1000\n[slo.default]\nttft_ms = 5\n')
    assert main(["doctor", "--config", str(path)]) == 2
    said = capsys.readouterr().err
    assert "[slo.default] is no class" in said and "hint: " in said


def test_a_log_that_goes_on_is_good(folder):
    log = DecisionLog(folder / "d.jsonl")
    log.write("start", 0.0, schema=SCHEMA)
    log.close()
    assert looked(folder, 'table = "t.parquet"\nlog = "d.jsonl"')["log"].ok
    (folder / "empty.jsonl").touch()
    assert looked(folder, 'table = "t.parquet"\nlog = "empty.jsonl"')["log"].ok


def test_gpus_are_held_against_the_machine_and_the_table(folder, small_table):
    nvml = FakeNvml(gpus=[FakeGpu(f"GPU-{at}") for at in range(8)])
    gpus = find_gpus(nvml)[1]
    assert len(gpus) == 8
    need = small_table.tp * small_table.pp
    text = 'table = "t.parquet"\n[clock]\ngpus = {}\n'
    enough = looked(folder, text.format(list(range(need))), gpus)
    assert enough["clock"].ok and "GPUs" not in enough
    by_name = json.dumps([gpus[at].uuid for at in range(need)])
    assert looked(folder, text.format(by_name), gpus)["clock"].ok
    more = looked(folder, text.format(list(range(need + 1))), gpus)
    assert more["GPUs"].ok is False
    total = f"the table is for {need} (tp {small_table.tp} x pp {small_table.pp})"
    assert more["GPUs"].found == f"{need + 1} GPUs named, {total}"
    assert looked(folder, text.format([0]), gpus)["GPUs"].found == f"1 GPU named, {total}"
    assert looked(folder, text.format([0] * need), gpus)["clock"].found == "a GPU is named twice"
    there = looked(
        folder, text.format([0]) + f'[clock.nodes]\n"node2:4938" = {list(range(need - 1))}\n', gpus
    )
    assert there["clock"].ok, "those of other nodes are not looked for here"


def test_the_exit_code_is_the_files(folder, capsys):
    good = folder / "beam.toml"
    good.write_text('table = "t.parquet"\n')
    assert main(["doctor", "--config", str(good)]) == 0
    assert "observe: BEAM predicts and logs" in " ".join(capsys.readouterr().out.split())
    good.write_text('table = "nix.parquet"\n')
    assert main(["doctor", "--config", str(good), "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert (printed["status"], printed["data"]["serves"]) == ("no", False)
    assert printed["data"]["config_checks"][1]["name"] == "table"
    good.write_text("tabel = 1\n")
    assert main(["doctor", "--config", str(good)]) == 2
    assert "there is no field tabel" in capsys.readouterr().err
    assert main(["doctor", "--config", str(Path(folder, "nix.toml"))]) == 2


def test_a_floor_above_the_fastest_clock_is_said_and_stops_nobody(folder):
    found = looked(folder, 'table = "t.parquet"\n[slo]\nleast_tokens_per_s = 100000')
    check = found["slo.least_tokens_per_s"]
    assert check.ok is None and "a request alone gets" in check.found
    assert found["slo"].ok and found["slo"].found == "1s/200ms/100000tok/s"


@pytest.fixture
def board():
    return find_gpus(FakeNvml(gpus=[FakeGpu(f"GPU-{at}") for at in range(2)]))[1]


def clock_of(folder, gpus, board):
    return looked(folder, f'table = "t.parquet"\n[clock]\ngpus = {gpus}\n', board)["clock"]


def test_gpus_may_be_named_as_an_engine_takes_them(folder, board):
    address = board[0].pci_address
    for name in (address, address.upper(), f"0000{address}"):
        assert clock_of(folder, json.dumps([name, 1]), board).ok, name


def test_a_gpu_is_named_twice_under_any_of_its_names(folder, board):
    for again in ("GPU-1", board[1].pci_address):
        check = clock_of(folder, json.dumps([1, again]), board)
        assert check.ok is False
        assert "twice" in check.found


def test_slices_are_refused_as_by_an_engine(folder):
    nvml = FakeNvml(gpus=[FakeGpu("GPU-0"), FakeGpu("GPU-1", mig=1)])
    check = clock_of(folder, "[0, 1]", find_gpus(nvml)[1])
    assert check.ok is False
    assert "MIG" in check.found


def test_gpus_of_another_kind_than_the_tables_are_refused_as_by_an_engine(folder, small_table):
    metadata = {**small_table.metadata, "device": "h100-sxm"}
    table = seal_table(small_table.columns, metadata)
    write_table(table.columns, table.metadata, folder / "h100.parquet")
    board = find_gpus(FakeNvml(gpus=[FakeGpu(f"GPU-{at}", name="NVIDIA A100-SXM4-80GB")
                                     for at in range(8)]))[1]  # fmt: skip
    count = small_table.tp * small_table.pp
    check = looked(folder, f'table = "h100.parquet"\n[clock]\ngpus = {list(range(count))}', board)
    assert check["GPUs"].ok is False
    assert "NVIDIA A100-SXM4-80GB" in check["GPUs"].found


def test_the_environments_policy_goes_first_as_in_an_engine(folder, monkeypatch):
    text = 'table = "t.parquet"\npolicy = "steer"\n'
    monkeypatch.setenv("BEAM_POLICY", "observe")
    assert looked(folder, text)["policy"].found.startswith("observe")
    monkeypatch.setenv("BEAM_POLICY", "Steer")
    with pytest.raises(BeamError, match="BEAM_POLICY must be") as refused:
        looked(folder, text)
    assert "BEAM_POLICY" in (refused.value.hint or "")


def test_an_engine_that_is_left_alone_needs_nothing(folder):
    found = looked(folder, 'policy = "off"\ntable = "nix.parquet"\n')
    assert all(check.ok is not False for check in found.values())


def test_who_may_change_something_is_told_as_the_server_has_it(folder):
    def told(address):
        text = f'table = "t.parquet"\nmetrics_port = 0\nmetrics_address = "{address}"\n'
        return looked(folder, text)["metrics"].found

    assert "changes without a token" in told("127.0.0.1")
    assert "no changes" in told("0.0.0.0")


def test_a_port_that_is_taken_is_told(folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        check = looked(folder, f'table = "t.parquet"\nmetrics_port = {port}\n')["metrics"]
    assert check.ok is None
    assert "nothing would be served" in check.found


def test_a_log_with_a_name_that_no_file_has(folder):
    assert looked(folder, 'table = "t.parquet"\nlog = "a\\u0000b"\n')["log"].ok is False
