"""Cells that were played before: kept while table, trace and BEAM are the same, else played."""

import json

import pytest
from replay_cases import make_table, random_trace
from study_cases import POLICIES, comparable, found, grid, put_table

from beam_runtime.table.perf_table import PerfTable
from beamprof.interrupt import Stop
from beamprof.replay import study_cells
from beamprof.replay.study import plan_study, study
from beamprof.replay.study_cells import play_job
from beamprof.tables.table_file import write_table
from beamprof.traces.trace_file import save_trace


def test_what_is_done_is_not_played_again_and_a_grown_grid_adds_to_it(files, here):
    first = study(grid(files), files / "s.parquet")
    times = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    here.played.clear()
    again = study(grid(files), files / "s.parquet", force=True)
    assert here.played == []
    assert (again.played, again.kept) == (0, 8)
    assert again.frame.equals(first.frame)
    grown = study(grid(files, policies=f"{POLICIES},static:1000"), files / "s.parquet", force=True)
    assert (grown.played, grown.kept) == (2, 8)
    assert all(path.stat().st_mtime_ns == then for path, then in times.items())


def test_a_stop_keeps_what_is_done_and_writes_no_file(files, here, monkeypatch):
    stop = Stop()

    class AfterThree:
        def begin(self, done, total):
            assert (done, total) == (0, 8)

        def finished(self, cell, failure):
            if len(here.played) >= 3:
                stop.signal_name = "SIGINT"

    stopped = study(grid(files), files / "s.parquet", watcher=AfterThree(), stop=stop)
    assert stopped.output is None
    assert not (files / "s.parquet").exists()
    assert stopped.played == len(here.played) < 8
    assert stopped.remaining == 8 - stopped.played
    assert stopped.stopped_by == "SIGINT"
    before = list(here.played)
    here.played.clear()
    rest = study(grid(files), files / "s.parquet")
    assert set(before).isdisjoint(here.played)
    assert (rest.kept, rest.played, rest.output) == (len(before), 8 - len(before),
                                                     files / "s.parquet")  # fmt: skip


def test_a_changed_table_or_trace_is_noticed_and_not_mixed(files, here):
    old = study(grid(files), files / "s.parquet")
    put_table(files / "t.parquet", force=True, latency=1.2)
    changed = study(grid(files), files / "s.parquet", force=True)
    assert "table_sha256 (8 cells)" in found(changed)
    assert changed.frame["table_sha256"].n_unique() == 1
    assert set(changed.frame["table_sha256"]).isdisjoint(old.frame["table_sha256"])
    save_trace(random_trace(9), files / "one.parquet", force=True)
    assert "trace_sha256 (4 cells)" in found(plan_study(grid(files), files / "s.parquet"))
    mixed = study(grid(files), files / "s.parquet", force=True)
    assert (mixed.kept, mixed.played) == (4, 4)
    # The old inputs are as they were: so are their cells.
    put_table(files / "t.parquet", force=True)
    save_trace(random_trace(1), files / "one.parquet", force=True)
    back = study(grid(files), files / "s.parquet", force=True)
    assert back.played == 0
    assert back.frame.equals(old.frame)


@pytest.mark.parametrize(
    "words", [{"energy_source": "another"}, {"device": "b200"}, {"origin": "elsewhere"}]
)
def test_a_table_with_other_metadata_makes_other_cells(files, here, words):
    study(grid(files), files / "s.parquet")
    table = PerfTable.load(files / "t.parquet")
    write_table(table.columns, {**table.metadata, **words}, files / "t.parquet", force=True)
    assert study(grid(files), files / "s.parquet", force=True).kept == 0


def test_another_beam_makes_other_cells(files, here, monkeypatch):
    study(grid(files), files / "s.parquet")
    monkeypatch.setattr(study_cells, "code_sha256", lambda: "0" * 64)
    assert "code_sha256 (8 cells)" in found(plan_study(grid(files), files / "s.parquet"))
    monkeypatch.setattr(study_cells.version, "__version__", "9.9")
    assert "beam_version (8 cells)" in found(plan_study(grid(files), files / "s.parquet"))


def test_a_worker_with_another_beam_refuses(files, monkeypatch):
    spec = grid(files)
    table, trace = make_table(), random_trace(1)
    (job, *_) = study_cells.jobs_of(spec, [table], [trace, trace])
    monkeypatch.setattr(study_cells, "code_sha256", lambda: "0" * 64)
    failure = play_job(job)
    assert "another BEAM" in failure.message


def test_moved_files_are_the_same_cells_under_their_new_names(files, here):
    study(grid(files), files / "s.parquet")
    (files / "moved").mkdir()
    for name in ("t.parquet", "one.parquet", "one.parquet.json", "two.parquet", "two.parquet.json"):
        (files / name).rename(files / "moved" / name)
    again = study(grid(files / "moved"), files / "s.parquet", force=True)
    assert again.played == 0
    assert found(again) == ""
    assert set(again.frame["table"]) == {str(files / "moved/t.parquet")}


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: text.replace('"energy_kwh": ', '"energy_kwh": 1'),
        lambda text: text.replace("beam.study.cell/1", "beam.study.cell/2"),
        lambda text: "[1]",
        lambda text: json.dumps({"check": "x", "schema": "beam.study.cell/1"}),
    ],
    ids=["cut", "empty", "another number", "another schema", "no object", "no row"],
)
def test_a_damaged_cell_is_played_again(files, here, damage):
    first = study(grid(files), files / "s.parquet")
    victim = sorted(first.folder.iterdir())[0]
    victim.write_text(damage(victim.read_text()))
    again = study(grid(files), files / "s.parquet", force=True)
    assert (again.played, again.kept) == (1, 7)
    assert victim.name in found(again)
    assert comparable(again).equals(comparable(first))


def test_a_plan_says_what_is_done(files, here):
    before = plan_study(grid(files), files / "s.parquet", workers=3)
    assert (len(before.cells), before.workers) == (8, 3)
    assert not any(cell.done for cell in before.cells)
    assert before.duration_s > 0
    assert not (files / "s.parquet.cells").exists()
    study(grid(files), files / "s.parquet")
    after = plan_study(grid(files), files / "s.parquet")
    assert all(cell.done for cell in after.cells)
    assert after.duration_s == 0
