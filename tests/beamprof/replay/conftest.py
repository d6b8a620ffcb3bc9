"""The small site that replays are tested on, and the files and the place of small studies."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import EngineLimits, Slo
from beamprof.replay import study as study_module
from beamprof.replay.site import Site
from beamprof.traces.trace_file import save_trace

sys.path.insert(0, str(Path(__file__).parent))  # for replay_cases and study_cases
from replay_cases import make_table, random_trace
from study_cases import Here, put_table


@pytest.fixture(scope="session")
def table() -> PerfTable:
    return make_table()


@pytest.fixture(scope="session")
def cost(table) -> StepCost:
    return StepCost.from_table(table)


@pytest.fixture(scope="session")
def site(cost) -> Site:
    limits = EngineLimits(pp=4, host_gap_ms=2.0, transfer_ms=0.5, max_num_seqs=32)
    return Site(cost, cost, limits, 1 << 20, Slo(1000.0, 150.0))


@pytest.fixture(scope="session")
def tight(site) -> Site:
    """Hardly any KV memory: requests are preempted."""
    return replace(site, kv_blocks=60)


@pytest.fixture
def here(monkeypatch):
    place = Here()
    monkeypatch.setattr(study_module, "open_place", lambda on, workers: place)
    return place


@pytest.fixture
def files(tmp_path):
    """A table and two traces."""
    put_table(tmp_path / "t.parquet")
    save_trace(random_trace(1), tmp_path / "one.parquet")
    save_trace(random_trace(2, rate=8.0), tmp_path / "two.parquet")
    return tmp_path
