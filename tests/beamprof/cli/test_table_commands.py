import json
import sys
from pathlib import Path

import numpy as np
import pytest

from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.schema import RowKind
from beamprof.cli.main import main
from beamprof.tables.table_file import write_table

NAME = "dvfs_profile_NVIDIA A100-SXM4-80GB_meta-llama_Llama-3.3-70B-Instruct_tp2_pp4_one.csv"
HEADER = (
    "clock,batch_size,decode_tokens,total_ctx_len,time_taken,energy_consumption,num_trials,valid"
)


CLOCKS_MHZ = (510, 630, 750, 870, 960, 1050, 1170, 1290, 1410)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A small CSV in the published form: 9 clocks, 4 batch sizes, 2 contexts, U-shaped energy."""
    lines = [HEADER]
    for clock in CLOCKS_MHZ:
        for tokens in (1, 32, 64, 128):
            for context in (2048, 40_000):
                time_s = (8e-3 + 1e-4 * tokens + 5e-8 * context) * (0.3 + 700 / clock)
                power_w = 2 * (110 + 250 * (clock / 1410) ** 4)
                millijoules = time_s * power_w * 1e3
                lines.append(f"{clock},{tokens},60,{context},{time_s!r},{millijoules!r},50,1")
    path = tmp_path / NAME
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def table(published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    output = tmp_path / "a table.parquet"
    words = ["table", "import", "--format", "beam-artifact", str(published)]
    assert main([*words, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert f"wrote {output}" in printed
    assert "Imported 72 rows of llama3.3-70b tp2 pp4 on a100-sxm4-80gb" in printed
    return output


def answer(capsys: pytest.CaptureFixture[str]) -> dict:
    printed = json.loads(capsys.readouterr().out)
    assert set(printed) == {"schema", "command", "status", "data", "warnings"}
    return printed


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_inspect_is_readable_where_there_is_no_terminal(table, capsys, monkeypatch, encoding):
    monkeypatch.setenv("COLUMNS", "200")
    if encoding == "ascii":
        monkeypatch.setattr(type(sys.stdout), "encoding", "ascii", raising=False)
    assert main(["table", "inspect", str(table)]) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert lines[0].startswith("llama3.3-70b tp2 pp4 on a100-sxm4-80gb: 72 imported passes")
    # The last line is a command to be copied, so its path is never broken.
    assert lines[-1] == (
        f"next: beam table lookup '{table}' --prefill 68 --decode 60 --decode-context 2048"
    )
    assert max(map(len, lines[:-1])) <= 100
    assert "\x1b" not in printed  # no terminal, no colour
    for heading in ("Coverage", "Energy by clock", "Frontier", "Check"):
        assert heading in printed


def test_inspect_json(table, capsys):
    assert main(["table", "inspect", str(table), "--json"]) == 0
    data = answer(capsys)["data"]
    assert data["drivable"] is True
    assert data["clocks_mhz"] == list(CLOCKS_MHZ)
    assert {point["cell"]["decode_requests"] for point in data["ridge"]} == {1, 32, 60}
    assert all(point["best_clock_mhz"] in (630, 750, 870, 960) for point in data["ridge"])
    assert data["provenance"]["licence"] == "Apache-2.0"
    assert sum(map(sum, data["coverage"]["rows"])) == 72


def test_lookup(table, capsys):
    words = ["table", "lookup", str(table), "--decode", "32", "--decode-context", "2048"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("32 decodes over 2,048 costs least at ")
    assert printed.count("measured") >= 9
    assert main([*words, "--clock", "810", "--json"]) == 0
    (row,) = answer(capsys)["data"]["rows"]
    assert (row["clock_mhz"], row["origin"]) == (810, "interpolated")
    assert row["clocks_below_above_mhz"] == [750, 870]


def test_lookup_outside_the_table_is_a_no(table, capsys):
    words = ["table", "lookup", str(table), "--decode", "400", "--decode-context", "2048"]
    assert main(words) == 1
    failed = capsys.readouterr()
    assert failed.out == ""
    assert failed.err.startswith("error: the table does not cover this step")
    assert "--extrapolate" in failed.err
    assert main([*words, "--extrapolate"]) == 0
    assert "A guess" in capsys.readouterr().out


def test_check_says_yes_and_no(table, capsys, tmp_path):
    assert main(["table", "check", str(table)]) == 0
    assert capsys.readouterr().out.startswith("This table can drive a controller.")
    sound = PerfTable.load(table)
    latency_ms = np.where(
        sound.columns["clock_mhz"] == 960,
        sound.columns["latency_ms"] * 1.6,
        sound.columns["latency_ms"],
    )
    broken = tmp_path / "broken.parquet"
    write_table({**sound.columns, "latency_ms": latency_ms}, sound.metadata, broken)
    assert main(["table", "check", str(broken)]) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("This table should not drive a controller: ")
    assert "clock outlier" in printed
    assert "hint: " in printed
    assert main(["table", "check", str(broken), "--json"]) == 1
    printed = answer(capsys)
    assert printed["status"] == "no"
    assert printed["data"]["drivable"] is False


def test_compare(table, capsys, tmp_path):
    sound = PerfTable.load(table)
    slower = tmp_path / "slower.parquet"
    write_table(
        {**sound.columns, "latency_ms": sound.columns["latency_ms"] * 1.1}, sound.metadata, slower
    )
    assert main(["table", "compare", str(slower), str(table), "--json"]) == 0
    data = answer(capsys)["data"]
    assert data["latency_mape"] == pytest.approx(0.1)
    assert data["latency_bias"] == pytest.approx(0.1)
    assert data["energy_mape"] == 0
    assert data["by_clock"]["960"]["rows"] == 8
    assert data["by_tokens"]["64"]["latency_mape"] == pytest.approx(0.1)
    assert main(["table", "compare", str(slower), str(table)]) == 0
    assert "10.0% off" in " ".join(capsys.readouterr().out.split())


def test_merge_and_export(table, capsys, tmp_path):
    output = tmp_path / "merged.parquet"
    words = ["table", "merge", str(table), str(table)]
    assert main([*words, "--output", str(output)]) == 2
    again = tmp_path / "again.parquet"
    again.write_bytes(table.read_bytes())
    words = ["table", "merge", str(table), str(again), "--output", str(output)]
    assert main(words) == 2
    assert "same pass" in capsys.readouterr().err
    assert main([*words, "--prefer", "oldest"]) == 2
    assert main([*words, "--prefer", "newest"]) == 0
    assert f"wrote {output}" in capsys.readouterr().out
    merged = PerfTable.load(output)
    assert len(merged.rows(RowKind.FORWARD)["kind"]) == 72
    assert main(["table", "export", str(output), "--format", "jsonl", "--json"]) == 0
    written = answer(capsys)["data"]
    assert written["output_path"] == str(tmp_path / "merged.jsonl")
    assert len((tmp_path / "merged.jsonl").read_text().splitlines()) == 1 + len(merged)
    assert main(["table", "export", str(output), "--format", "jsonl"]) == 2
    assert "--force" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["inspect", "check", "export"])
def test_no_such_table(command, capsys, tmp_path):
    assert main(["table", command, str(tmp_path / "none.parquet")]) == 2
    failed = capsys.readouterr()
    assert failed.err.startswith("error: no table at")
    assert "hint: " in failed.err


def test_a_bad_import_leaves_nothing_behind(published, capsys, tmp_path):
    text = published.read_text().replace("time_taken", "time_ms")
    published.write_text(text)
    output = tmp_path / "out.parquet"
    words = ["table", "import", "--format", "beam-artifact", str(published)]
    assert main([*words, "--output", str(output)]) == 2
    failed = capsys.readouterr()
    assert [line.partition(":")[0] for line in failed.err.splitlines()] == [
        "error",
        "cause",
        "hint",
    ]
    assert not output.exists()
    assert main([*words[:3], "excel", str(published), "--output", str(output)]) == 2


def test_a_model_that_was_never_compared_drives_nothing_on_trust(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = str(Path(__file__).parents[3] / "tables/h100-sxm/gpt-oss-120b/tp2-pp1.parquet")
    for words in (["table", "check", table], ["table", "inspect", table]):
        assert main(words) == 0
        first = " ".join(capsys.readouterr().out.split())
        assert "never held against hardware" in first
        assert "can drive a controller" not in first
