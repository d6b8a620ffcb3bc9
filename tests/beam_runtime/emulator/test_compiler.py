"""Compiled code is kept somewhere, wherever BEAM is installed and whoever runs it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import beam_runtime

FIRST = """
import logging
logging.basicConfig(format="%(message)s")
from beam_runtime.emulator.compiler import entry
@entry
def twice(number):
    return 2 * number
print(twice(4))
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """An install in which no folder can be made; a file in the way stops root, too."""
    source, target = Path(beam_runtime.__file__).parent, tmp_path / "site" / "beam_runtime"
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in (target, *(path for path in target.rglob("*") if path.is_dir())):
        (folder / "__pycache__").write_text("in the way")
    (target / "emulator" / "first.py").write_text(FIRST)
    return target.parent


def run(site: Path, tmp: Path, umask: int = -1) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site), "HOME": "/dev/null", "TMPDIR": str(tmp)}
    for name in ("NUMBA_CACHE_DIR", "NUMBA_DISABLE_JIT", "XDG_CACHE_HOME"):
        environment.pop(name, None)
    return subprocess.run(
        [sys.executable, "-B", "-m", "beam_runtime.emulator.first"],
        env=environment, capture_output=True, text=True, check=False, cwd=site, umask=umask,
    )  # fmt: skip


def kept(tmp: Path) -> list[Path]:
    return sorted(tmp.rglob("*.nbi"))


def test_a_temporary_folder_is_used_and_named(site: Path, tmp_path: Path) -> None:
    tmp = tmp_path / "tmp"
    tmp.mkdir()
    done = run(site, tmp)
    assert (done.returncode, done.stdout) == (0, "8\n"), done.stderr
    assert str(tmp / f"beam-compiled-{os.getuid()}") in done.stderr
    (index,) = kept(tmp)
    assert run(site, tmp).stdout == "8\n"
    assert kept(tmp) == [index], "found again"


def test_a_folder_that_others_could_have_filled_is_not_trusted(site: Path, tmp_path: Path) -> None:
    tmp = tmp_path / "tmp"
    shared = tmp / f"beam-compiled-{os.getuid()}"
    shared.mkdir(parents=True)
    shared.chmod(0o777)
    done = run(site, tmp)
    assert (done.returncode, done.stdout) == (0, "8\n"), done.stderr
    assert not list(shared.iterdir())
    assert len(kept(tmp)) == 1
