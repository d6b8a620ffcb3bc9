"""scripts/measure-h200, rehearsed on this CPU: every part runs, every table comes out."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from beam_runtime.table.perf_table import PerfTable
from beam_runtime.types import Source

ROOT = Path(__file__).parents[2]
needs_torch = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")),
    reason="torch or transformers is not installed",
)


def measure(*words: str) -> subprocess.CompletedProcess[str]:
    # The script calls `python`: let it be this one.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return subprocess.run(
        [str(ROOT / "scripts" / "measure-h200"), *words],
        capture_output=True, text=True, check=False, env={**os.environ, "PATH": path},
    )  # fmt: skip


@needs_torch
def test_the_rehearsal_measures_every_stage_and_compares_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = measure("--rehearse", str(out))
    logs = "\n".join(path.read_text() for path in out.glob("*.log"))
    assert done.returncode == 0, done.stderr + logs
    for name in ("dense-tp2-pp2", "fp8-tp1-pp2", "experts-tp1-pp1"):
        table = PerfTable.load(out / f"{name}.parquet")
        assert table.sources == (Source.MEASURED,)
        assert len(table) > 5
    for part in ("dense", "fp8", "experts"):
        assert f"{part}: done" in done.stdout
        assert f"{part}-modelled: done" in done.stdout
        assert f"{part}-compared: done" in done.stdout
    provenance = json.loads((out / "provenance.json").read_text())
    assert provenance["rehearsal"] is True
    assert provenance["torch"] != "none"


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is not None, reason="torch is here: parts would run"
)
def test_a_part_that_fails_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    done = measure("--rehearse", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "dense: failed" in done.stderr
    assert "experts: failed" in done.stderr
    assert "error: dense fp8 experts failed" in done.stderr
    assert (tmp_path / "out" / "provenance.json").is_file()


def test_without_a_folder_it_says_what_it_wants() -> None:
    done = measure()
    assert done.returncode == 2
    assert "error: " in done.stderr
    assert "hint: " in done.stderr
