"""A study's grid: where each value comes from, and what is refused."""

import tomllib
from pathlib import Path

import pytest

from beam_runtime.types import Slo
from beamprof.errors import SweepError
from beamprof.replay.study_spec import SETTINGS, resolve_study, study_template

FILES = {"tables": ["t.parquet"], "traces": ["x.csv"]}


def test_flag_before_variable_before_file_before_default(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(
        'tables = ["a.parquet", "b, c.parquet"]\ntraces = "x.csv,y.csv"\n'
        'slos = ["1s/200ms", "500ms/0.1s"]\nnoises = [0, 0.03]\nseeds = [5, 7]\nkv_blocks = 9\n'
    )
    spec = resolve_study(
        {"noises": "0.1", "tables": None},
        environment={"BEAM_NOISES": "0.2", "BEAM_SEEDS": "0:4:2", "BEAM_POLICIES": "", "HOME": "/"},
        file=file,
    )
    assert spec.tables == (Path("a.parquet"), Path("b"), Path("c.parquet"))
    assert spec.traces == (Path("x.csv"), Path("y.csv"))
    assert spec.slos == (Slo(1000.0, 200.0), Slo(500.0, 100.0))
    assert (spec.noises, spec.seeds, spec.kv_blocks) == ((0.1,), (0, 2, 4), 9)
    assert "beam" in spec.policies
    found = [spec.origins[key] for key in ("noises", "seeds", "slos", "policies")]
    assert found == ["--noises", "BEAM_SEEDS", "mine.toml", "default"]


def test_a_file_whose_name_has_a_comma_is_one_file(tmp_path):
    odd = tmp_path / "a,b.csv"
    odd.touch()
    spec = resolve_study({**FILES, "traces": [str(odd), f"{tmp_path}/c.csv,{tmp_path}/d.csv"]})
    assert spec.traces == (odd, tmp_path / "c.csv", tmp_path / "d.csv")


def test_a_name_that_no_file_can_have_is_for_whoever_reads_it():
    long, home = "x" * 5000 + ".csv", "~nobody-of-this-name/t.csv"
    spec = resolve_study({**FILES, "traces": [long, home]})
    assert spec.traces == (Path(long), Path(home))


def test_what_is_said_twice_counts_once():
    spec = resolve_study(
        {**FILES, "policies": "beam, beam,vanilla", "slos": "1s/200ms,1000ms/0.2s"}
    )
    assert spec.policies == ("beam", "vanilla")
    assert spec.slos == (Slo(1000.0, 200.0),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('slo = "1s/200ms"', "did you mean 'slos'"),
        ('slos = "1s"', "expected TTFT/TBT"),
        ('slos = "1/200ms"', "1 s or 1 ms"),
        ('slos = "1s/2W"', "unknown unit"),
        ("slos = 3", "expected TTFT/TBT"),
        ("slos = []", "at least one value"),
        ("policies = [1]", "expected a name"),
        ('policies = "beam,"', "expected a name"),
        ("noises = [1.0]", "from 0 up to 1"),
        ("noises = [nan]", "from 0 up to 1"),
        ('noises = "much"', "from 0 up to 1"),
        ("noises = [true]", "from 0 up to 1"),
        ("noises = [[0.1]]", "from 0 up to 1"),
        ("seeds = [-1]", "whole number of 0 or more"),
        ('seeds = "3:1:1"', "means 0 seeds"),
        ('seeds = "0:99999999:1"', "seeds"),
        ('seeds = "0:1:2:3"', "a range is"),
        ('seeds = "0:4:0"', "whole number of 1 or more"),
        ("kv_blocks = 0", "whole number of 1 or more"),
        ("idle_power = 45", "45 W or 45 mW"),
        ('over_limit = "shorten"', "expected drop"),
        ("over_limit = [1]", "over_limit"),
        ("tables = 3", "expected files"),
        ('traces = [""]', "expected a name"),
        ("seeds = ", "is not TOML"),
        ("seeds = " + "9" * 5000, "is not TOML"),
        ("seeds = " + "[" * 5000, "is not TOML"),
        ("kv_blocks = 0x" + "f" * 20_000, "more than 64 bits"),
        (f'kv_blocks = "{"9" * 5000}"', "whole number of 1 or more"),
        (f'seeds = "0:{"9" * 18}:1"', "1,000,000,000,000,000,000 seeds"),
    ],
)
def test_wrong_values_in_a_file(tmp_path, text, words):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(SweepError) as caught:
        resolve_study(FILES if "es =" not in text.split("[")[0] else {}, file=file)
    assert words in str(caught.value)
    assert "mine.toml" in caught.value.message


@pytest.mark.parametrize("missing", ["tables", "traces"])
def test_a_grid_without_files_is_refused(missing):
    with pytest.raises(SweepError, match=f"at least one of its {missing}"):
        resolve_study({key: value for key, value in FILES.items() if key != missing})


def test_the_template_is_a_study_once_its_lines_count(tmp_path):
    text = study_template()
    assert tomllib.loads(text) == {}
    file = tmp_path / "mine.toml"
    file.write_text(
        "\n".join(line.removeprefix("# ") for line in text.splitlines() if " = " in line)
    )
    spec = resolve_study(file=file)
    assert set(spec.origins.values()) == {"mine.toml"}
    assert len(spec.origins) == len(SETTINGS)
