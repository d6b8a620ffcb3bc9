"""An engine that has not served yet may compile for minutes in its first step: that is no stall."""

import json
from pathlib import Path

import pytest

from beam_runtime.control.controller import Controller
from beam_runtime.control.decision_log import DecisionLog, read_log
from beam_runtime.table.perf_table import PerfTable
from beam_runtime.table.step_cost import StepCost
from beam_runtime.testing.engine import FakeEngine, FakeRequest
from beam_runtime.types import EngineLimits, Slo


def serve(
    table: PerfTable, path: Path, stall_ms: tuple[float, float]
) -> tuple[list[str], float, float]:
    """Reasons why BEAM did not steer, the most that a step was off, and the prefill scale."""
    cost = StepCost.from_table(table)
    limits = EngineLimits(pp=4, max_num_seqs=64, max_model_len=8192, host_gap_ms=2.0)
    requests = [FakeRequest(f"r{n}", 400.0 * n, 300, 20, Slo(500.0, 120.0)) for n in range(150)]
    engine = FakeEngine(cost, limits, requests, stall_ms=stall_ms)
    with Controller(
        cost, limits, threads=False, now_ms=lambda: engine.now_ms, log=DecisionLog(path)
    ) as beam:
        engine.run(beam)
        correction = beam.orders.correction
    records = list(read_log(path))
    reasons = [
        record["reason"] for record in records if record["kind"] == "steering"
        if not record["steering"]
    ]  # fmt: skip
    drifts = [record["ratio"] for record in records if record["kind"] == "drift"]
    return reasons, max(drifts, default=1.0), correction.prefill_scale


def stalls(reasons: list[str]) -> list[str]:
    return [reason for reason in reasons if "none came back" in json.dumps(reason)]


def test_minutes_before_the_first_step_is_back_are_no_stall(
    small_table: PerfTable, tmp_path: Path
) -> None:
    reasons, drift, scale = serve(small_table, tmp_path / "cold.jsonl", (0.0, 40_000.0))
    assert stalls(reasons) == []
    assert drift < 1.2, "and no measure of the table"
    _, _, usual = serve(small_table, tmp_path / "warm.jsonl", (float("inf"), float("inf")))
    assert scale == pytest.approx(usual, rel=0.05)


def test_the_same_once_it_has_served_is_a_stall(small_table: PerfTable, tmp_path: Path) -> None:
    reasons, _, _ = serve(small_table, tmp_path / "stall.jsonl", (9_000.0, 20_000.0))
    assert len(stalls(reasons)) >= 1
