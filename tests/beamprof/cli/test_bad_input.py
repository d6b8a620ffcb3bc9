"""Command lines that cannot be done: each ends in words and a code, and nothing is lost."""

import hashlib
import io
import json
import shutil
import sys
from pathlib import Path

import polars as pl
import pytest

from beamprof.cli.main import main

TABLE = Path(__file__).parents[3] / "tables/a100-sxm4-80gb/llama3-8b/tp1-pp1.parquet"
LONG = "a" * 300
CASES = (Path(__file__).parent / "bad_command_lines.txt").read_text(encoding="utf-8")
LINES = [line for line in CASES.splitlines() if line and not line.startswith("#")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """One of each file that is not what a command needs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    shutil.copy(TABLE, "t.parquet")
    files = {
        "empty": b"", "text.parquet": b"hello", "png": b"\x89PNG\r\n\x1a\n" + bytes(50),
        "nul": bytes(100), "cut.parquet": TABLE.read_bytes()[:5000],
        "x.csv": b"arrival_s,input_tokens,output_tokens\n0,10,5\n1,20,5\n",
        "bad.toml": b'tp = "x"\n', "unk.toml": b'modle = "llama3-8b"\n', "no.toml": b"= =\n",
        "bin.toml": b"\xff\xfe", "log.jsonl": b'{"a":1}\n',
        "s.json": b'{"waiting":[{"prompt_tokens":-5}]}', "s2.json": b'{"wating":[]}',
        "s3.json": b"[1]", "s4.json": b'{"waiting":[{"prompt_tokens":1e999}]}', "s5.json": b"{",
        "s6.json": b'{"waiting":[{}],"running":5}',
        "far.csv": b"arrival_s,input_tokens,output_tokens\n0,1,1\n1,1,1\n1790000000,1,1\n",
        "zero.csv": b"arrival_s,input_tokens,output_tokens\n0,1,0\n",
        "back.csv": b"arrival_s,input_tokens,output_tokens\n5,1,1\n3,1,1\n",
        "nan.csv": b"arrival_s,input_tokens,output_tokens\nNaN,1,1\n",
        "lengths.csv": b"input_tokens,output_tokens\n5,1\n",
        "bare.jsonl": b'{"timestamp": 5, "input_length": 9, "output_length": 1}\n',
        "mixed.jsonl": b'{"timestamp": 0, "input_length": 9, "output_length": 1, "hash_ids": [1]}\n'
        b'{"timestamp": 1790000000000, "input_length": 9, "output_length": 1, "hash_ids": [1]}\n',
        "two-slos.csv": b"arrival_s,input_tokens,output_tokens,slo_tbt_ms,slo_e2e_ms\n"
        b"0,9,2,50,900\n",
        "minus-slo.csv": b"arrival_s,input_tokens,output_tokens,slo_ttft_ms\n0,9,2,-50\n",
        "hashes.csv": b"arrival_s,input_tokens,output_tokens,prefix_hashes\n0,9,2,1 2\n",
        "notmooncake.jsonl":
        b'{"timestamp": 0, "input_length": 90, "output_length": 1, "hash_ids": [1, 2]}\n',
    }  # fmt: skip
    for name, content in files.items():
        Path(name).write_bytes(content)
    pl.DataFrame({"a": [1]}).write_parquet("other.parquet")
    Path("dir").mkdir()
    Path("loop").symlink_to("loop")
    return tmp_path


def seen(folder):
    """Every file and its content."""
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
        if not path.is_symlink()
    }


def run(capsys, words):
    code = main(words)
    out, err = capsys.readouterr()
    return code, out, err


def test_there_are_more_than_150():
    assert len(set(LINES)) > 200


@pytest.mark.parametrize("line", LINES)
def test_each_is_refused_in_words_and_nothing_is_lost(folder, capsys, line):
    words = [{"LONG": LONG, "EMPTY": ""}.get(word, word) for word in line.split()]
    before = seen(folder)
    code, out, err = run(capsys, words)
    assert code in (1, 2)
    assert out == ""
    # A noun without its verb is answered with its help.
    assert "\nerror: " in "\n" + err or "Usage: " in err
    for foreign in ("Traceback", "Input should", "validation error", "has a bug", "Errno"):
        assert foreign not in err
    assert seen(folder) == before

    code_json, out, _ = run(capsys, [*words, "--json"])
    answer = json.loads(out)
    assert answer["status"] == "error"
    assert answer["warnings"] == []
    assert answer["data"]["message"]
    first = words[0] if words and words[0] in ("profile", "decide", "replay", "study") else None
    assert first is None or answer["command"] == first
    assert code_json in (1, 2)
    assert seen(folder) == before


HINTS = {
    "table lookup t.parquet --decode 32": "--decode 32 --decode-context",
    "table lookup t.parquet": "for example",
    "table lookup t.parquet --prefill 10 --clock 5000": "--clock 1410",
    "decide t.parquet --waiting 1500 --clock 777": "--clock 750 or 870",
    "profile --model llama3-8b --tp 3 --dry-run": "--tp can be 1, 2, 4",
    "table inspect empty": "copy it again",
    "table inspect x.csv": "beam table import",
    "sweep show unk.toml": "did you mean 'model'",
    "profile --model llama3 --dry-run": "did you mean llama3-8b?",
    "replay -t t.parquet --trace x.csv --policy vanila": "did you mean 'vanilla'?",
    "replay -t t.parquet --trace x.csv --policy BEAM": "did you mean 'beam'?",
}


@pytest.mark.parametrize("line", HINTS)
def test_hints_name_values_that_work(folder, capsys, line):
    del folder
    _, _, err = run(capsys, line.split())
    assert "hint: " in err
    assert HINTS[line] in err


def test_what_a_hint_says_of_a_step_can_be_looked_up(folder, capsys):
    del folder
    for line in ("table lookup t.parquet --decode 32", "table lookup t.parquet"):
        _, _, err = run(capsys, line.split())
        flags = err.split("for example ")[1].strip().split()
        assert run(capsys, ["table", "lookup", "t.parquet", *flags])[0] == 0


EMPTY_OR_FOREIGN = {
    "empty": "is empty", "x.csv": "CSV", "png": "a picture", "s.json": "JSON", "nul": "binary",
    "text.parquet": "text", "dir": "a directory", "other.parquet": "no BEAM table",
    "cut.parquet": "cannot be read as Parquet", "nix": "no table at nix",
}  # fmt: skip


@pytest.mark.parametrize("name", EMPTY_OR_FOREIGN)
def test_empty_and_foreign_files_are_told_apart(folder, capsys, name):
    del folder
    _, _, err = run(capsys, ["table", "check", name])
    assert EMPTY_OR_FOREIGN[name] in err.splitlines()[0]
