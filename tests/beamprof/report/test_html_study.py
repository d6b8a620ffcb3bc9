"""A study's page: medians over settings, every setting, and what is missing said as missing."""

import io
import json
from concurrent.futures import Future

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from page_reading import Page
from replay_cases import make_table, random_trace
from rich.console import Console

from beamprof.cli.main import main
from beamprof.errors import ReportError
from beamprof.replay import study as study_module
from beamprof.replay.saved_study import load_study
from beamprof.replay.study import METADATA_KEY, StudyResult, study
from beamprof.replay.study_cells import play_job
from beamprof.replay.study_spec import resolve_study
from beamprof.report.html.number_words import percent, points, significant
from beamprof.report.html.study_part import study_part
from beamprof.report.html_report import write_report
from beamprof.report.study_views import show_study
from beamprof.tables.table_file import write_table
from beamprof.traces.trace_file import save_trace


class Here:
    """Cells are played where they are submitted."""

    workers = 1

    def submit(self, job):
        future = Future()
        future.set_result(play_job(job))
        return future

    def close(self):
        pass


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    table = make_table()
    write_table(table.columns, table.metadata, folder / "t.parquet")
    save_trace(random_trace(1), folder / "one.parquet")
    save_trace(random_trace(2, rate=8.0), folder / "two.parquet")
    flags = {
        "tables": str(folder / "t.parquet"),
        "traces": f"{folder / 'one.parquet'},{folder / 'two.parquet'}",
        "policies": "static:800,beam,oracle", "slos": "300ms/90ms,1s/200ms",
        "noises": "0.05", "seeds": "0,1",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_module, "open_place", lambda on, workers: Here())
        study(resolve_study(flags, environment={}), folder / "study.parquet")
    return folder / "study.parquet"


@pytest.fixture(scope="module")
def page(studied, tmp_path_factory):
    path = write_report([studied], tmp_path_factory.mktemp("page") / "s.html").path
    return Page(path.read_text("utf-8"))


def cells(studied, policy, column):
    """Means over seeds, one for each setting."""
    rows = load_study(studied).filter(policy=policy)
    keys = ("trace", "slo_ttft_ms")
    return rows.group_by(keys, maintain_order=True).agg(pl.col(column).mean())[column].to_numpy()


def test_it_is_well_formed_and_loads_nothing(page):
    assert page.faults == [] and page.loads == ["data:,"] and page.count("script") == 0


def test_the_overview_gives_medians_ranges_and_the_worst(page, studied):
    for policy in ("static:best", "static:800", "beam"):
        energy = cells(studied, policy, "energy_to_vanilla")
        assert len(energy) == 4
        at = page.words.index(policy)
        row = page.words[at : at + 5]
        assert row[1] == f"{np.median(energy):.3f} of vanilla"
        assert row[2] == f"{energy.min():.3f} to {energy.max():.3f}"
        assert (
            row[3] == f"goodput at worst {points(cells(studied, policy, 'goodput_points').min())}"
        )
        assert row[4] == f"requests at most {cells(studied, policy, 'slowdown').max():.2f} times"
    assert len([c for c in page.of_class("faint") if "cx" in c]) == 4 * 4


def test_every_setting_has_its_table(page, studied):
    for title in ("one.parquet, SLO 300ms/90ms", "two.parquet, SLO 1s/200ms"):
        assert title in page.words
    frame = load_study(studied)
    first = frame.filter(
        pl.col("trace").str.ends_with("one.parquet"), slo_ttft_ms=300.0, policy="beam"
    )
    assert first.height == 2
    at = page.words.index("beam", page.words.index("one.parquet, SLO 300ms/90ms"))
    row = page.words[at : at + 14]
    assert row[1] == percent(first["goodput"].mean(), 2)
    assert first["energy_kwh"].max() < 1.0, "a minute's energy is told in Wh"
    assert row[3] == significant(1e3 * first["energy_kwh"].mean())
    assert "Wh" in page.words and "kWh" not in page.words
    assert row[7] == f"{first['request_mean_ms'].mean() / 1e3:,.1f}"
    assert row[10] == percent(first["ttft_kept_share"].mean(), 2)
    assert "means over 2 seeds" in page.text and "noise 5.0 %" in page.text
    oracle = page.words.index("oracle (bound)", at)
    assert page.words[oracle + 1] == page.words[oracle + 7] == "–", "a bound keeps no promise"


def kept_as(frame, **goodput):
    """The study with these shares kept in every cell; energies stay."""
    vanilla = goodput["vanilla"]
    shares = pl.col("policy").replace_strict(
        {name.replace("_", ":"): share for name, share in goodput.items()}, default=None
    )
    return frame.with_columns(goodput=shares, goodput_points=100 * (shares - vanilla))


def told_as(studied, frame):
    """What the terminal says of such a study."""
    result = StudyResult(studied, studied.parent, 4, 4, 0, (), 0, None, (), 1.0, frame)
    console = Console(width=100, file=io.StringIO())
    show_study(result, console)
    return " ".join(console.file.getvalue().split())


def test_a_policy_that_keeps_next_to_nothing_is_no_answer_where_another_keeps_more(studied):
    """Beside a vanilla that keeps nothing everybody is as good: that is no reason."""
    frame = load_study(studied)
    few = kept_as(frame, vanilla=0.01, static_best=0.01, static_800=0.01, beam=0.8)
    assert study_part(studied, few).sentence.startswith("beam needs")
    assert ": beam needs" in told_as(studied, few)


def test_a_study_that_nobody_keeps_is_said_to_be_that(studied):
    nobody = kept_as(load_study(studied), vanilla=0.1, static_best=0.4, static_800=0.3, beam=0.2)
    assert study_part(studied, nobody).sentence.startswith("No policy keeps its SLO for half")
    assert "no policy keeps its SLO for half" in told_as(studied, nobody)


def test_an_hours_energy_is_told_in_kwh(studied):
    frame = load_study(studied).with_columns(pl.col("energy_kwh") * 1000)
    heads = [section.body.heads for section in study_part(studied, frame).sections[1:-1]]
    assert all("kWh" in head and "Wh" not in head for head in heads)


def test_it_names_the_cheapest_of_those_that_keep_most(studied):
    part = study_part(studied, load_study(studied))
    rivals = ("static:best", "static:800", "beam")
    kept = {p: cells(studied, p, "goodput") for p in ("vanilla", *rivals)}
    half = np.max(list(kept.values()), axis=0) >= 0.5  # somebody keeps it for half: so must they
    beside = {p: cells(studied, p, "goodput_points") >= -0.3 for p in rivals}
    as_good = {p: int((beside[p] & ((kept[p] >= 0.5) | ~half)).sum()) for p in rivals}
    named = part.sentence.split()[0]
    energy = {p: cells(studied, p, "energy_to_vanilla") for p in rivals}
    assert named == max(rivals, key=lambda p: (as_good[p], -energy[p].mean()))
    assert f"{np.median(energy[named]):.2f} of vanilla's energy" in part.sentence
    assert part.sentence.endswith(f"vanilla's in {as_good[named]} of them.")
    slower = np.median(cells(studied, named, "slowdown"))
    assert f"{slower:.2f} times as long" in part.sentence
    assert "their rows are measured" in part.standing


def test_a_study_that_saves_nothing_says_so(studied):
    frame = load_study(studied).filter(pl.col("policy").is_in(["vanilla", "oracle"]))
    assert study_part(studied, frame).sentence.startswith("No policy needs less")


def test_without_vanilla_energy_is_shown_as_unknown(studied):
    frame = load_study(studied).with_columns(
        energy_to_vanilla=pl.lit(None, pl.Float64), goodput_points=pl.lit(None, pl.Float64)
    )
    part = study_part(studied, frame)
    assert part.sentence.startswith("No policy needs less")
    assert part.sections[1].body.rows[2][2] == "–"


def test_the_command_takes_a_study(studied, capsys):
    assert main(["report", str(studied), "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["data"]["inputs"]
    assert told["kind"] == "study"
    assert studied.with_suffix(".html").is_file()


def test_studies_that_are_none(studied, tmp_path):
    table = pq.read_table(studied)
    metadata = table.schema.metadata
    for change, said in (
        (table.drop_columns(["energy_kwh"]), "no study of this BEAM"),
        (table.replace_schema_metadata({METADATA_KEY: '{"schema": "other/2"}'}), "no study"),
        (table.slice(0, 0), "holds no cells"),
    ):
        kept = change if METADATA_KEY.encode() in change.schema.metadata else None
        pq.write_table(kept or change.replace_schema_metadata(metadata), tmp_path / "s.parquet")
        with pytest.raises(ReportError, match=said):
            write_report([tmp_path / "s.parquet"])
    assert not (tmp_path / "s.html").exists()


def test_an_slo_that_nobody_keeps_is_left_out_of_the_saving_and_told(studied):
    """vanilla, which keeps nothing of it, is no measure: everybody had been as good."""
    frame = load_study(studied)
    tight = pl.col("slo_ttft_ms") == 300.0
    mixed = frame.with_columns(
        goodput=pl.when(tight).then(0.0).otherwise(1.0),
        goodput_points=0.0,
        energy_to_vanilla=pl.when(tight).then(0.1).otherwise(pl.col("energy_to_vanilla")),
    )
    kept = mixed.filter(~tight)
    one, other = (study_part(studied, rows).sentence for rows in (mixed, kept))
    assert one == f"{other} In 2 of 4 settings no policy keeps its SLO: they are left out."
    left_out = f"; {mixed.filter(tight).height} of {mixed.height} cells are left out"
    assert left_out in told_as(studied, mixed)
    assert told_as(studied, kept).partition(": ")[2][:60] in told_as(studied, mixed)
