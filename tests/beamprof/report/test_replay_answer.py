"""The sentence above a replay follows from the rows under it."""

from dataclasses import replace

import pytest

from beamprof.replay.saved import load_replay
from beamprof.report.replay_views import answer


@pytest.fixture(scope="module")
def report(replayed):
    return load_replay(replayed).report


def told(report, **rungs):
    """The answer if policies had kept these shares, for that much of vanilla's energy."""
    changed = []
    for rung in report.rungs:
        name = rung.metrics.policy.replace(":", "_").replace("-", "_")
        if name in rungs:
            goodput, energy = rungs[name]
            metrics = replace(rung.metrics, goodput=goodput)
            changed.append(replace(rung, metrics=metrics, to_vanilla=energy))
    return answer(replace(report, rungs=tuple(changed)))


def test_where_the_rivals_keep_next_to_nothing_the_cheapest_of_them_is_no_answer(report):
    said = told(report, vanilla=(0.007, 1.0), static_best=(0.007, 0.66), beam=(0.787, 0.67))
    assert said.startswith("beam needs 67 % of vanilla's energy")
    assert "78.7 % of requests (vanilla 0.7 %)" in said
    assert "(no static setting keeps more than 0.7 %)" in said
    assert "of the best static setting's" not in said


def test_the_cheapest_that_loses_nothing_beside_the_best_rival_is_the_answer(report):
    said = told(report, vanilla=(0.6, 1.0), static_best=(0.99, 0.8), beam=(0.94, 0.5))
    assert said.startswith("static:best needs 80 %")
    said = told(report, vanilla=(0.6, 1.0), static_best=(0.99, 0.8), beam=(0.99, 0.5))
    assert said.startswith("beam needs 50 %")


def test_where_nobody_keeps_half_no_energy_is_a_saving(report):
    said = told(report, vanilla=(0.3, 1.0), static_best=(0.4, 0.8), beam=(0.45, 0.5))
    assert said.startswith("No policy keeps this SLO")
    assert "45.0 %, by beam" in said


def test_what_saves_and_keeps_less_is_no_saving(report):
    said = told(report, vanilla=(0.9, 1.0), static_best=(0.9, 1.0), beam=(0.5, 0.5))
    assert said.startswith("Nothing saves energy and keeps as many promises")
    said = told(report, vanilla=(0.9, 1.0), static_best=(0.9, 1.0), beam=(0.5, 1.1))
    assert said.startswith("Nothing saves energy: vanilla")
