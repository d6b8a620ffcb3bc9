"""Metrics by hand; the Parquet files; the ladder; `beam replay` as people and scripts meet it."""

import json
import re
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from replay_cases import make_table, make_trace, random_trace

from beam_runtime.types import EngineLimits, Slo
from beamprof.cli.main import main
from beamprof.errors import OutputError, ReplayError, TraceError
from beamprof.replay.ladder import replay
from beamprof.replay.metrics import Spread, measure, servable_in_time
from beamprof.replay.options import ReplayOptions
from beamprof.replay.plant import play
from beamprof.replay.policies.registry import policy_named
from beamprof.replay.results import request_frame, step_frame
from beamprof.replay.site import site_of
from beamprof.report.replay_views import undecided_lines
from beamprof.tables.table_file import write_table
from beamprof.traces.policies import OverLimit
from beamprof.traces.trace_file import save_trace


@pytest.fixture(scope="module")
def played(table, site):
    trace = random_trace(5, requests=80, rate=8.0)
    return play(trace, policy_named("static:1000", table), replace(site, slo=Slo(150.0, 90.0)))


def test_percentiles_are_those_of_every_value():
    spread = Spread.of(np.arange(101.0))
    assert (spread.mean_ms, spread.p50_ms, spread.p90_ms, spread.p99_ms, spread.max_ms) == (
        50.0, 50.0, 90.0, 99.0, 100.0,
    )  # fmt: skip
    assert Spread.of(np.array([])) == Spread(0.0, 0.0, 0.0, 0.0, 0.0)


def test_attainment_counts_requests_and_tokens(played):
    possible = np.ones(80, dtype=bool)
    possible[:10] = False
    metrics = measure(played, possible)
    kept = metrics.attainment
    in_time = [
        first - arrival <= 150.0
        for first, arrival in zip(played.first_token_ms, played.arrival_ms, strict=True)
    ]
    gaps = {request: [] for request in range(80)}
    for request, _, gap in played.tokens.tolist():
        gaps[int(request)].append(gap)
    steady = [all(gap <= 90.0 for gap in gaps[r]) for r in range(80)]
    every = [gap for one in gaps.values() for gap in one]
    assert 0 < sum(in_time) < 80 and 0 < sum(steady) < 80  # the case tells them apart
    assert kept.ttft == pytest.approx(sum(in_time) / 80)
    assert kept.ttft_possible == pytest.approx(sum(in_time[10:]) / 70)
    assert kept.tbt == pytest.approx(sum(gap <= 90.0 for gap in every) / len(every))
    assert kept.stream == pytest.approx(sum(steady) / 80)
    assert metrics.goodput == pytest.approx(
        sum(a and b for a, b in zip(in_time, steady, strict=True)) / 80
    )
    assert kept.impossible == 10


def test_power_under_overload_is_over_the_time_that_was_played(table, site):
    """The play runs on far past the trace's end: no GPU draws more than in a pass all along."""
    burst = make_trace([(0.01 * i, 400, 40) for i in range(60)], 1)
    late = play(burst, policy_named("static:1000", table), site)
    assert late.end_ms > 3 * late.duration_ms
    m = measure(late, np.ones(60, dtype=bool))
    in_pass_w = late.active_energy_j / (late.busy_ms / 1e3) * late.pp
    assert 0.5 * in_pass_w < m.mean_power_w <= in_pass_w * (1 + 1e-9)


@pytest.mark.parametrize("policy", ["vanilla", "beam"])
def test_power_is_never_below_what_waiting_gpus_draw(table, site, policy):
    """Answers that end long after a short trace: their time holds no idling, so it counts not."""
    lone = play(make_trace([(0.0, 64, 200)], 1), policy_named(policy, table), site)
    assert lone.end_ms > 5 * lone.duration_ms
    waiting_w = site.limits.pp * float(site.cost.idle_power_w.min())
    in_pass_w = lone.active_energy_j / (lone.busy_ms / 1e3) * lone.pp
    assert waiting_w <= measure(lone, np.ones(1, dtype=bool)).mean_power_w <= in_pass_w


def test_power_does_not_hang_on_how_long_the_load_goes_on(table, site):
    """One setting, one load, a minute and ten: the last answers of the minute dilute nothing."""
    # With seats for all: who does not know yet how long answers are slows them less.
    limits = replace(site.limits, max_num_seqs=512)
    slow = replace(site, limits=limits, slo=Slo(2000.0, 1000.0))

    def power_w(requests):
        arriving = make_trace([(1.0 * i, 100, 60) for i in range(requests)], requests)
        played = play(arriving, policy_named("beam", table), slow)
        return played, measure(played, np.ones(requests, dtype=bool)).mean_power_w

    (minute, short_w), (_, long_w) = power_w(60), power_w(600)
    assert minute.end_ms > 1.2 * minute.duration_ms  # else the case tells nothing
    assert short_w == pytest.approx(long_w, rel=0.06)


def test_energy_in_every_unit_and_shares_of_time_add_up(played):
    m = measure(played, np.ones(80, dtype=bool))
    tokens = played.output_tokens.sum()
    assert m.energy_j == pytest.approx(m.prefill_energy_j + m.decode_energy_j + m.idle_energy_j)
    assert m.energy_kwh * 3.6e6 == pytest.approx(m.energy_j)
    assert m.mean_power_w * played.duration_ms / 1e3 == pytest.approx(m.energy_j)
    assert m.j_per_token * tokens == pytest.approx(m.energy_j)
    assert m.j_per_request * 80 == pytest.approx(m.energy_j)
    for shares in (m.clock_share, m.chunk_share, m.microbatches_share, m.pace_share):
        assert sum(shares.values()) == pytest.approx(1.0)
    assert m.clock_share == {1000: pytest.approx(1.0)}
    assert 0.0 < m.busy < 1.0


def test_only_prompts_too_long_for_the_fastest_setting_are_impossible(site):
    # One chunk at the top is quickest here: 4 x (8 + 3.2 + 2) ms for 64 tokens.
    exact = 4 * (8.0 + 0.05 * 64 + 2.0)
    trace = make_trace([(i, tokens, 1) for i, tokens in enumerate((1, 63, 64, 65, 5000))], 5)
    limits = EngineLimits(pp=4, host_gap_ms=2.0)
    where = replace(site, limits=limits, slo=Slo(exact + 20.0), front_end_ms=20.0)
    fits = servable_in_time(trace, where, 512)
    assert fits.tolist() == [True, True, True, False, False]


def test_no_policy_serves_what_is_called_impossible(table, site):
    where = replace(site, slo=Slo(120.0, 1000.0))
    trace = make_trace([(3.0 * i, 300 + 100 * i, 1) for i in range(10)], 40)
    possible = servable_in_time(trace, where, 512)
    assert 0 < possible.sum() < 10
    for name in ("vanilla", "beam", "beam-paper", "vanilla:512"):
        one = play(trace, policy_named(name, table), where)
        assert not ((one.first_token_ms - one.arrival_ms <= 120.0) & ~possible).any()


def test_frames_hold_every_request_and_every_step(played):
    requests = request_frame(played, pl.Series(range(100, 180)))
    assert requests["request_id"].to_list() == list(range(100, 180))
    late = played.tokens["gap_ms"] > 90.0
    assert requests["late_tokens"].sum() == late.sum() > 0
    assert requests["tbt_max_ms"].max() == played.tokens["gap_ms"].max()
    mean = requests["tbt_mean_ms"] * (requests["output_tokens"] - 1)
    assert mean.sum() == pytest.approx(played.tokens["gap_ms"].sum())
    steps = step_frame(played)
    assert steps["prefill_tokens"].sum() == played.input_tokens.sum()
    assert steps["energy_j"].sum() == pytest.approx(played.active_energy_j)
    assert set(steps["clock_mhz"]) == {1000}


def test_the_ladder_always_has_both_baselines_and_the_bound(table):
    report = replay(table, random_trace(1), ["static:600", "oracle"])
    names = [rung.metrics.policy for rung in report.rungs]
    assert names == ["vanilla", "static:best", "static:600"]
    assert report.rungs[0].to_vanilla == 1.0
    assert report.rungs[1].to_static == 1.0
    assert report.oracle_j < min(rung.metrics.energy_j for rung in report.rungs)


def test_a_wrong_table_of_the_controllers_is_not_the_plants(table):
    slower = make_table(latency=1.5)
    trace = random_trace(1)
    truth = replay(slower, trace, ["beam"], ReplayOptions())
    misled = replay(table, trace, ["beam"], ReplayOptions(), plant_table=slower)
    # Vanilla does not look at a table: it must cost the same; beam decides otherwise.
    assert misled.vanilla.energy_j == truth.vanilla.energy_j
    assert misled.rungs[2].metrics.energy_j != truth.rungs[2].metrics.energy_j


def test_long_prompts_are_refused_dropped_or_cut_and_counted(table):
    trace = make_trace([(0, 100, 10), (1, 900, 10), (2, 50, 5)], 5)

    def at(policy):
        return replay(table, trace, [], ReplayOptions(max_model_len=500, over_limit=policy))

    with pytest.raises(TraceError, match="1 of 3 requests exceed 500 tokens"):
        at(OverLimit.ERROR)
    dropped, cut = at(OverLimit.DROP), at(OverLimit.TRUNCATE)
    assert (dropped.requests, dropped.dropped["over_max_total_tokens"]) == (2, 1)
    assert (cut.requests, cut.dropped["truncated_requests"]) == (3, 1)


@pytest.mark.parametrize(
    "options", [{"noise": 1.5}, {"noise": -0.1}, {"kv_blocks": 0}, {"host_gap_ms": -1.0}]
)
def test_options_that_make_no_sense(options):
    with pytest.raises(ReplayError):
        ReplayOptions(**options)


def test_two_tables_for_different_layouts(table):
    with pytest.raises(ReplayError, match="something else") as caught:
        replay(table, random_trace(1), [], plant_table=make_table(pp=2))
    assert "pp2" in caught.value.cause


@pytest.fixture
def files(tmp_path, monkeypatch, table):
    monkeypatch.chdir(tmp_path)
    write_table(table.columns, table.metadata, tmp_path / "small.parquet")
    save_trace(random_trace(4, requests=30), tmp_path / "day.parquet")
    return ["replay", "--table", "small.parquet", "--trace", "day.parquet"]


def test_the_command_says_it_in_a_sentence_and_writes_parquet(files, tmp_path, capsys):
    assert main([*files, "--policy", "static:800,oracle", "-o", "."]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert "of vanilla's energy" in lines[0] or "saves energy" in lines[0]
    for word in ("vanilla", "static:best", "static:800", "oracle (bound)", "wrote", "next: beam"):
        assert word in out
    assert all(len(line.rstrip()) <= 100 for line in lines if "next:" not in line)
    assert "playing static:800" in err
    requests = pl.read_parquet(tmp_path / "requests.parquet")
    assert requests.height == 3 * 30
    assert pl.read_parquet(tmp_path / "steps.parquet")["policy"].n_unique() == 3


def test_files_are_not_replaced_before_or_after_a_replay(files, tmp_path, capsys):
    (tmp_path / "steps.parquet").write_text("mine")
    assert main([*files, "--policy", "vanilla", "-o", "."]) == 2
    assert "--force" in capsys.readouterr().err
    assert (tmp_path / "steps.parquet").read_text() == "mine"
    with pytest.raises(OutputError):
        replay(make_table(), random_trace(1), [], output=tmp_path)


def test_the_command_as_json(files, capsys):
    assert main([*files, "--policy", "vanilla", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["schema"], answer["command"]) == ("beam.cli/1", "replay")
    rung = answer["data"]["rungs"][0]
    assert rung["metrics"]["policy"] == "vanilla" and rung["to_vanilla"] == 1.0
    assert rung["metrics"]["tbt"]["p99_ms"] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--policy", "fastest"], "no policy is called 'fastest'"),
        (["--slo-ttft", "1"], "1s"),
        (["--pp", "8"], "pp"),
        (["--noise", "2"], "noise"),
        (["--max-model-len", "60"], "exceed 60 tokens"),
        (["--plant-table", "none.parquet"], "none.parquet"),
        (["-o", "no/where"], "no directory no"),
        (["-o", "a-file"], "a-file is a file"),
    ],
)
def test_bad_input_is_exit_2_with_cause_or_hint(files, tmp_path, capsys, words, said):
    (tmp_path / "a-file").touch()
    assert main([*files, *words]) == 2
    err = capsys.readouterr().err
    assert "error: " in err and said in err
    assert "Traceback" not in err


def test_the_folder_for_results_is_made_once_there_are_some(files, tmp_path, capsys):
    assert main([*files, "--policy", "fastest", "-o", "new"]) == 2
    assert not (tmp_path / "new").exists()
    assert main([*files, "--policy", "vanilla", "-o", "new"]) == 0
    written = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert written == ["gaps.parquet", "requests.parquet", "steps.parquet"]


def test_an_empty_trace_is_refused(files, tmp_path, capsys):
    (tmp_path / "empty.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n")
    assert main([*files[:-1], "empty.csv"]) == 2
    assert "no requests" in capsys.readouterr().err


def test_a_column_of_energies_has_one_unit(table, tmp_path, capsys, monkeypatch):
    """A larger number is a larger energy: not 16.8 Wh beside 22.7 kJ."""
    monkeypatch.chdir(tmp_path)
    write_table(table.columns, table.metadata, tmp_path / "small.parquet")
    save_trace(make_trace([(4.0 * i, 30, 10) for i in range(22)], 90), tmp_path / "t.parquet")
    words = ["replay", "-t", "small.parquet", "--trace", "t.parquet", "--policy", "vanilla,oracle"]
    report = replay(table, make_trace([(4.0 * i, 30, 10) for i in range(22)], 90), ["oracle"])
    least_j, most_j = report.oracle_j, report.vanilla.energy_j
    assert least_j < 36e3 <= most_j  # apart they would have two units
    assert main(words) == 0
    shown = re.findall(r"([\d.,]+) (kJ|Wh) +1\.000|oracle \(bound\) +([\d.,]+) (kJ|Wh)",
                       capsys.readouterr().out)  # fmt: skip
    (vanilla, unit, _, _), (_, _, oracle, other) = shown
    assert unit == other == "Wh"
    assert float(oracle) / float(vanilla) == pytest.approx(least_j / most_j, rel=0.05)


def test_prompts_beyond_what_a_search_looks_ahead_cost_no_result(table, tmp_path):
    """A prompt of twenty million tokens: BEAM goes as fast as it can."""
    rows = [(float(i), 100, 5) for i in range(4)] + [(4.0, 20_000_000, 5)]
    site = site_of(table, table, ReplayOptions())[0]
    played = play(make_trace(rows, 5), policy_named("beam", table), site)
    m = measure(played, np.ones(5, dtype=bool))
    assert m.undecided == 0
    assert np.isfinite(played.finish_ms).all()
    assert m.goodput == pytest.approx(0.8)
    long_ms = played.steps[played.steps["prefill_tokens"] > 1000]
    assert (long_ms["clock"][2:] == table.clocks_mhz[-1]).all()


def test_decisions_that_found_nothing_are_told(table):
    report = replay(table, make_trace([(0.0, 100, 5)], 5), ["beam"])
    assert undecided_lines(report) == []
    m = replace(report.rungs[-1].metrics, undecided=3, decisions=1234)
    rungs = (*report.rungs[:-1], replace(report.rungs[-1], metrics=m))
    (said,) = undecided_lines(replace(report, rungs=rungs))
    assert said.startswith("beam: 3 of 1,234 decisions found no setting")
