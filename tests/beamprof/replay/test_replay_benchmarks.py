"""The benchmarks' parts, and the numbers they must reach on the measured node's data."""

from dataclasses import replace
from pathlib import Path

import energy
import fidelity
import numpy as np
import polars as pl
import pytest
from replay_cases import IDLE_W, make_table, make_trace

from beamprof.errors import ReplayError
from beamprof.replay.assumptions import Assumptions
from beamprof.replay.ladder import replay
from beamprof.replay.options import ReplayOptions
from beamprof.replay.plant import play
from beamprof.replay.policies.static import Static
from beamprof.tables.importers import ImportOverrides, importer
from beamprof.tables.table_file import seal_table
from beamprof.traces.importing import import_trace

MEASURED = Path(__file__).parents[4] / "shared" / "data" / "measured-a100"
needs_data = pytest.mark.skipif(
    not MEASURED.is_dir(), reason="the shared data is not beside this checkout"
)


@pytest.fixture(scope="module")
def table_70b():
    (csv,) = MEASURED.glob("dvfs_profile_*Llama-3.3-70B*_tp2_pp4_one.csv")
    imported = importer("beam-artifact")(csv, ImportOverrides())
    return seal_table(imported.columns, imported.metadata)


@needs_data
def test_the_plant_is_as_close_to_the_measured_node_as_we_say(table_70b):
    (csv,) = MEASURED.glob("endtoend_*.csv")
    result = fidelity.fidelity(table_70b, csv, seeds=5)
    assert sum(row.fitted for row in result.rows) == 5 and len(result.rows) == 25
    for name, target in fidelity.TARGETS.items():
        assert result.mape[name] <= target, name
    # The constants are those of a real node, not whatever fits.
    assert 3.0 <= result.constants.host_gap_ms <= 9.0
    assert 25.0 <= result.constants.waiting_power_w <= 80.0


@needs_data
def test_ten_minutes_of_the_headline_trace(table_70b):
    trace = import_trace(next(MEASURED.glob("requests_*_19h00m-19h10m_*.csv")))
    published = ReplayOptions.assuming(Assumptions.PUBLISHED)
    report = replay(table_70b, trace, ["beam-paper", "beam"], published)
    _, knee, paper, beam = report.rungs
    assert report.knee_mhz == 1050
    assert 0.70 <= knee.to_vanilla <= 0.77
    assert beam.to_vanilla <= 0.45 and beam.to_knee <= 0.60
    assert beam.to_vanilla < paper.to_vanilla
    assert beam.metrics.attainment.tbt >= 0.999 > paper.metrics.attainment.tbt
    assert beam.ttft_points >= -0.1


def test_every_clock_and_every_load_is_fitted_once():
    rows = [{"clock": c, "tps": t} for c in (600, 800, 1000, 1200, 1400) for t in (1, 2, 3, 4, 5)]
    chosen = [rows[i] for i in fidelity.rows_to_fit(rows)]
    assert len({row["clock"] for row in chosen}) == len({row["tps"] for row in chosen}) == 5
    more = [{"clock": c, "tps": t} for c in range(600, 1300, 100) for t in (1, 2)]
    assert len(fidelity.rows_to_fit(more)) == 5


def test_the_power_window_counts_a_step_by_the_part_inside_it(site):
    # 29.99 s: a pass of 4 x about 23 ms and 2 ms gaps, a tenth of it inside the window.
    played = play(make_trace([(29.99, 256, 1)], 60), Static("one", 1400), site)
    (step,) = played.steps
    stay_ms = step["finished_ms"] - step["issued_ms"]
    inside = (30e3 - step["issued_ms"]) / stay_ms
    by_hand = inside * step["energy_j"] + IDLE_W * (4 * 30 - inside * step["busy_ms"] / 1e3)
    assert 0.05 < inside < 0.2
    assert fidelity.window_power_w(played, IDLE_W) == pytest.approx(by_hand / 30)


def test_rows_of_another_layout_are_refused(tmp_path):
    path = tmp_path / "endtoend.csv"
    row = dict.fromkeys(fidelity.COLUMNS, 1.0) | {"tp": 2, "pp": 4}
    pl.DataFrame([row]).write_csv(path)
    assert len(fidelity.read_rows(path, make_table(pp=4))) == 1
    with pytest.raises(ReplayError, match="no rows for tp 2, pp 2"):
        fidelity.read_rows(path, make_table(pp=2))
    pl.DataFrame([row]).drop("tbt_p90").write_csv(path)
    with pytest.raises(ReplayError, match="lacks tbt_p90"):
        fidelity.read_rows(path, make_table(pp=4))


def test_wrong_tables_are_wrong_as_stated(table):
    forward = table.columns["kind"] == "forward"
    low = energy.biased(table, 0.85).columns["latency_ms"] / table.columns["latency_ms"]
    assert low[forward] == pytest.approx(0.85)
    assert low[~forward] == pytest.approx(1.0)
    off = np.log(energy.noisy(table, 0.1).columns["energy_j"] / table.columns["energy_j"])
    assert off[forward].std() == pytest.approx(0.1, rel=0.3)
    assert off[~forward] == pytest.approx(0.0)


def test_a_missed_target_is_named(table):
    rung = replay(table, make_trace([(0, 100, 5)], 5), []).rungs[1]
    good = replace(rung, to_vanilla=0.4, to_knee=0.5, ttft_points=0.0)
    assert energy.missed(good) == []
    assert energy.missed(replace(good, to_vanilla=0.42)) == ["energy 0.420 of vanilla"]
    assert energy.missed(replace(good, ttft_points=-0.2)) == ["TTFT -0.20 points"]
