"""Help: an example for every command, options in groups, and nothing wider than it should be."""

import os
import subprocess
import sys

import pytest
import typer

from beamprof.cli import decide, profile, replay, study
from beamprof.cli.main import app, main


def commands():
    """Every command's words."""
    found = []

    def walk(place, words):
        for name, command in sorted(place.commands.items()):
            if hasattr(command, "commands"):
                walk(command, (*words, name))
            else:
                found.append((*words, name))

    walk(typer.main.get_command(app), ())
    return found


OURS = [words for words in commands() if words != ("doctor",)]


@pytest.mark.parametrize("words", OURS, ids=" ".join)
def test_every_command_shows_an_example_of_itself(capsys, words):
    assert main([*words, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"beam {' '.join(words)}" in " ".join(out.partition("\n")[2].split())
    assert all(len(line) <= 100 for line in out.splitlines())


PLACES = [(), *sorted({words[:-1] for words in commands()} - {()})]


@pytest.mark.parametrize("words", [*PLACES, *commands()], ids=" ".join)
def test_no_example_is_broken_into_two_lines_at_80_columns(capsys, words, monkeypatch):
    """A line that is there to be copied can be copied."""
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*words, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for at, line in enumerate(lines):
        begins = line.lstrip().startswith("beam ") or ":  beam " in line
        assert not begins or at + 1 == len(lines) or not lines[at + 1].strip(), line


@pytest.mark.parametrize("words", PLACES, ids=" ".join)
def test_every_commands_summary_is_a_whole_sentence_at_80_columns(capsys, words, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*words, "--help"]) == 0
    listed = capsys.readouterr().out.partition("\nCommands:\n")[2]
    assert listed
    assert [line for line in listed.splitlines() if not line.endswith((".", "?"))] == []


@pytest.mark.parametrize("module", [decide, profile, replay, study])
def test_options_stand_in_groups(capsys, module):
    name = module.__name__.rpartition(".")[2]
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    for title in module.GROUPS:
        assert f"\n{title}:\n" in out
    rest = out[out.index("\nOptions:\n") :]
    assert rest.count("--") == 1  # --help


def test_the_first_help_tells_of_completion(capsys):
    assert main(["--help"]) == 0
    assert "beam --install-completion" in capsys.readouterr().out


def test_completion_completes():
    run = subprocess.run(
        [sys.executable, "-P", "-m", "beamprof"],
        env={**os.environ, "_BEAM_COMPLETE": "complete_bash", "COMP_WORDS": "beam ta",
             "COMP_CWORD": "1", "_TYPER_COMPLETE_ARGS": "beam ta"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "table" in run.stdout


def test_help_needs_no_heavy_import():
    heavy = ("numpy", "numba", "polars", "pyarrow", "pydantic_settings", "torch", "jinja2")
    code = (
        "import sys; from beamprof.cli.main import main; main(['--help']); "
        f"print('HEAVY', [name for name in {heavy!r} if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stdout.splitlines()[-1] == "HEAVY []"
