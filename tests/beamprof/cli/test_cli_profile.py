"""`beam profile` and `beam sweep` as people call them: words, codes, JSON, nothing lost."""

import dataclasses
import io
import json
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

import beamprof.__main__
from beamprof import __version__
from beamprof.cli import profile as profile_cli
from beamprof.cli.main import main
from beamprof.profiler.profile import ProfileRequest, profile
from beamprof.profiler.spec import resolve_spec
from beamprof.tables.leave_one_out import held_out_error

PROFILE = ["profile", "--model", "llama3-8b", "--backend", "modelled", "--max-tokens", "256"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("BEAM_")]:
        monkeypatch.delenv(name)


def lines_of(text: str) -> dict[str, str]:
    """error:, cause: and hint: by label."""
    pairs = [line.split(": ", 1) for line in text.splitlines() if ": " in line]
    return {label: rest for label, rest in pairs if label in ("error", "cause", "hint")}


def test_the_first_command_writes_a_table_and_names_the_next(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["profile", "--model", "llama3-70b", "--tp", "2", "--pp", "4"]) == 0
    out, err = capsys.readouterr()
    name = "llama3-70b-tp2-pp4-a100-sxm4-80gb.parquet"
    assert Path(name).is_file()
    assert f"wrote {name}" in out
    assert out.rstrip().endswith(f"next: beam table inspect {name}")
    assert out.startswith("llama3-70b tp2 pp4 on a100-sxm4-80gb: ")
    assert "modelled" in out
    assert "backend: modelled" in err
    assert max(len(line) for line in out.splitlines()) <= 100


def test_json_is_one_object_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PROFILE, "--output", "t.parquet", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) == {"schema", "command", "status", "data", "warnings"}
    assert (answer["command"], answer["status"]) == ("profile", "ok")
    assert answer["data"]["output"] == "t.parquet"
    assert answer["data"]["rows"] > 100
    assert answer["data"]["remaining"] == 0


def test_dry_run_says_cells_minutes_and_kwh_and_writes_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["profile", "--model", "llama3-70b", "--tp", "2", "--pp", "4", "--device",
               "a100-sxm4-80gb", "--backend", "modelled", "--dry-run"]  # fmt: skip
    assert main(command) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("cells", "min", "kWh", "expected error", "none done"))
    assert list(Path.cwd().iterdir()) == []
    assert main([*command, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert data["device_minutes"] <= 15
    assert data["cells_per_clock"] <= 60
    assert len(data["clocks_mhz"]) == 9
    assert data["expected_error"]["latency_between_clocks"] == pytest.approx(0.009)


def test_a_budget_thins_the_plan_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PROFILE, "--dry-run", "--budget", "4m", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert data["device_minutes"] <= 4
    assert "of 9 clocks" in data["thinned"]


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["--model", "llama9"], "unknown model 'llama9'", "known models"),
        (["--tp", "3"], "--tp 3 does not divide", "--tp can be 1, 2, 4, 8"),
        (["--pp", "70"], "--pp 70 is over", "--pp can be 1 to 32"),
        (["--clocks", "511"], "no clock of 511 MHz", "the nearest are 510 and 525"),
        (["--clocks", "1.41"], "1.41 GHz", "write 1410"),
        (["--budget", "10"], "10 s or 10 ms?", "write 10s"),
        (["--assume-power", "65"], "65 W or 65 mW?", "write 65W"),
        (["--device", "a101"], "unknown device 'a101'", "known devices"),
        (["--backend", "cuda"], "unknown backend 'cuda'", "modelled, torch"),
        (["--sweep", "quik"], "unknown sweep 'quik'", "known sweeps"),
        (["--output", "none/t.parquet"], "no directory none", "mkdir -p none"),
        (["--tp", "two"], "--tp", "beam profile --help"),
        (["--gpu", "1"], "--gpu", "beam profile --help"),
    ],
)
def test_bad_input_is_an_error_with_a_hint_and_code_two(
    arguments: list[str], error: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*PROFILE, *arguments]) == 2
    out, err = capsys.readouterr()
    said = lines_of(err)
    assert error in said["error"]
    assert hint in said["hint"]
    assert out == ""
    assert "Traceback" not in err
    assert list(Path.cwd().iterdir()) == []


def test_errors_in_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PROFILE, "--tp", "3", "--json"]) == 2
    answer = json.loads(capsys.readouterr().out)
    assert answer["status"] == "error"
    assert "does not divide" in answer["data"]["message"]


def test_a_model_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile"]) == 2
    assert "no model was named" in capsys.readouterr().err


def test_an_output_that_exists_needs_force(capsys: pytest.CaptureFixture[str]) -> None:
    command = [*PROFILE, "--output", "t.parquet"]
    Path("t.parquet").write_text("precious")
    assert main(command) == 2
    assert "--force" in lines_of(capsys.readouterr().err)["hint"]
    assert Path("t.parquet").read_text() == "precious"
    assert main([*command, "--force"]) == 0
    assert Path("t.parquet").read_bytes()[:4] == b"PAR1"


def test_a_directory_that_cannot_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    Path("locked").mkdir(mode=0o500)
    assert main([*PROFILE, "--output", "locked/t.parquet"]) == 2
    assert "cannot write to locked" in capsys.readouterr().err


def test_a_journal_of_another_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PROFILE, "--output", "t.parquet"]) == 0
    Path("t.parquet").unlink()
    assert main([*PROFILE, "--output", "t.parquet", "--seed", "1"]) == 2
    said = lines_of(capsys.readouterr().err)
    assert "belongs to another sweep" in said["error"]
    assert "seed is 0 there, 1 here" in said["cause"]
    assert main([*PROFILE, "--output", "t.parquet", "--seed", "1", "--fresh"]) == 0


def test_a_sweep_file_with_an_unknown_key(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.toml").write_text('clock = "510"\n')
    assert main([*PROFILE, "--sweep", "mine.toml"]) == 2
    said = lines_of(capsys.readouterr().err)
    assert said["error"] == "mine.toml: unknown key 'clock'"
    assert said["hint"] == "did you mean 'clocks'?"


def test_a_bug_saves_its_traceback_and_prints_the_path(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a seeded bug")

    monkeypatch.setattr(profile_cli, "_run", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(PROFILE) == 70
    err = capsys.readouterr().err
    assert "Traceback" not in err
    saved = Path(err.split("the traceback is in ")[1].splitlines()[0])
    assert "a seeded bug" in saved.read_text()
    assert saved.parent == tmp_path


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PROFILE, "--tp", "3", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_outside_a_sweep(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(profile_cli, "_run", interrupted)
    assert main(PROFILE) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_an_interrupt_while_the_modules_load(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "beamprof.cli.main", _Interrupted("beamprof.cli.main"))
    assert beamprof.__main__.main() == 130
    assert capsys.readouterr().err.startswith("interrupted: nothing was written")


class _Interrupted(ModuleType):
    def __getattr__(self, name: str) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize("noun", [[], ["table"], ["sweep"]])
def test_a_noun_alone_shows_what_it_can_do(
    noun: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(noun) == 2
    said = capsys.readouterr()
    assert (said.out + said.err).count("Usage: beam") == 1


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("command", [[], ["profile"], ["table"], ["sweep"], ["sweep", "show"]])
def test_every_command_has_help(
    command: list[str], flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, flag]) == 0
    assert "Usage: beam" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"beam {__version__}"


def test_help_tells_the_defaults_that_are_used(capsys: pytest.CaptureFixture[str]) -> None:
    main(["profile", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert main(["sweep", "show", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)["data"]
    for key, shown in (("max_tokens", "1024"), ("seed", "0"), ("tp", "1"), ("pp", "1")):
        assert f"[default: {shown}]" in said
        assert str(values[key]["value"]) == shown
    assert "[default: 15m]" in said
    assert values["budget"]["value"] == 15 * 60


def test_sweep_show_names_the_origin_of_every_value(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEAM_TP", "4")
    assert main(["sweep", "show", "a100-llama3-70b", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert data["tp"] == {"value": 4, "origin": "BEAM_TP"}
    assert data["pp"]["origin"].endswith("a100-llama3-70b.toml")
    assert data["seed"] == {"value": 0, "origin": "default"}
    assert main(["sweep", "show", "quick"]) == 0
    assert "quick.toml" in capsys.readouterr().out


def test_sweep_init_writes_a_file_that_profile_reads(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "init"]) == 0
    assert "wrote sweep.toml" in capsys.readouterr().out
    assert main(["sweep", "init"]) == 2
    assert "exists" in capsys.readouterr().err
    assert main([*PROFILE, "--sweep", "sweep.toml", "--dry-run"]) == 0


def test_a_cpu_is_not_promised_a_gpus_accuracy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
              "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
              "num_key_value_heads": 2, "vocab_size": 256, "max_position_embeddings": 512,
              "torch_dtype": "bfloat16"}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    words = ["profile", "--model", str(tmp_path), "--backend", "torch", "--budget", "2m",
             "--assume-power", "65W", "--dry-run"]  # fmt: skip
    assert main(words) == 0
    assert "expected error  9.0 % over all steps" in capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"]["expected_error"]["over_steps"] == 0.09


def test_what_a_measured_table_missed_is_said_beside_what_was_expected(tmp_path: Path) -> None:
    spec = resolve_spec(
        {"model": "llama3-8b", "backend": "modelled", "device": "h100-sxm"}, environment={}
    )
    result = profile(ProfileRequest(spec, output=tmp_path / "t.parquet"))
    found = held_out_error(result.table)
    assert found is not None
    said = io.StringIO()
    profile_cli._render_result(result, None, Console(file=said, width=100))
    assert "found:" not in said.getvalue(), "a model is not found to be anything"
    choice = dataclasses.replace(result.prepared.choice, backend="torch")
    prepared = dataclasses.replace(result.prepared, choice=choice)
    measured = dataclasses.replace(result, prepared=prepared)
    profile_cli._render_result(measured, None, Console(file=said, width=100))
    assert f"found: latency {100 * found.latency_mape:.1f} %" in said.getvalue()
