"""A user's config.toml: below flags, variables and sweeps, above defaults, and said by name."""

from pathlib import Path

import pytest

from beam_runtime.engines.config import EmbeddedConfig
from beam_runtime.errors import BeamError
from beamprof.cli.main import main
from beamprof.decide.engine_state import read_state
from beamprof.devices.device import resolve_device
from beamprof.errors import SweepError
from beamprof.models.config import read_config
from beamprof.profiler.spec import resolve_spec


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "beam" / "config.toml"
    path.parent.mkdir()
    return path


def spec(config, flags=None, **environment):
    return resolve_spec(
        flags, environment={"XDG_CONFIG_HOME": str(config.parents[1]), **environment}
    )


def test_it_stands_between_variables_and_defaults(config):
    config.write_text('[profile]\ntp = 2\nbudget = "5m"\npp = 3\n')
    found = spec(config, {"pp": 7}, BEAM_TP="4")
    assert (found.tp, found.pp, found.budget_s, found.seed) == (4, 7, 300.0, 0)
    assert found.origins["tp"] == "BEAM_TP"
    assert found.origins["pp"] == "--pp"
    assert found.origins["budget"] == str(config)
    assert found.origins["seed"] == "default"


def test_a_sweep_goes_before_it(config, tmp_path):
    config.write_text("[profile]\ntp = 2\npp = 2\n")
    sweep = tmp_path / "mine.toml"
    sweep.write_text("tp = 4\n")
    found = resolve_spec(
        {}, environment={"XDG_CONFIG_HOME": str(config.parents[1])}, sweep=str(sweep)
    )
    assert (found.tp, found.pp) == (4, 2)
    assert found.origins["tp"] == "mine.toml"


def test_it_is_found_under_home(tmp_path):
    path = tmp_path / ".config" / "beam" / "config.toml"
    path.parent.mkdir(parents=True)
    path.write_text("[profile]\ntp = 8\n")
    assert resolve_spec({}, environment={"HOME": str(tmp_path)}).tp == 8
    assert resolve_spec({}, environment={"HOME": "/dev/null"}).tp == 1
    assert resolve_spec({}, environment={}).tp == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tp = 2\n", "unknown key 'tp'"),
        ("[profil]\ntp = 2\n", "did you mean 'profile'"),
        ("[profile]\nbugdet = '5m'\n", "did you mean 'budget'"),
        ("[profile]\nbudget = 5\n", "5 has no unit"),
        ("profile = 3\n", "should be a section"),
        ("= =\n", "is not TOML"),
    ],
)
def test_a_slip_in_it_is_an_error_with_its_name(config, text, words):
    config.write_text(text)
    with pytest.raises(SweepError) as caught:
        spec(config)
    assert words in str(caught.value)
    assert "config.toml" in str(caught.value)


def test_sweep_show_names_it(config, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(config.parents[1]))
    config.write_text("[profile]\ntp = 2\n")
    assert main(["sweep", "show"]) == 0
    out = capsys.readouterr().out
    assert "config.toml" in out.replace("\n", "")


def test_a_file_without_an_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    with path.open("wb") as file:
        file.truncate(1 << 33)
    with pytest.raises(SweepError, match="is not TOML") as caught:
        resolve_spec(sweep=str(path))
    assert "more than 1048576 bytes" in str(caught.value.cause)
    with pytest.raises(BeamError) as refused:
        EmbeddedConfig.load(path)
    assert "more than 1048576 bytes" in str(refused.value.cause)


@pytest.mark.parametrize("name", ["config.json", "state.json", "device.toml"])
def test_texts_without_an_end_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with path.open("wb") as file:
        file.truncate(1 << 33)
    read = {"config.json": read_config, "state.json": read_state,
            "device.toml": lambda path: resolve_device(str(path))}[name]  # fmt: skip
    with pytest.raises(BeamError, match=str(path)) as caught:
        read(path)  # type: ignore[operator]
    assert "bytes" in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("BEAM_TPP", "BEAM_TP"),
        ("BEAM_MAX_TOKEN", "BEAM_MAX_TOKENS"),
        ("BEAM_ASSUMEPOWER", "BEAM_ASSUME_POWER"),
        ("BEAM_SEEDS", ""),
        ("BEAM_TOKEN", ""),
        ("BEAM_CONFIG", ""),
        ("BEAM_RUNNER_API", ""),
    ],
)
def test_a_variable_that_is_almost_a_setting_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variable: str, meant: str
) -> None:
    monkeypatch.setenv(variable, "2")
    assert main(["sweep", "show"]) == 0
    said = capsys.readouterr().err
    assert (f"{variable} is not read: did you mean {meant}?" in said) == bool(meant)


def test_a_power_that_nothing_assumes_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["profile", "--model", "llama3-8b", "--device", "h100", "--backend", "modelled"]
    assert main([*asked, "--dry-run", "--assume-power", "65W"]) == 0
    assert "--assume-power: 65 W is assumed nowhere" in capsys.readouterr().err
