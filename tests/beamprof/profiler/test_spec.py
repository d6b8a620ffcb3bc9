import tomllib
from pathlib import Path

import pytest

from beamprof.cli.main import main
from beamprof.errors import SweepError
from beamprof.profiler.spec import SETTINGS, resolve_spec, shipped_sweeps, sweep_template
from beamprof.units import ClockMode


def written(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text)
    return str(path)


def test_flag_before_variable_before_file_before_default(tmp_path: Path) -> None:
    sweep = written(tmp_path, 'seed = 1\ntrials = 1\nbudget = "1m"\n')
    spec = resolve_spec(
        {"seed": 3, "model": None},
        environment={"BEAM_SEED": "2", "BEAM_TRIALS": "2", "HOME": "/"},
        sweep=sweep,
    )
    assert (spec.seed, spec.trials, spec.budget_s, spec.tp) == (3, 2, 60.0, 1)
    assert [spec.origins[key] for key in ("seed", "trials", "budget", "tp")] == [
        "--seed",
        "BEAM_TRIALS",
        "mine.toml",
        "default",
    ]


def test_an_unknown_key_is_an_error_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(SweepError) as caught:
        resolve_spec(sweep=written(tmp_path, "max_token = 512"))
    assert "unknown key 'max_token'" in caught.value.message
    assert caught.value.hint == "did you mean 'max_tokens'?"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('window = "1W"', "unknown unit 'W'"),
        ("window = 1", "1 s or 1 ms"),
        ("assume_power = 65", "65 W or 65 mW"),
        ('trials = "two"', "expected a whole number"),
        ("trials = 0", "of 1 or more"),
        ("tp = true", "expected a whole number"),
        ("tp = 2.0", "expected a whole number"),
        ('clocks = "1.41"', "1.41 GHz"),
        ("model = 3", "expected a name"),
        ("seed = ", "is not TOML"),
        ("seed = " + "9" * 5000, "is not TOML"),
        ("[cells]\nseed = 1", "unknown key 'cells'"),
    ],
)
def test_wrong_values_in_a_file(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(SweepError) as caught:
        resolve_spec(sweep=written(tmp_path, text))
    assert words in str(caught.value)
    assert "mine.toml" in caught.value.message


def test_a_wrong_variable_is_named() -> None:
    with pytest.raises(SweepError, match="BEAM_BUDGET"):
        resolve_spec(environment={"BEAM_BUDGET": "10"})


def test_missing_sweeps_are_told_apart_from_unknown_ones(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match="no sweep file"):
        resolve_spec(sweep=str(tmp_path / "none.toml"))
    for name in ("x" * 5000 + ".toml", "~nobody-of-this-name/x.toml"):
        with pytest.raises(SweepError, match="no sweep file"):
            resolve_spec(sweep=name)
    with pytest.raises(SweepError) as caught:
        resolve_spec(sweep="quik")
    assert caught.value.cause == "did you mean quick?"
    assert "cpu-tiny" in str(caught.value.hint)


def test_every_shipped_sweep_resolves() -> None:
    shipped = shipped_sweeps()
    assert {"a100-llama3-70b", "quick", "cpu-tiny"} <= set(shipped)
    for name in shipped:
        resolve_spec(sweep=name)
    spec = resolve_spec(sweep="a100-llama3-70b")
    assert (spec.model, spec.tp, spec.pp) == ("llama3-70b", 2, 4)
    assert resolve_spec(sweep="cpu-tiny").clocks.mode is ClockMode.CURRENT


def test_the_template_says_nothing_until_uncommented_and_then_is_right(tmp_path: Path) -> None:
    template = sweep_template()
    assert tomllib.loads(template) == {}
    lines = [line.removeprefix("# ") for line in template.splitlines() if " = " in line]
    spec = resolve_spec(sweep=written(tmp_path, "\n".join(lines)))
    assert [key for key in spec.origins if spec.origins[key] == "default"] == []
    assert len(lines) == len(SETTINGS)


def test_whatever_counts_as_a_space_may_stand_around_a_number() -> None:
    assert resolve_spec({"seed": "\x1f7\u2003"}).seed == 7


def test_what_costs_time_before_anything_is_measured_has_a_limit(tmp_path: Path) -> None:
    """Each number as large as it can be is planned at once, or refused by its name."""
    for setting in SETTINGS:
        if setting.default is not None and not isinstance(setting.default, int):
            continue
        if setting.key in ("model", "dtype", "backend", "device", "assume_power", "window"):
            continue
        sweep = written(tmp_path, f"{setting.key} = 999999999999999\n")
        code = main(["profile", "--sweep", sweep, "--model", "llama3-8b", "--backend",
                     "modelled", "--device", "h100", "--dry-run"])  # fmt: skip
        assert code in (0, 2), setting.key
    with pytest.raises(SweepError, match="trials: expected 100 at most, found 101"):
        resolve_spec(sweep=written(tmp_path, "trials = 101\n"))
    assert resolve_spec(sweep=written(tmp_path, "trials = 100\n")).trials == 100
