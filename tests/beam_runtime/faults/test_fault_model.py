"""Point 6: the table is not the engine."""

from dataclasses import replace
from pathlib import Path

import pytest
from fault_bench import QUICK, Bench, content, requests

from beam_runtime.control.calibration_rules import CalibrationRules
from beam_runtime.control.controller import Controller
from beam_runtime.control.decision_log import DecisionLog, read_log
from beam_runtime.types import Decision, Snapshot


def test_steps_30_percent_slower_are_learnt(bench: Bench) -> None:
    margins: list[float] = []

    def note(state: Snapshot) -> Decision:
        margins.append(state.correction.tbt_margin_ms)
        return content(state)

    bench.run(
        requests(120, every_ms=60.0, tokens=60),
        search=note,
        engine={"slowdown": lambda now_ms: 1.3},
    )
    assert max(margins) > 1.3 * margins[0], "margins widen at first"
    assert bench.after.correction.decode_scale == pytest.approx(1.3, rel=0.03)
    assert bench.after.steering, "and it never stopped"


def test_the_real_search_keeps_promises_on_a_slower_engine(bench: Bench) -> None:
    clocks: list[int] = []

    def watch(controller: Controller, now_ms: float) -> None:
        clocks.append(controller.orders.knobs.clock_mhz)

    ledger = bench.run(
        requests(60, every_ms=200.0, tokens=80),
        search=None,
        engine={"slowdown": lambda now_ms: 1.3 if now_ms > 3000.0 else 1.0},
        meanwhile=watch,
    )
    assert bench.after.counts.falls == 0
    assert bench.after.correction.decode_scale > 1.15
    assert ledger.late_ttft == 0
    assert ledger.late_tbt / len(ledger.tbt_ms) < 0.02, "but for the moment it slowed down"
    assert min(clocks) < 1410, "and it saved energy meanwhile"


def test_a_table_far_off_is_not_used_until_it_is_right_again(bench: Bench) -> None:
    reasons: list[str] = []

    def watch(controller: Controller, now_ms: float) -> None:
        reason = controller.status.reason
        if not reasons or reasons[-1] != reason:
            reasons.append(reason)

    bench.run(
        requests(150, every_ms=80.0, tokens=60),
        search=content,
        engine={"slowdown": lambda now_ms: 3.0 if now_ms < 4000.0 else 1.0},
        meanwhile=watch,
    )
    assert [reason[:31] for reason in reasons] == ["", "steps are too far from the tabl", ""]
    assert bench.after.counts.falls == 1


def test_drift_is_said_once(bench: Bench, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "log.jsonl")
    bench.run(
        requests(120, every_ms=60.0, tokens=60),
        search=content,
        engine={"slowdown": lambda now_ms: 1.25},
        rules=replace(QUICK, calibration=CalibrationRules(drift_steps=16)),
        log=log,
    )
    kinds = [record["step"] for record in read_log(log.path) if record["kind"] == "drift"]
    assert sorted(kinds) == ["decode-only", "prefill-carrying"]
    assert caplog.text.count("drift: ") == 2
