"""A replay and a controller's log, small and real, to report on."""

import sys
from pathlib import Path

import pytest

from beam_runtime.controller import Controller
from beam_runtime.cost import StepCost
from beam_runtime.decisions import DecisionLog
from beam_runtime.engines.fake import FakeEngine, FakeRequest
from beam_runtime.table import PerfTable
from beam_runtime.types import EngineLimits, Slo
from beamprof.replay.ladder import ReplayOptions, replay

sys.path.insert(0, str(Path(__file__).parent))  # for page_reading
sys.path.insert(0, str(Path(__file__).parent.parent / "replay"))  # for replay_cases
from replay_cases import make_table, random_trace


@pytest.fixture(scope="session")
def replayed(tmp_path_factory) -> Path:
    """The folder of a replay with late requests and late tokens."""
    folder = tmp_path_factory.mktemp("replayed")
    replay(
        make_table(), random_trace(5, requests=80, rate=8.0), ["beam-paper", "beam", "oracle"],
        ReplayOptions(slo=Slo(250.0, 90.0), noise=0.03, seed=7),
        output=folder, command="beam replay --table t.parquet --trace x.csv",
    )  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def decision_log(small_table: PerfTable, tmp_path_factory) -> Path:
    """A controller's log of half a minute, with a stall in the middle that makes it fall back."""
    path = tmp_path_factory.mktemp("log") / "toy.jsonl"
    cost = StepCost.from_table(small_table)
    limits = EngineLimits(pp=4, max_num_seqs=64, max_model_len=8192, host_gap_ms=2.0)
    slo = Slo(500.0, 120.0)
    requests = [
        FakeRequest(f"r{n}", 400.0 * n, 200 + 60 * (n % 7), 20 + n % 9, slo) for n in range(70)
    ]
    engine = FakeEngine(cost, limits, requests, stall_ms=(9_000.0, 16_000.0))
    with Controller(
        cost, limits, threads=False, now_ms=lambda: engine.now_ms, log=DecisionLog(path)
    ) as beam:
        engine.run(beam)
        assert beam.status.counts.falls >= 1
    return path
