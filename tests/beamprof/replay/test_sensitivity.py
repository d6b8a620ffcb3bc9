"""One assumption changed at a time: each does what it says, and the plant stays true."""

import json

import pytest
from replay_cases import make_table, random_trace

from beamprof.cli.main import main
from beamprof.replay.ladder import replay
from beamprof.replay.options import ReplayOptions
from beamprof.replay.sensitivity import VARIATIONS, Variation, biased, sensitivity
from beamprof.tables.table_file import write_table
from beamprof.traces.trace_file import save_trace


@pytest.fixture(scope="module")
def trace():
    return random_trace(3, requests=30)


def test_every_variation_differs_from_what_is_assumed(table, trace):
    found = sensitivity(table, trace, ["lowest-feasible"], ReplayOptions())
    assert [one.variation for one in found] == [one.name for one in VARIATIONS]
    first, *others = found
    report = replay(table, trace, ["lowest-feasible"], ReplayOptions())
    rung = report.rungs[-1]
    assert (first.goodput, first.to_vanilla) == (rung.metrics.goodput, rung.to_vanilla)
    assert (first.to_static, first.slowdown) == (rung.to_static, rung.slowdown)
    assert first.vanilla_goodput == report.vanilla.goodput
    changed = [one.variation for one in others if one.to_vanilla != first.to_vanilla]
    # A table of five clocks is not smoothed, and its idle rows say 45 W a GPU themselves.
    assert len(changed) >= len(others) - 2


def test_a_wrong_table_of_the_policies_leaves_vanilla_alone(table, trace):
    slow = Variation("slow", believed=lambda t: biased(t, 2.0))
    same, wrong = sensitivity(
        table, trace, ["lowest-feasible"], ReplayOptions(), variations=[Variation("same"), slow]
    )
    assert wrong.vanilla_goodput == same.vanilla_goodput
    assert wrong.to_vanilla != same.to_vanilla


def test_the_command_prints_a_table_and_json(tmp_path, monkeypatch, capsys, trace):
    monkeypatch.chdir(tmp_path)
    table = make_table()
    write_table(table.columns, table.metadata, tmp_path / "small.parquet")
    save_trace(trace, tmp_path / "day.parquet")
    words = ["replay", "-t", "small.parquet", "--trace", "day.parquet", "--sensitivity",
             "--policy", "beam-paper,static:800,oracle"]  # fmt: skip
    assert main(words) == 0
    out = capsys.readouterr().out
    for one in VARIATIONS:
        assert one.name in out
    assert main([*words, "--json"]) == 0
    outcomes = json.loads(capsys.readouterr().out)["data"]["sensitivity"]
    assert {one["policy"] for one in outcomes} == {"static:800"}
    assert len(outcomes) == len(VARIATIONS)
