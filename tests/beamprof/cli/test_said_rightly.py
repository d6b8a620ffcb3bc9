"""Words and exit codes say what happened: bad input is no answer, an answer of no is no success."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from beamprof.cli.main import main
from beamprof.devices.device import device_names, resolve_device

ROOT = Path(__file__).parents[3]
TABLE = str(ROOT / "tables/a100-sxm4-80gb/llama3-8b/tp1-pp1.parquet")
LINES = "arrival_s,input_tokens,output_tokens\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_lookup_of_nothing_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", "lookup", TABLE]) == 2
    assert "nothing to look up" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ("9999999999999", "input tokens more than any model takes"),
        ("2147483648", "input tokens more than any model takes"),
        ("2.5", "input tokens not a whole number"),
        ("1e300", "input tokens more than any model takes"),
        ("nan", "input tokens not a whole number"),
        ("0", "input tokens below 1"),
    ],
)
def test_a_length_that_cannot_be_is_told_by_what_it_is(
    tokens: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("x.csv").write_text(f"{LINES}0,{tokens},5\n")
    assert main(["trace", "stats", "x.csv"]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_a_folder_is_a_pool_only_where_it_holds_one(capsys: pytest.CaptureFixture[str]) -> None:
    for name, files in {"pool": ["chunk-3-trace.csv"], "other": ["a.jsonl"], "bare": []}.items():
        Path(name).mkdir()
        for file in files:
            (Path(name) / file).write_text("x\n")
    said = {}
    for name in ("pool", "other", "bare"):
        assert main(["trace", "import", name, "-o", "z.parquet"]) == 2
        said[name] = " ".join(capsys.readouterr().err.split())
    assert "hint: draw from a ServeGen pool with: beam trace generate servegen pool" in said["pool"]
    assert "hint: name a file in it: a.jsonl" in said["other"]
    assert "hint: name a file in it; it holds none" in said["bare"]


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ("", "in standard input: it is empty"),
        ("{}\n", "standard input"),
        ("PAR1", "standard input"),
    ],
)
def test_what_comes_down_a_pipe_is_called_by_no_file(sent: str, words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "beamprof", "report", "-"], input=sent, capture_output=True,
        text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2
    said = " ".join(done.stderr.split())
    assert words in said
    assert "standard input.parquet" not in said and "standard input.jsonl" not in said


@pytest.mark.parametrize(
    ("model", "section"),
    [("deepseek-v3", "latent"), ("qwen3-next-80b-a3b", "delta"), ("nemotron-nano-9b-v2", "delta"),
     ("qwen3-30b-a3b", "moe")],
)  # fmt: skip
@pytest.mark.parametrize("device", device_names())
def test_a_device_that_lacks_a_kind_of_layer_names_those_that_have_it(
    model: str, section: str, device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["profile", "--model", model, "--backend", "modelled", "--max-tokens", "32",
             "--clocks", str(resolve_device(device).clocks.max_mhz), "--device"]  # fmt: skip
    code = main([*asked, device])
    err = " ".join(capsys.readouterr().err.split())
    if getattr(resolve_device(device), section):
        return
    assert code == 2
    having = err.partition("hint: devices that have: ")[2].split(", ")
    assert having and all(getattr(resolve_device(name.strip()), section) for name in having)


def test_no_is_an_answer_of_a_replay_too(capsys: pytest.CaptureFixture[str]) -> None:
    Path("x.csv").write_text(LINES + "".join(f"{second},900,40\n" for second in range(20)))
    asked = ["replay", "-t", TABLE, "--trace", "x.csv", "--policy", "vanilla", "--json"]
    assert main([*asked, "--slo-tbt", "1ms"]) == 1
    assert json.loads(capsys.readouterr().out)["status"] == "no"
    assert main([*asked, "--slo-tbt", "1s"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "ok"
