"""A replay and a controller's log, small and real, to report on, and the page of both."""

import sys
from pathlib import Path

import pytest

from beam_runtime.control.controller import Controller
from beam_runtime.control.decision_log import DecisionLog
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.step_cost import StepCost
from beam_runtime.testing.engine import FakeEngine, FakeRequest
from beam_runtime.types import EngineLimits, Follows, Slo
from beamprof.replay.ladder import replay
from beamprof.replay.options import ReplayOptions
from beamprof.report.html_report import write_report

sys.path.insert(0, str(Path(__file__).parent))  # for page_reading
sys.path.insert(0, str(Path(__file__).parent.parent / "replay"))  # for replay_cases
from page_reading import Page
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


def serve(table: PerfTable, path: Path, slos: tuple[Slo, ...], stall_ms, **options) -> None:
    """Half a minute of a paper engine under a real controller that keeps a log."""
    cost = StepCost.from_table(table)
    limits = EngineLimits(pp=4, max_num_seqs=64, max_model_len=8192, host_gap_ms=2.0)
    requests = [
        FakeRequest(f"r{n}", 400.0 * n, 200 + 60 * (n % 7), 20 + n % 9, slos[n % len(slos)])
        for n in range(70)
    ]
    engine = FakeEngine(cost, limits, requests, stall_ms=stall_ms)
    with Controller(
        cost,
        limits,
        follows=Follows.STEPS,
        threads=False,
        now_ms=lambda: engine.now_ms,
        log=DecisionLog(path),
        **options,
    ) as beam:
        engine.run(beam)


@pytest.fixture(scope="session")
def decision_log(small_table: PerfTable, tmp_path_factory) -> Path:
    """A log with a stall in the middle that makes the controller fall back."""
    path = tmp_path_factory.mktemp("log") / "toy.jsonl"
    serve(small_table, path, (Slo(500.0, 120.0),), (9_000.0, 16_000.0))
    return path


@pytest.fixture(scope="session")
def observed_log(small_table: PerfTable, tmp_path_factory) -> Path:
    """A log of a controller that only looks on, at requests of two classes."""
    path = tmp_path_factory.mktemp("log") / "looked-on.jsonl"
    never_ms = (float("inf"), float("inf"))
    serve(small_table, path, (Slo(400.0, 120.0), Slo(2000.0, 300.0)), never_ms, observing=True)
    return path


@pytest.fixture(scope="session")
def both(replayed, decision_log, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    return write_report([replayed, decision_log], path)


@pytest.fixture(scope="session")
def page(both):
    return Page(both.path.read_text("utf-8"))
