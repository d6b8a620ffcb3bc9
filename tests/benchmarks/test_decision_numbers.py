"""The search against every candidate, on states of the published trace; README tells of 1,000."""

import pytest

pytest.importorskip("numba", reason="the search is compiled by numba")
decision = pytest.importorskip("decision", reason="benchmarks/ is not on the path")

pytestmark = pytest.mark.skipif(
    not decision.DATA.is_dir(), reason="the measurements in ../shared/data are absent"
)


def test_regret_on_states_of_the_trace():
    cost = decision.StepCost.from_table(decision.published_table())
    policy = decision.Policy(chunk_tokens=decision.CHUNKS)
    search = decision.Search(
        cost, decision.LIMITS, policy=policy, idle_power_w=decision.IDLE_POWER_W
    )
    found = decision.optimality(search, decision.trace_states(100, decision.lengths()))
    assert found.kept > 60
    assert found.missed == 0
    assert found.mean_regret <= 0.002
    assert found.worst_regret <= 0.01
    # In requests, at a TTFT margin of 20 ms: what was 0.05 of an SLO's second is 1.25 of these.
    assert found.worst_violation <= 0.5
