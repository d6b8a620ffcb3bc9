"""Studies: every cell once, the same wherever it is played, and never mixed with another's."""

import dataclasses
import json
import os
from concurrent.futures import Future
from importlib.util import find_spec
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from replay_cases import CLOCKS_MHZ, make_table, make_trace, random_trace

from beam_runtime import emulator
from beam_runtime.errors import BeamError
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.types import Slo
from beamprof.cli.main import main
from beamprof.errors import OutputError, ReplayError, SweepError
from beamprof.interrupt import Stop
from beamprof.replay import study as study_module
from beamprof.replay import study_cells
from beamprof.replay.ladder import replay
from beamprof.replay.metrics import Metrics
from beamprof.replay.options import ReplayOptions
from beamprof.replay.study import METADATA_KEY, plan_study, study
from beamprof.replay.study_cells import PROVENANCE, RESULTS, TIMINGS, play_job
from beamprof.replay.study_places import LocalPlace, RayPlace
from beamprof.replay.study_spec import resolve_study
from beamprof.tables.table_file import write_table
from beamprof.traces.trace_file import save_trace

POLICIES = "vanilla,static:best,static:800,oracle"


class Here:
    """A place without processes: cells are played when they are submitted."""

    workers = 2

    def __init__(self) -> None:
        self.played = []

    def submit(self, job):
        self.played.append(str(job))
        future = Future()
        future.set_result(play_job(job))
        return future

    def close(self) -> None:
        pass


@pytest.fixture
def here(monkeypatch):
    place = Here()
    monkeypatch.setattr(study_module, "open_place", lambda on, workers: place)
    return place


def put_table(path, *, force=False, **options):
    table = make_table(**options)
    write_table(table.columns, table.metadata, path, force=force)
    return path


@pytest.fixture
def files(tmp_path):
    """A table and two traces."""
    put_table(tmp_path / "t.parquet")
    save_trace(random_trace(1), tmp_path / "one.parquet")
    save_trace(random_trace(2, rate=8.0), tmp_path / "two.parquet")
    return tmp_path


def grid(folder, **flags):
    return resolve_study(
        {
            "tables": [str(folder / "t.parquet")],
            "traces": [str(folder / "one.parquet"), str(folder / "two.parquet")],
            "policies": POLICIES,
            **flags,
        }
    )


def found(result):
    """What was noticed, without what is always assumed."""
    return " ".join(note for note in result.notes if not note.startswith("plant: "))


def comparable(result):
    return result.frame.drop(TIMINGS)


def test_a_study_says_what_replay_says(files, here):
    spec = grid(files, policies="vanilla,static:best,lowest-feasible,oracle", noises="0.05",
                seeds="3", slos="900ms/120ms")  # fmt: skip
    result = study(spec, files / "s.parquet")
    options = ReplayOptions(slo=spec.slos[0], noise=0.05, seed=3)
    for name in ("one", "two"):
        trace = study_module.open_trace(files / f"{name}.parquet")
        report = replay(PerfTable.load(files / "t.parquet"), trace, spec.policies, options)
        rows = result.frame.filter(trace=str(files / f"{name}.parquet"))
        for rung in report.rungs:
            row = rows.row(by_predicate=pl.col("policy") == rung.metrics.policy, named=True)
            for column in ("energy_j", "idle_energy_j", "j_per_token", "steps", "decisions"):
                assert row[column] == getattr(rung.metrics, column)
            assert row["tbt_p99_ms"] == rung.metrics.tbt.p99_ms
            assert row["goodput"] == rung.metrics.goodput
            assert row["request_p99_ms"] == rung.metrics.request.p99_ms
            assert (row["setting"] or "") == rung.setting
            assert row["impossible_requests"] == rung.metrics.attainment.impossible
            assert {one["clock_mhz"]: one["share"] for one in row["clock_shares"]} == (
                rung.metrics.clock_share
            )
            assert row["energy_to_vanilla"] == rung.to_vanilla
            assert row["energy_to_static"] == rung.to_static
            assert row["slowdown"] == rung.slowdown
            for points in ("goodput_points", "ttft_points", "stream_points"):
                assert row[points] == getattr(rung, points)
        oracle = rows.row(by_predicate=pl.col("policy") == "oracle", named=True)
        assert oracle["energy_j"] == report.oracle_j
        assert oracle["ttft_mean_ms"] is None


def with_classes(trace, names):
    frame = trace.frame.with_columns(pl.Series("slo_class", names, dtype=pl.String))
    return trace.transformed(frame, "classes", {}, {})


def test_a_class_is_promised_what_replay_promises_it(files, here):
    names = [("batch", None)[i % 2] for i in range(40)]
    trace = with_classes(random_trace(2, rate=8.0), names)
    save_trace(trace, files / "two.parquet", force=True)
    spec = grid(files, slo_class=["batch=1ms/1ms"])
    result = study(spec, files / "s.parquet")
    options = ReplayOptions.assuming(spec.assumptions, classes=(("batch", Slo(1.0, 1.0)),))
    report = replay(PerfTable.load(files / "t.parquet"), trace, ["vanilla"], options)
    rows = result.frame.filter(policy="vanilla")
    classless, classed = rows["goodput"].to_list()
    assert classed == report.vanilla.goodput <= 0.5 < classless
    assert set(rows["slo_classes"]) == {"batch=1ms/1ms"}
    other = study(grid(files), files / "s.parquet", force=True)
    assert other.kept == 0, "another promise is another cell"


def test_a_class_that_no_trace_has_is_refused(files, here):
    with pytest.raises(ReplayError, match="of class interactive"):
        study(grid(files, slo_class="interactive=1s/200ms"), files / "s.parquet")
    with pytest.raises(SweepError, match="--slo-class: expected NAME=TTFT/TBT"):
        grid(files, slo_class="1s/200ms")


def test_the_command_line_takes_classes_as_replay_does(files, capsys):
    one = files / "one.parquet"
    save_trace(with_classes(random_trace(1), ["a", "b"] * 20), one, force=True)
    code = main([
        "study", "-t", str(files / "t.parquet"), "--trace", str(one),
        "--slo-class", "a=2s/300ms", "--slo-class", "b=3s/tpot=100ms", "--policy", "vanilla",
        "-o", str(files / "s.parquet"), "-j", "1", "--json",
    ])  # fmt: skip
    rows = json.loads(capsys.readouterr().out)["data"]["rows"]
    assert code == 0
    assert {row["slo_classes"] for row in rows} == {"a=2s/300ms,b=3s/tpot=100ms"}


def test_every_metric_has_a_column():
    nested = {"ttft", "tbt", "request", "attainment", "busy"}
    shares = {"clock_share", "chunk_share", "microbatches_share", "pace_share"}
    for field in dataclasses.fields(Metrics):
        if field.name in shares:
            assert f"{field.name}s" in RESULTS
        elif field.name not in nested:
            assert field.name in {*RESULTS, *PROVENANCE}, field.name


def test_what_was_assumed_is_said_and_written(files, here):
    put_table(files / "t.parquet", force=True, idle=False)
    result = study(grid(files), files / "s.parquet")
    (plant,) = result.notes
    assert "W per waiting GPU, assumed from the lightest pass" in plant
    assert "3 % step noise, seed 0" in plant
    (assumed_w,) = set(result.frame["waiting_gpu_power_w"])
    assert 10.0 < assumed_w < 200.0
    assert result.frame["idle_power_w"].null_count() == 8
    asked = study(grid(files, idle_power="80W"), files / "s.parquet", force=True)
    assert set(asked.frame["waiting_gpu_power_w"]) == set(asked.frame["idle_power_w"]) == {80.0}


def test_every_cell_of_the_grid_is_there_once(files, here):
    spec = grid(files, slos="1s/200ms,500ms/100ms", noises="0,0.1", seeds="0:2:1")
    result = study(spec, files / "s.parquet")
    # 2 traces x 2 SLOs x (1 without noise + 3 seeds) x 4 policies.
    assert (result.cells, result.played, result.kept, result.remaining) == (64, 64, 0, 0)
    assert result.frame.unique(list(PROVENANCE)).height == 64
    noisy = result.frame.filter(pl.col("noise_share") > 0, policy="vanilla", slo_ttft_ms=1000.0)
    assert noisy.group_by("trace").agg(pl.col("energy_j").n_unique())["energy_j"].to_list() == [
        3,
        3,
    ]
    written = pq.read_table(files / "s.parquet")
    assert json.loads(written.schema.metadata[METADATA_KEY.encode()]) == {"schema": "beam.study/1"}
    assert pl.from_arrow(written).equals(result.frame)


def test_vanilla_and_the_knee_are_always_there(files, here):
    result = study(grid(files, policies="static:800"), files / "s.parquet")
    assert result.frame["policy"].unique(maintain_order=True).to_list() == [
        "vanilla", "static:best", "static:800",
    ]  # fmt: skip
    assert result.frame["energy_to_static"].null_count() == 0


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


def test_a_cell_that_fails_is_told_and_the_others_go_on(files, here):
    long = [(0.0, 50, 5), (1.0, 9000, 5), (2.0, 60, 5)]
    save_trace(make_trace(long, 5), files / "two.parquet", force=True)
    result = study(grid(files, max_model_len=4096), files / "s.parquet")
    assert (result.played, result.remaining, len(result.failures)) == (4, 0, 4)
    assert {"1 of 3 requests exceed 4096 tokens"} == {one.message for one in result.failures}
    assert all("two.parquet" in one.cell for one in result.failures)
    assert result.frame.height == pl.read_parquet(files / "s.parquet").height == 4
    # Mended, only they are played.
    dropped = study(grid(files, max_model_len=4096, over_limit="drop"), files / "s.parquet",
                    force=True)  # fmt: skip
    assert dropped.failures == ()
    assert set(dropped.frame.filter(pl.col("trace").str.contains("two"))["requests_dropped"]) == {1}


def test_a_clock_that_one_table_lacks_fails_there_only(files, here):
    put_table(files / "u.parquet", clocks=CLOCKS_MHZ[2:])
    tables = [str(files / "t.parquet"), str(files / "u.parquet")]
    result = study(grid(files, tables=tables), files / "s.parquet")
    assert len(result.failures) == 2
    assert all(one.cell.startswith("static:800") for one in result.failures)
    assert all("u.parquet" in one.cell for one in result.failures)


def test_a_bug_in_one_cell_is_told_and_the_others_go_on(files, here, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("by chance")

    monkeypatch.setattr(study_cells, "lower_bound", broken)
    result = study(grid(files), files / "s.parquet")
    assert [one.message for one in result.failures] == (
        ["BEAM has a bug: ZeroDivisionError: by chance"] * 2
    )
    assert result.played == 6


def test_nothing_that_works_is_no_file(files, here):
    result = study(grid(files, max_model_len=2), files / "s.parquet")
    assert (len(result.failures), result.frame.height) == (8, 0)
    assert result.output is None
    assert not (files / "s.parquet").exists()


def test_bad_grids_are_refused_before_anything_is_played(files, here):
    for flags, words in (
        ({"policies": "vanila"}, "no policy is called 'vanila'"),
        ({"policies": "static:99"}, "expected a clock inside"),
        ({"tables": [str(files / "nix.parquet")]}, "no table at"),
        ({"traces": [str(files / "nix.csv")]}, "nix.csv"),
        ({"tables": [str(files / "one.parquet")]}, "one.parquet"),
    ):
        with pytest.raises(BeamError, match=words):
            study(grid(files, **flags), files / "s.parquet")
    assert here.played == []


def test_outputs_that_cannot_be_are_refused_before_anything_is_played(files, here):
    (files / "taken").touch()
    (files / "s.parquet.cells").touch()
    for output, words in (
        (files, "is a directory"),
        (files / "nix" / "s.parquet", "there is no directory"),
        (files / "taken", "exists"),
        (files / "s.parquet", "cannot make the folder"),
        (files / ("x" * 300), "cannot make the folder|cannot write"),
    ):
        with pytest.raises(OutputError, match=words):
            study(grid(files), output)
    assert here.played == []


def test_hostile_names_are_names(tmp_path, here):
    folder = tmp_path / "a, b; $(c) ünï\n[red]*?"
    folder.mkdir()
    put_table(folder / "t.parquet")
    for name in ("one", "two"):
        save_trace(random_trace(1), folder / f"{name}.parquet")
    result = study(grid(folder), folder / "out, [x].parquet")
    assert result.output.is_file()
    assert set(result.frame["table"]) == {str(folder / "t.parquet")}
    # The two traces are one: both have a row, and each cell was played once.
    assert (result.cells, len(here.played)) == (8, 4)


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


def test_one_process_two_processes_and_none_give_the_same_rows(files, here, monkeypatch):
    spec = grid(files, policies=f"{POLICIES},lowest-feasible", noises="0.05")
    reference = study(spec, files / "here.parquet")
    monkeypatch.undo()
    compiled = machine_code()
    for workers in (1, 2):
        result = study(spec, files / f"{workers}.parquet", workers=workers)
        assert result.failures == ()
        assert comparable(result).equals(comparable(reference))
    assert machine_code() == compiled  # the workers found it on disk


def machine_code():
    folders = [Path(module.__file__).parent for module in (study_module, emulator)]
    return {
        path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*.nb[ci]")
    }


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_the_extra_is_named():
    with pytest.raises(ReplayError) as caught:
        RayPlace(None)
    assert "beamprof[ray]" in caught.value.hint


def test_fewer_than_one_worker_is_refused(files):
    with pytest.raises(ReplayError, match="--workers"):
        study(grid(files), files / "s.parquet", workers=0)


class Deadly(dict):
    """Kills the process that unpickles it."""

    def __reduce__(self):
        return os._exit, (9,)


def test_a_worker_that_dies_is_told_and_the_others_go_on(files, monkeypatch):
    def with_a_deadly_one(spec, tables, traces):
        jobs = study_cells.jobs_of(spec, tables, traces)
        return (dataclasses.replace(jobs[0], provenance=Deadly(jobs[0].provenance)), *jobs[1:])

    monkeypatch.setattr(study_module, "jobs_of", with_a_deadly_one)
    result = study(grid(files), files / "s.parquet", workers=1)
    assert [one.message for one in result.failures] == [
        "its worker ended, or that of a cell beside it"
    ]
    assert result.played == 7


def test_workers_end_with_a_cell_under_way():
    place = LocalPlace(1)
    place._pool.submit(os.getpid).result()
    future = place._pool.submit(__import__("time").sleep, 3600)
    place.close()
    assert future.cancelled() or future.exception() is not None
