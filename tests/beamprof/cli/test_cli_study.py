"""`beam study` on the command line, in processes of its own: killed, interrupted, resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "replay"))  # for replay_cases
from replay_cases import make_table, random_trace

from beamprof.cli.main import main
from beamprof.tables.table_file import write_table
from beamprof.traces.trace_file import save_trace

PATIENCE_S = 240


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A table, a trace of some seconds' work, and nothing else, as the working folder."""
    table = make_table()
    write_table(table.columns, table.metadata, tmp_path / "t.parquet")
    save_trace(random_trace(1, requests=4000), tmp_path / "x.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


ARGUMENTS = ["study", "--tables", "t.parquet", "--traces", "x.parquet", "--policies", "vanilla",
             "--noises", "0.05", "--seeds", "0:14:1", "--workers", "2"]  # fmt: skip
CELLS = 30


def begun(folder, least=2):
    """A study under way that has at least so many cells done."""
    process = subprocess.Popen(
        [sys.executable, "-m", "beamprof", *ARGUMENTS],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    waited_s = time.monotonic() + PATIENCE_S
    while len(cells(folder)) < least:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < waited_s
        time.sleep(0.02)
    return process


def cells(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.cells/*.json")}


def children(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_killed_study_loses_nothing_redoes_nothing_and_leaves_no_process(folder, capsys):
    process = begun(folder)
    workers = children(process.pid)
    assert len(workers) >= 2
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    waited_s = time.monotonic() + PATIENCE_S
    while not all(gone(pid) for pid in workers):
        assert time.monotonic() < waited_s
        time.sleep(0.05)
    kept = cells(folder)
    assert 2 <= len(kept) < CELLS
    assert not (folder / "study.parquet").exists()
    assert main([*ARGUMENTS, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["status"] == "ok"
    assert (answer["data"]["kept"], answer["data"]["played"]) == (len(kept), CELLS - len(kept))
    assert kept.items() <= cells(folder).items()
    assert len(answer["data"]["rows"]) == CELLS


def test_ctrl_c_keeps_what_is_done(folder, capsys):
    process = begun(folder)
    os.killpg(process.pid, signal.SIGINT)  # a terminal tells the workers too
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "Stopped by SIGINT" in out
    assert "next: the same command again" in out
    assert "Traceback" not in err
    kept = cells(folder)
    assert 2 <= len(kept) < CELLS
    assert main([*ARGUMENTS, "--dry-run"]) == 0
    assert f"{CELLS} cells, {len(kept)} done" in capsys.readouterr().out


def test_a_failed_cell_is_exit_code_1_and_a_bad_grid_2(folder, capsys):
    few = ["study", "-t", "t.parquet", "--trace", "x.parquet", "--policy", "vanilla,oracle"]
    assert main([*few, "--max-model-len", "2"]) == 1
    out, err = capsys.readouterr()
    assert "3 failed" in out
    assert "3 cells, first vanilla on x.parquet" in err
    assert main([*few, "--on", "moon"]) == 2
    assert "expected local or ray" in capsys.readouterr().err
    assert main(["study", "--example"]) == 0
    Path("mine.toml").write_text(capsys.readouterr().out + 'polices = "beam"\n')
    assert main(["study", "mine.toml"]) == 2
    assert "did you mean 'policies'?" in capsys.readouterr().err


def test_the_answer_the_grid_and_the_next_command(folder, capsys):
    assert main(["study", "-t", "t.parquet", "--trace", "x.parquet", "--policy", "static:800",
                 "--noise", "0,0.1", "--seed", "1,2", "-o", "out.parquet"]) == 0  # fmt: skip
    out, err = capsys.readouterr()
    assert out.startswith("9 of 9 cells in ")
    assert "t.parquet  SLO 1s/200ms, noise 0.1" in out
    assert "±" in out
    assert "wrote out.parquet" in out
    assert out.rstrip().endswith("next: beam report out.parquet")
    assert max(map(len, out.splitlines())) <= 100
    assert "warning" not in err
