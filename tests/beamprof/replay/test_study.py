"""Studies: every cell of the grid once, and in it what replay says."""

import dataclasses
import json

import polars as pl
import pyarrow.parquet as pq
import pytest
from replay_cases import make_table, make_trace, random_trace
from study_cases import grid, put_table

from beam_runtime.table.perf_table import PerfTable
from beam_runtime.types import Slo
from beamprof.cli.main import main
from beamprof.errors import ReplayError, SweepError
from beamprof.replay import study as study_module
from beamprof.replay.ladder import replay
from beamprof.replay.metrics import Metrics
from beamprof.replay.options import ReplayOptions
from beamprof.replay.study import METADATA_KEY, study
from beamprof.replay.study_cells import PROVENANCE, RESULTS
from beamprof.tables.table_file import write_table
from beamprof.traces.trace_file import save_trace


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


def test_requests_beyond_what_the_model_takes_are_said(files, here):
    known = make_table(model="llama3-8b")
    write_table(known.columns, known.metadata, files / "t.parquet", force=True)
    long = make_trace([(0.0, 9000, 2), (1.0, 100, 2)], 2)
    save_trace(long, files / "two.parquet", force=True)
    (said,) = [note for note in study(grid(files), files / "s.parquet").notes if "takes" in note]
    assert said.startswith(f"{files / 'two.parquet'}: 1 of 2 requests have more than the 8,192")
    capped = grid(files, max_model_len="16384")
    assert not any("takes" in note for note in study(capped, files / "c.parquet").notes)


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
