"""A study of 500 cells that is killed: the same command goes on, and the file is the same."""

import os
import signal
import subprocess
import sys
import time

import polars as pl
import pytest
from replay_cases import make_table, random_trace

from beamprof.replay.study_cells import TIMINGS
from beamprof.tables.table_file import write_table
from beamprof.traces.trace_file import save_trace

CELLS = 500
GRID = """
tables = ["t.parquet"]
traces = ["day.parquet"]
policies = ["static:600", "static:800", "lowest-feasible"]   # and vanilla, static:best
noises = [0.05]
seeds = "0:99:1"
"""


def command(output):
    words = ["study", "grid.toml", "--output", output, "--workers", "2"]
    return [sys.executable, "-m", "beamprof", *words]


def finished(folder):
    return len(list(folder.glob("*.json"))) if folder.is_dir() else 0


@pytest.fixture
def grid(tmp_path):
    table = make_table()
    write_table(table.columns, table.metadata, tmp_path / "t.parquet")
    save_trace(random_trace(1, requests=20), tmp_path / "day.parquet")
    (tmp_path / "grid.toml").write_text(GRID)
    return tmp_path


def test_a_killed_study_goes_on_where_it_was(grid):
    killed = subprocess.Popen(
        command("killed.parquet"), cwd=grid, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    cells = grid / "killed.parquet.cells"
    try:
        deadline_s = time.monotonic() + 120
        while finished(cells) < 20 and killed.poll() is None and time.monotonic() < deadline_s:
            time.sleep(0.02)
    finally:
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
    done = finished(cells)
    assert 20 <= done < CELLS, "killed while it was at work"
    assert not (grid / "killed.parquet").exists()
    again = subprocess.run(
        command("killed.parquet"), cwd=grid, capture_output=True, text=True, check=True
    )
    whole = subprocess.run(
        command("whole.parquet"), cwd=grid, capture_output=True, text=True, check=True
    )
    assert f"{CELLS} of {CELLS} cells" in again.stdout
    assert "were done before" in again.stdout and "were done before" not in whole.stdout
    resumed, straight = (
        pl.read_parquet(grid / f"{name}.parquet").drop(TIMINGS) for name in ("killed", "whole")
    )
    assert resumed.height == CELLS
    assert resumed.equals(straight)
