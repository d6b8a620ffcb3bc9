"""What README and docs/ tell people to type works, from the checkout's root.

Blocks marked ``python`` run in README, docs/table.md and docs/testing.md, there one after the other
(docs/embedding.md needs an engine: tests/examples). Blocks marked ``bash`` run, a page's in order
in one folder, unless ``<!-- not run: why -->`` stands before them. And every `beam ...` line
anywhere is held against the command line's own options.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from beamprof.cli.main import app

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]


def python_blocks(path: Path) -> list[str]:
    """The page's ``python`` blocks."""
    text = path.read_text("utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


BLOCKS = [
    *(
        pytest.param(block, id=f"{path.name}-{number}")
        for path in (README, ROOT / "docs" / "table.md")
        for number, block in enumerate(python_blocks(path))
    ),
    # One after the other: the second goes on from the first.
    pytest.param("\n".join(python_blocks(ROOT / "docs" / "testing.md")), id="testing.md"),
]


def shell(path: Path) -> str:
    """The page's ``bash`` blocks that are to be run, below each other."""
    blocks = re.findall(
        r"(<!-- not run: [^>]+-->\n)?^```bash\n(.*?)^```",
        path.read_text("utf-8"),
        re.DOTALL | re.MULTILINE,
    )
    return "".join(block for mark, block in blocks if not mark)


@pytest.mark.parametrize("block", BLOCKS)
def test_a_documented_block_runs(block: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "page", [pytest.param(page, id=page.name) for page in PAGES if shell(page)]
)
def test_a_pages_commands_run(page: Path, tmp_path: Path) -> None:
    for name in ("tables", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    words = f'beam() {{ "{sys.executable}" -m beamprof "$@"; }}\n'
    words += f'python() {{ "{sys.executable}" "$@"; }}\n'
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", words + shell(page)],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def beam_lines(text: str) -> list[str]:
    """Every `beam ...` in code: a line of a block, or between backquotes."""
    text = text.replace("\\\n", " ")
    fenced = re.findall(r"^```(?:bash|text)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    indented = re.findall(r"^ {4}(beam .*)$", text, re.MULTILINE)
    lines = [line for block in fenced for line in block.splitlines() if line.startswith("beam ")]
    return [*lines, *indented, *re.findall(r"`(beam [^`]+)`", text)]


def unknown_words(line: str) -> list[str]:
    """The options of a `beam ...` line that its command does not have."""
    words = shlex.split(line.partition(" #")[0].partition(" &&")[0].partition(" ;")[0])[1:]
    command: Any = typer.main.get_command(app)
    known = {"--help", "-h", "--debug", "--version", "--install-completion"}
    for word in words:
        inner = getattr(command, "commands", None)
        if inner is None:
            break
        if word not in inner and not word.startswith("-"):
            return [word]
        command = inner.get(word, command)
    for option in command.params:
        known.update(option.opts)
    return [word for word in words if word.startswith("--") and word.partition("=")[0] not in known]


def test_the_lines_of_a_page_are_found_and_wrong_ones_are_seen() -> None:
    page = "```\nbeam table inspect T\n```\n\n    beam replay --trase X\n\nwith `beam nix`.\n"
    assert [unknown_words(line) for line in beam_lines(page)] == [[], ["--trase"], ["nix"]]


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES])
def test_every_command_and_option_exists(page: Path) -> None:
    lines = [line for line in beam_lines(page.read_text("utf-8")) if "..." not in line]
    assert {line: unknown_words(line) for line in lines if unknown_words(line)} == {}


def shown_results(text: str) -> list[tuple[str, list[str]]]:
    """Blocks without a command, and the command of the block before each: what it printed."""
    blocks = re.findall(r"^```([a-z]*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    found, command = [], ""
    for language, block in blocks:
        lines = [line for line in block.splitlines() if line.strip()]
        if commands := [line for line in lines if "beam " in line]:
            command = "beam " + commands[-1].rpartition("beam ")[2]
        elif not language and command and re.search(r"\d", block) and len(lines) > 1:
            found.append((command, lines))
    return found


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES])
def test_what_a_page_shows_of_a_profile_is_what_is_printed(page: Path, tmp_path: Path) -> None:
    """Numbers of a table under the command that prints it: they follow the device files."""
    for command, lines in shown_results(page.read_text("utf-8")):
        words = shlex.split(command)[1:]
        if words[0] != "profile" or not any(line.startswith("step ") for line in lines):
            continue
        done = subprocess.run(
            [sys.executable, "-m", "beamprof", *words, "--backend", "modelled"], cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        printed = {" ".join(line.split()) for line in done.stdout.splitlines()}
        assert {" ".join(line.split()) for line in lines} <= printed


def test_the_results_of_the_readme_are_found() -> None:
    commands = [command for command, _ in shown_results(README.read_text("utf-8"))]
    assert "beam profile --model llama3-70b --tp 2 --pp 4" in commands


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    text = README.read_text("utf-8")
    assert len(text.split()) <= 700
    local = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert local
    assert [link for link in local if not (ROOT / link).exists()] == []
