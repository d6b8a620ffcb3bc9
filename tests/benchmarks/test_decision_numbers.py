"""The search against every candidate, on states of the published trace."""

import random
from dataclasses import replace

import pytest

from beam_runtime.types import Slo

pytest.importorskip("numba", reason="the search is compiled by numba")
decision = pytest.importorskip("decision", reason="benchmarks/ is not on the path")

pytestmark = pytest.mark.skipif(
    not decision.DATA.is_dir(), reason="the measurements in ../shared/data are absent"
)


# Of the 1,000, those that an earlier search got wrong: it paid up to twice the energy, or put up to
# 4.5 requests more at risk than need be.
ONCE_WRONG = (125, 401, 452, 517, 834, 887, 946, 996, 997)


@pytest.fixture(scope="module")
def search():
    cost = decision.StepCost.from_table(decision.published_table())
    policy = decision.Policy(chunk_tokens=decision.CHUNKS)
    return decision.Search(cost, decision.LIMITS, policy=policy, idle_power_w=decision.IDLE_POWER_W)


def test_regret_on_states_of_the_trace(search):
    found = decision.optimality(search, decision.trace_states(100, decision.lengths()))
    assert found.kept > 60
    assert found.missed == 0
    assert found.mean_regret <= 0.002
    assert found.worst_regret <= 0.01
    # In requests, at a TTFT margin of 20 ms: what was 0.05 of an SLO's second is 1.25 of these.
    assert found.worst_violation <= 0.5


def test_states_that_a_search_once_got_wrong(search):
    states = enumerate(decision.trace_states(max(ONCE_WRONG) + 1, decision.lengths()))
    found = decision.optimality(search, (one for seed, one in states if seed in ONCE_WRONG))
    assert found.states == len(ONCE_WRONG)
    assert found.missed == 0
    assert found.worst_regret <= 0.025
    assert found.worst_violation <= 0.1


def by_tpot(seed, state):
    """The same with 120 ms a token on average, each stream a little behind or ahead of that."""
    rng, slo = random.Random(seed), Slo(1000.0, tpot_ms=120.0)

    def begun(one):
        first_ms = one.last_token_ms - (one.generated_tokens - 1) * 120.0 * rng.uniform(0.9, 1.02)
        return replace(one, slo=slo, first_token_ms=first_ms)

    waiting = tuple(replace(one, slo=slo) for one in state.waiting)
    return replace(state, running=tuple(map(begun, state.running)), waiting=waiting)


def test_between_a_clock_that_missed_and_one_that_kept(search):
    """Decodes that are behind: what an earlier search paid a quarter too much for."""
    states = enumerate(decision.trace_states(182, decision.lengths()))
    behind = (by_tpot(seed, state) for seed, state in states if seed in (176, 181))
    found = decision.optimality(search, behind)
    assert found.kept == 2
    assert found.worst_regret <= 0.04
