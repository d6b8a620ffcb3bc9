"""Hints about a trace name what helps, whichever command read it."""

import re
import shlex
from pathlib import Path

import pytest

from beamprof.cli.main import main

TABLE = Path(__file__).parents[3] / "tables/a100-sxm4-80gb/llama3-8b/tp1-pp1.parquet"
HEAD = "arrival_s,input_tokens,output_tokens\n"
BAD = {
    "times go back": HEAD + "10,100,10\n9,100,10\n",
    "a row is no request": HEAD + "0,100,10\n1,0,10\n",
    "no unit": "arrival,input_tokens,output_tokens\n0,100,10\n5,100,10\n",
    "lengths only": "input_tokens,output_tokens\n100,10\n",
    "a row far away": HEAD + "0,100,10\n1,100,10\n9e9,100,10\n",
}
READERS = {
    "replay": ["replay", "-t", str(TABLE), "--trace"],
    "advise": ["advise", "-t", str(TABLE), "--trace"],
    "stats": ["trace", "stats"],
    "import": ["trace", "import"],
}


def hint_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(words) == 2
    said = " ".join(capsys.readouterr().err.split())
    return said.partition("hint: ")[2]


@pytest.mark.parametrize("case", BAD)
def test_every_command_that_reads_traces_hints_at_the_import_that_helps(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "my trace.csv"
    file.write_text(BAD[case])
    hints = {name: hint_of([*words, str(file)], capsys) for name, words in READERS.items()}
    assert len(set(hints.values())) == 1, hints
    (typed,) = re.findall(r"beam (trace import .*?)(?:, or .*)?; then", hints["replay"])
    out = tmp_path / "sound.parquet"
    assert main([*shlex.split(typed), "-o", str(out)]) == 0
    assert main([*READERS["stats"], str(out)]) == 0


def test_a_study_hints_at_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "u.csv"
    file.write_text(BAD["times go back"])
    words = [
        "study",
        "--table",
        str(TABLE),
        "--trace",
        str(file),
        "-o",
        str(tmp_path / "s.parquet"),
    ]
    assert f"beam trace import {file} --sort" in hint_of(words, capsys)


@pytest.mark.parametrize(
    ("flags", "helps"),
    [(["--max-model-len", "50"], "--max-model-len"), (["--kv-blocks", "5"], "--max-model-len 80")],
)
def test_a_request_over_a_limit_of_replay_is_hinted_with_its_flags(
    flags: list[str], helps: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "long.csv"
    file.write_text(HEAD + "0,100,10\n1,20,10\n")
    words = [*READERS["replay"], str(file), "--policy", "vanilla", *flags]
    hint = hint_of(words, capsys)
    assert helps in hint
    assert "--max-total-tokens" not in hint
    kept = re.sub(r"--max-model-len \d+", "", " ".join(words)).split(" ")
    limit = ["--max-model-len", flags[1] if flags[0] == "--max-model-len" else "80"]
    assert main([*filter(None, kept), *limit, "--over-limit", "drop"]) == 0
