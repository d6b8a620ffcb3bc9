"""Narrow terminals: every column that carries the answer is there, and nothing is cut in a cell."""

import json
import shutil
from pathlib import Path

import pytest

from beamprof.cli.main import main

TABLE = Path(__file__).parents[3] / "tables/a100-sxm4-80gb/llama3-8b/tp1-pp1.parquet"
POLICIES = ("vanilla", "static:best", "window-dvfs", "lowest-feasible", "beam-paper")

# What the answer is told by, for each command.
ANSWERS = {
    "replay -t t.parquet --trace x.csv --policy " + ",".join(POLICIES): (
        *POLICIES, "of vanilla", "TTFT", "stream", "p99 ms",
    ),
    "table lookup t.parquet --prefill 256": ("clock MHz", "latency ms", "energy J"),
    "table inspect t.parquet": ("best MHz", "energy", "time", "tokens"),
    "table check t.parquet": ("latency %", "energy %", "clock MHz"),
    "table compare t.parquet t.parquet": ("latency %", "energy %", "tokens"),
    "trace stats x.csv": ("p90 tokens/s", "max tokens/s", "input", "output", "p99"),
    "profile --model llama3-8b --backend modelled --budget 2m --force -o p.parquet": (
        "step", "best MHz", "saves %", "256 decodes over 262,144",
    ),
    "profile --model llama3-8b --backend modelled --dry-run": ("cells", "would write"),
    "decide t.parquet --waiting 1500": ("MHz", "chunk", "energy", "TTFT ms", "TBT ms", "verdict"),
}  # fmt: skip


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("line", ANSWERS)
def test_the_answer_fits(tmp_path, monkeypatch, capsys, line, width):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", str(width))
    shutil.copy(TABLE, "t.parquet")
    Path("x.csv").write_text("arrival_s,input_tokens,output_tokens\n0,100,5\n1,200,5\n30,9,9\n")
    assert main(line.split()) == 0
    out = capsys.readouterr().out
    for words in ANSWERS[line]:
        assert words in out
    assert "…" not in out
    # Paths and commands are whole, to be copied.
    long = [text for text in out.splitlines() if len(text) > width]
    assert all(text.startswith(("next:", "wrote", "  would write")) for text in long)


@pytest.mark.parametrize("width", [60, 80, 100])
def test_doctor_cuts_nothing(monkeypatch, capsys, width):
    monkeypatch.setenv("COLUMNS", str(width))
    main(["doctor", "--json"])
    checks = json.loads(capsys.readouterr().out)["data"]["checks"]
    main(["doctor"])
    out = "".join(capsys.readouterr().out.split())
    for check in checks:
        for words in (check["name"], check["found"], check["remedy"]):
            assert "".join(words.split()) in out


def test_what_a_narrow_terminal_leaves_out_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(TABLE, "t.parquet")
    monkeypatch.setenv("COLUMNS", "60")
    main(["table", "lookup", "t.parquet", "--prefill", "256"])
    assert "no room here for row J" in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "100")
    main(["table", "lookup", "t.parquet", "--prefill", "256"])
    out = capsys.readouterr().out
    assert "no room" not in out
    assert "row J" in out
