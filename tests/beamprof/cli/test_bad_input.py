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

# Words by spaces; LONG is a name of 300 letters, EMPTY one of none.
CASES = """
table inspect nix.parquet
table inspect empty
table inspect text.parquet
table inspect cut.parquet
table inspect other.parquet
table inspect png
table inspect nul
table inspect dir
table inspect loop
table inspect LONG
table inspect EMPTY
table inspect x.csv
table check other.parquet
table lookup t.parquet --prefill -5
table lookup t.parquet --prefill 1e3
table lookup t.parquet --prefill 99999999999999999999
table lookup t.parquet --decode 5 --decode-context 99999999999999999999
table lookup t.parquet --prefill 10 --clock 0
table lookup t.parquet --prefill 10 --clock 99999999999999999999999
table lookup t.parquet --prefill 9223372036854775807 --extrapolate
table lookup t.parquet --prefill 99999999999999999999999999 --extrapolate
table compare t.parquet nix
table compare t.parquet other.parquet
table compare - -
table merge t.parquet -o m.parquet
table merge t.parquet t.parquet -o m.parquet
table merge t.parquet nix -o m.parquet
table merge t.parquet t.parquet -o t.parquet --force
table merge t.parquet t.parquet -o m.parquet --prefer oldest
table merge t.parquet t.parquet -o dir
table merge t.parquet t.parquet -o no/where.parquet
table export t.parquet --format xml
table export t.parquet -o t.parquet --force
table export t.parquet -o ./dir/../t.parquet --force
table export t.parquet -o LONG
table export t.parquet -o loop
table export t.parquet -o loop --force
table export t.parquet -o /dev/full
table export t.parquet -o text.parquet
table import x.csv --format beam-artifact
table import x.csv --format nix
table import nix.csv --format beam-artifact
table import empty --format beam-artifact -o e.parquet
table import png --format beam-artifact -o e.parquet
table import x.csv --format beam-artifact -o x.csv --force
sweep show nix
sweep show bad.toml
sweep show unk.toml
sweep show no.toml
sweep show bin.toml
sweep show dir
sweep show ./dir
sweep init x.csv
sweep init dir
sweep init no/where.toml
profile
profile --model nix
profile --model llama3-8b --tp 0 --dry-run
profile --model llama3-8b --tp 3 --dry-run
profile --model llama3-8b --tp 99999999999999999999 --dry-run
profile --model llama3-8b --pp 999 --dry-run
profile --model llama3-8b --backend nix --dry-run
profile --model llama3-8b --backend modelled --device nix --dry-run
profile --model llama3-8b --backend modelled --clocks 5 --dry-run
profile --model llama3-8b --backend modelled --clocks 1e400 --dry-run
profile --model llama3-8b --backend modelled --clocks 510:1410:0 --dry-run
profile --model llama3-8b --backend modelled --clocks 510:1410:x1.0000000001 --dry-run
profile --model llama3-8b --backend modelled --clocks 9999999 --dry-run
profile --model llama3-8b --backend modelled --clocks EMPTY --dry-run
profile --model llama3-8b --backend modelled --budget 10 --dry-run
profile --model llama3-8b --backend modelled --budget 1ms --dry-run
profile --model llama3-8b --backend modelled --budget 1e300h --dry-run
profile --model llama3-8b --backend modelled --budget 1e9999h --dry-run
profile --model llama3-8b --backend modelled --budget -5m --dry-run
profile --model llama3-8b --backend modelled --max-tokens 0 --dry-run
profile --model llama3-8b --backend modelled --seed -1 --dry-run
profile --model llama3-8b --backend modelled --assume-power 5 --dry-run
profile --model llama3-8b --backend modelled --assume-power 1e30kW --dry-run
profile --model llama3-8b --backend modelled --sweep nix --dry-run
profile --model llama3-8b --backend modelled -o t.parquet
profile --model llama3-8b --backend modelled -o dir
profile --model llama3-8b --backend modelled -o no/where.parquet
profile --model dir --dry-run
profile --model t.parquet --dry-run
profile --model LONG --dry-run
profile --model EMPTY --dry-run
decide nix
decide t.parquet --waiting x
decide t.parquet --waiting 0
decide t.parquet --waiting -5
decide t.parquet --waiting 5000x5000
decide t.parquet --waiting 99999999999999999999999999
decide t.parquet --running 1x99999999999
decide t.parquet --waiting 5 --state s.json
decide t.parquet --state s.json
decide t.parquet --state s2.json
decide t.parquet --state s3.json
decide t.parquet --state s4.json
decide t.parquet --state s5.json
decide t.parquet --state s6.json
decide t.parquet --state nix.json
decide t.parquet --state dir
decide t.parquet --state png
decide - --state -
decide t.parquet --waiting 5 --slo-ttft 5
decide t.parquet --waiting 5 --slo-ttft -5s
decide t.parquet --waiting 5 --slo-ttft 0s
decide t.parquet --waiting 5 --slo-ttft 1e400s
decide t.parquet --waiting 5 --slo-tbt nan
decide t.parquet --waiting 5 --slo-tbt 1e300s
decide t.parquet --waiting 5 --clock 5
decide t.parquet --waiting 5 --clock -5
decide t.parquet --waiting 5 --max-chunk 5
decide t.parquet --waiting 5 --max-num-seqs 0
decide t.parquet --waiting 5 --max-num-seqs 999999999999
decide t.parquet --waiting 5 --host-gap 1e300s
decide t.parquet --waiting 5 --idle-power 5
decide t.parquet --waiting 5 --idle-power 1e30kW
trace stats nix
trace stats empty
trace stats dir
trace stats png
trace stats nul
trace stats other.parquet
trace stats cut.parquet
trace stats loop
trace stats LONG
trace stats t.parquet
trace import x.csv --format nix
trace import x.csv --window 5
trace import x.csv --window 5s:1s
trace import x.csv --window 5s:1000s
trace import x.csv --window :
trace import x.csv --target-tps -5
trace import x.csv --target-tps nan
trace import x.csv --target-tps inf
trace import x.csv --duration 1e300s
trace import x.csv --duration 100ms
trace import x.csv --rate 5
trace import x.csv --rate nan
trace import x.csv --seed -5
trace import x.csv --time-unit min
trace import x.csv --block-tokens 0
trace import x.csv --max-total-tokens 1
trace import x.csv --max-total-tokens 12
trace import x.csv -o x.csv --force
trace import x.csv -o x.txt
trace import x.csv -o dir
trace import x.csv -o /dev/full
trace import x.csv --bad-rows maybe
trace generate poisson --rate 0
trace generate poisson --rate -5
trace generate poisson --rate nan
trace generate poisson --rate 1e300
trace generate poisson --rate 1e9 --duration 1000h
trace generate poisson --duration 0s
trace generate poisson --input-tokens 0
trace generate poisson --input-tokens 99999999999999999999
trace generate poisson --spread 5
trace generate poisson --spread nan
trace generate step --burst 1h
trace generate step --low 0 --high 0
trace generate ramp --from -1
trace generate spike --every 0s
trace generate spike --requests -5
trace generate spike --requests 999999999999
trace generate servegen nix
trace generate servegen x.csv
trace generate servegen dir
trace generate servegen dir --scale 1 --target-tps 5
replay -t nix --trace x.csv
replay -t t.parquet --trace nix
replay -t t.parquet --trace empty
replay -t t.parquet --trace x.csv --policy nix
replay -t t.parquet --trace x.csv --policy EMPTY
replay -t t.parquet --trace x.csv --policy static:5
replay -t t.parquet --trace x.csv --policy static:x
replay -t t.parquet --trace x.csv --policy vanilla:0
replay -t t.parquet --trace x.csv --noise -1
replay -t t.parquet --trace x.csv --noise nan
replay -t t.parquet --trace x.csv --noise 1e300
replay -t t.parquet --trace x.csv --slo-ttft 1
replay -t t.parquet --trace x.csv --host-gap 1e300s
replay -t t.parquet --trace x.csv --idle-power -5W
replay -t t.parquet --trace x.csv --max-model-len 12
replay -t t.parquet --trace x.csv --kv-blocks 1
replay -t t.parquet --trace x.csv --tp 7
replay -t t.parquet --trace x.csv --model other
replay -t t.parquet --trace x.csv -o x.csv
replay -t t.parquet --trace x.csv -o -
replay -t t.parquet --trace x.csv -o no/where/run
replay -t - --trace -
study
study nix.toml
study unk.toml
study no.toml
study -t t.parquet
study -t t.parquet --traces nix
study -t t.parquet --traces x.csv --slos 5
study -t t.parquet --traces x.csv --slos 1s/x
study -t t.parquet --traces x.csv --seeds x
study -t t.parquet --traces x.csv --noises -1
study -t t.parquet --traces x.csv --workers 0 --policies vanilla
study -t t.parquet --traces x.csv --on mars
study -t t.parquet --traces x.csv -o x.csv --force
study -t t.parquet --traces x.csv -o -
study -t t.parquet --traces x.csv -o dir
study -t t.parquet --traces x.csv -o no/where.parquet
report nix
report dir
report empty
report x.csv
report t.parquet
report log.jsonl
report png
report other.parquet
report dir --window x
doctor --nix
trace generate spike --every 1ms --duration 10000h
table inspect log.jsonl
table lookup t.parquet --decode 32
table lookup t.parquet --decode 32 --decode-context 5
table lookup t.parquet --decode-context 500
table lookup t.parquet --prefill-context 500
table lookup t.parquet
table lookup t.parquet --prefill 5 --clock 1411
table merge x.csv t.parquet -o m.parquet
table import - --format beam-artifact -o -
decide t.parquet --waiting 5 --host-gap 5
decide x.csv --waiting 5
decide empty --waiting 5
trace import far.csv
trace import mixed.jsonl
trace import bare.jsonl
trace import lengths.csv
trace import zero.csv
trace import back.csv
trace import nan.csv
trace import notmooncake.jsonl
report dir/..//nix
sweep init -o x
trace generate
table
trace
sweep
nix
tabel
table inspct t.parquet
profile --modle llama3-8b
replay --trace x.csv
replay -t t.parquet
decide
table lookup
profile --model llama3-8b extra
advise
advise --rate 1
advise -t nix --rate 1
advise -t x.csv --rate 1
advise -t t.parquet
advise -t t.parquet --rate 0
advise -t t.parquet --rate -1
advise -t t.parquet --rate nan
advise -t t.parquet --rate inf
advise -t t.parquet --rate 1e300
advise -t t.parquet --rate 1 --input-tokens 0
advise -t t.parquet --rate 1 --input-tokens 99999999999999999999
advise -t t.parquet --rate 1 --output-tokens -1
advise -t t.parquet --rate 1 --trace x.csv
advise -t t.parquet --trace nix
advise -t t.parquet --trace empty
advise -t t.parquet --trace t.parquet
advise -t t.parquet --from-vllm nix
advise -t t.parquet --from-vllm empty
advise -t t.parquet --from-vllm x.csv
advise -t t.parquet --from-vllm png
advise -t t.parquet --from-vllm dir
advise -t t.parquet --from-vllm http://127.0.0.1:9/metrics
advise -t t.parquet --from-vllm http://
advise -t t.parquet --from-vllm ftp://localhost
advise -t t.parquet --rate 1 --slo-ttft 5
advise -t t.parquet --rate 1 --slo-tbt 200ms@0%
advise -t t.parquet --rate 1 --slo-tbt 200ms@101%
advise -t t.parquet --rate 1 --slo-tpot 1s --slo-e2e 1s
advise -t t.parquet --rate 1 --price -1
advise -t t.parquet --rate 1 --price nan
advise -t t.parquet --rate 1 --carbon inf
advise -t t.parquet --rate 1 --max-num-seqs 0
advise -t t.parquet --rate 1 --max-num-batched-tokens 5
advise -t t.parquet --rate 1 --tp 7
advise -t t.parquet --rate 1 -o dir
advise -t t.parquet --rate 1 -o t.parquet
advise -t t.parquet --rate 1 -o no/where.html
advise -t t.parquet --rate 1 -o t.parquet --force
advise --model nix --device H100 --rate 1
advise --model llama3-8b --device H1OO --rate 1
advise --model llama3-8b --rate 1 --tp 3 --device H100
advise --device H100 --rate 1
decide t.parquet --waiting 5 --slo-tpot 5
decide t.parquet --waiting 5 --slo-tpot 1s --slo-tbt 1s
decide t.parquet --waiting 5 --slo-e2e 0s
decide t.parquet --waiting 5 --slo-tbt 1s@x%
replay -t t.parquet --trace x.csv --policy max-q:x
replay -t t.parquet --trace x.csv --policy max-q:-5W
replay -t t.parquet --trace x.csv --policy max-q:5W
replay -t t.parquet --trace x.csv --policy max-q:1e400W
replay -t t.parquet --trace x.csv --policy max-q:
replay -t t.parquet --trace two-slos.csv
replay -t t.parquet --trace minus-slo.csv
replay -t t.parquet --trace hashes.csv
replay -t t.parquet --trace x.csv --concurrency -1
replay -t t.parquet --trace x.csv --slo-tbt 200ms@200%
report nix -o x.svg
report log.jsonl -o new.svg
report log.jsonl -o new.png
report t.parquet -o new.png
report dir -o new.svg
report log.jsonl -o x.csv --force
study -t t.parquet --traces x.csv --policies max-q:x
study -t t.parquet --traces two-slos.csv --policies vanilla
doctor --config nix.toml
doctor --config no.toml
doctor --config bin.toml
doctor --config dir
doctor --config LONG
"""
LINES = [line for line in CASES.splitlines() if line]


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
