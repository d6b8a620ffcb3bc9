"""A cell that fails is told and costs no other; what cannot be played is refused before any is."""

import dataclasses
import io

import polars as pl
import pytest
from replay_cases import CLOCKS_MHZ, make_trace
from rich.console import Console
from study_cases import grid, put_table

from beam_runtime.errors import BeamError
from beamprof.errors import OutputError
from beamprof.replay import study_cells
from beamprof.replay.policies.registry import STATIC_BEST
from beamprof.replay.study import study
from beamprof.report.study_views import show_study
from beamprof.traces.trace_file import save_trace


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


def said(result):
    """The study as people read it."""
    written = io.StringIO()
    show_study(result, Console(file=written, width=100))
    return " ".join(written.getvalue().split())


def test_where_nothing_was_played_nothing_is_claimed(files, here):
    """Neither that nothing saves, nor that the same command might help."""
    words = said(study(grid(files, max_model_len=2), files / "s.parquet"))
    assert words.startswith("No cell was played to its end, 8 failed: what saves energy is not")
    assert "saves energy and keeps" not in words
    assert "next: the same command again" not in words
    assert "--over-limit" in words.partition("next: ")[2]


def test_what_cannot_be_compared_is_not_judged(files, here, monkeypatch):
    """Vanilla's cells failed: what others save beside it is not known."""
    result = study(grid(files), files / "s.parquet")
    alone = result.frame.with_columns(
        **{name: pl.lit(None, pl.Float64) for name in ("energy_to_vanilla", "goodput_points")}
    )
    words = said(dataclasses.replace(result, frame=alone))
    assert "no policy can be compared with vanilla and static:best" in words
    assert "saves energy and keeps" not in words


def test_the_best_static_setting_is_not_compared_with_itself(files, here):
    result = study(grid(files), files / "s.parquet")
    frame = result.frame.with_columns(
        policy=pl.when(pl.col("policy") == "vanilla").then("policy").otherwise(pl.lit(STATIC_BEST)),
        energy_to_vanilla=pl.when(pl.col("policy") == "vanilla").then(1.0).otherwise(0.5),
        energy_to_static=1.0, goodput_points=0.0, goodput=1.0, slowdown=1.0,
    )  # fmt: skip
    words = said(dataclasses.replace(result, frame=frame))
    assert "static:best needs 0.50 of vanilla's energy" in words
    assert "best static setting's" not in words
