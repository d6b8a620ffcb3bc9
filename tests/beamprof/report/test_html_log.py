"""The page of a decision log says what the controller wrote; a file that is no log is refused."""

import contextlib
import io
import json
import math
import sys

import numpy as np
import pytest
from page_reading import Page

from beam_runtime.errors import BeamError
from beamprof.cli.main import main
from beamprof.report.html.log_run import KNOBS, load_log
from beamprof.report.html.number_words import percent
from beamprof.report.html_report import write_report


def test_a_run_is_what_the_controller_wrote(decision_log):
    run = load_log(decision_log)
    records = [json.loads(line) for line in decision_log.read_text("utf-8").splitlines()]
    decided = [r for r in records if r["kind"] == "decision"]
    first = [r for r in records if r["kind"] == "first_token"]
    assert run.at_s.tolist() == pytest.approx([r["at_ms"] / 1e3 for r in decided])
    assert run.first_ms.tolist() == [r["actual_ms"] for r in first]
    assert run.tokens == sum(r["since"]["tokens"] for r in decided) > 0
    (off,) = run.stretches
    assert "no steps" in off.reason and off.to_s - off.from_s > 5.0
    assert run.steered_share == pytest.approx(1 - (off.to_s - off.from_s) / run.end_s)
    # Time in force: never more than there is, and none while BEAM stood aside.
    assert run.holds_s().sum() <= run.end_s - (off.to_s - off.from_s) + 1e-9
    assert run.counts["falls"] == 1
    # Predicted and observed lie close, and no pair spans the stall.
    assert len(run.seen_tbt_ms) > 50
    assert run.seen_tbt_ms.max() < 1_000.0
    errors_ms = np.abs(run.seen_tbt_ms - run.predicted_tbt_ms)
    assert np.median(errors_ms) < 0.2 * np.median(run.seen_tbt_ms)


def test_the_log_is_told_of(page, decision_log):
    run = load_log(decision_log)
    in_time = (run.first_ms <= run.first_slo_ms).mean()
    sentence = next(words for words in page.words if words.startswith("BEAM steered for"))
    assert f"{percent(in_time, 2)} of first tokens" in sentence
    assert f"{percent(1 - run.late_tokens / run.tokens, 2)} of later tokens" in sentence
    assert "not what a meter read" in page.text
    assert len(page.of_class("off")) > 0, "time without steering is shaded"
    assert any("the engine makes no steps" in words for words in page.words)


def test_looking_on_is_not_steering(observed_log):
    run = load_log(observed_log)
    assert not run.steered.any() and run.holds_s().sum() == 0.0
    assert all(one.observed for one in run.stretches)
    # What is held against what came is the forecast of the engine's own settings.
    decisions = [json.loads(line) for line in observed_log.read_text("utf-8").splitlines()]
    own = [r["own"]["worst_tbt_ms"] for r in decisions if r["kind"] == "decision"]
    assert set(run.predicted_tbt_ms) <= set(own) and len(run.predicted_tbt_ms) > 20
    assert run.first_predicted.sum() > 20
    told = write_report([observed_log]).inputs[0]
    assert told.sentence.startswith("BEAM looked on for")
    page = Page(observed_log.with_suffix(".html").read_text("utf-8"))
    assert "what it would have set" in page.text and "Time in each knob" not in page.words
    assert "TTFT over its own SLO" in page.words


def test_forecasts_of_before_a_stall_are_not_held_against_what_came_after(decision_log):
    run = load_log(decision_log)
    (off,) = run.stretches
    inside = (run.first_s > off.from_s) & (run.first_s < off.to_s)
    assert inside.any() and not run.first_predicted[inside].any()
    late_ms = (run.first_ms - run.first_predicted_ms)[run.first_predicted]
    assert len(late_ms) > 30 and late_ms.max() < 1_000.0


def test_a_forecast_counts_while_it_is_in_force_and_fresh(tmp_path):
    def first(at_ms, name):
        return {"kind": "first_token", "at_ms": at_ms, "request_id": name, "predicted_ms": 100.0,
                "actual_ms": 120.0, "slo_ms": 500.0}  # fmt: skip

    forecast = {"worst_tbt_ms": 50.0, "horizon_ms": 500.0, "active_energy_j": 900.0,
                "idle_energy_j": 100.0}  # fmt: skip
    decision = {"kind": "decision", "knobs": dict.fromkeys(KNOBS, 1), "forecast": forecast,
                "state": {"running": 2, "waiting": 1}, "search_ms": 0.2}  # fmt: skip
    seen = {"tokens": 3, "late_tokens": 1, "worst_ms": 60.0}
    records = [
        {"kind": "start", "at_ms": 0.0, "schema": "beam.decisions/1"},
        first(500.0, "before any decision"),
        {**decision, "at_ms": 1_000.0},
        first(1_900.0, "fresh"),
        {**decision, "at_ms": 1_950.0, "since": seen},
        {"kind": "steering", "at_ms": 2_000.0, "steering": False, "reason": "fell"},
        first(2_100.0, "the engine's own settings are in force"),
        {"kind": "steering", "at_ms": 2_200.0, "steering": True, "reason": ""},
        {**decision, "at_ms": 2_300.0, "since": seen},
        first(3_400.0, "stale"),
        {"kind": "stop", "at_ms": 4_000.0, "counts": {"falls": 1}},
    ]
    log = tmp_path / "by-hand.jsonl"
    log.write_text("".join(json.dumps(record) + "\n" for record in records))
    run = load_log(log)
    assert run.first_predicted.tolist() == [False, True, False, False]
    # Only the first decision was followed by another without a turn between them.
    assert (run.predicted_tbt_ms.tolist(), run.seen_tbt_ms.tolist()) == ([50.0], [60.0])
    assert run.predicted_w.tolist() == [2000.0] * 3
    assert run.holds_s().tolist() == pytest.approx([0.95, 0.15, 1.7])
    assert (run.tokens, run.late_tokens, run.steered_share) == (6, 2, pytest.approx(0.7))


def test_a_log_may_come_down_standard_input_and_the_page_go_down_standard_output(
    decision_log, monkeypatch, capsysbinary
):
    log = io.TextIOWrapper(io.BytesIO(decision_log.read_bytes()))
    monkeypatch.setattr(sys, "stdin", log)
    assert main(["report", "-", "-o", "-"]) == 0
    out, err = capsysbinary.readouterr()
    assert out[:15].lower() == b"<!doctype html>"
    assert b"BEAM steered for" in err
    assert b"wrote" not in err


def test_before_its_first_decision_nothing_is_steered(tmp_path):
    """The search is compiled for up to a minute: the engine has its own settings meanwhile."""

    def told(*records):
        log = tmp_path / "log.jsonl"
        start = {"kind": "start", "at_ms": 0.0, "schema": "beam.decisions/1"}
        stop = {"kind": "stop", "at_ms": 10_000.0, "counts": {}}
        log.write_text("".join(f"{json.dumps(one)}\n" for one in (start, *records, stop)))
        return load_log(log)

    forecast = {"worst_tbt_ms": None, "horizon_ms": 0.0, "active_energy_j": 0.0,
                "idle_energy_j": 0.0}  # fmt: skip
    decision = {"kind": "decision", "at_ms": 6_000.0, "knobs": dict.fromkeys(KNOBS, 1),
                "forecast": forecast, "state": {"running": 0, "waiting": 0},
                "search_ms": 0.2}  # fmt: skip
    fell = {"kind": "steering", "at_ms": 2_000.0, "steering": False, "reason": "fell"}
    again = {"kind": "steering", "at_ms": 4_000.0, "steering": True, "reason": ""}

    never = told()
    assert never.steered_share == 0.0
    (off,) = never.stretches
    assert (off.from_s, off.to_s) == (0.0, 10.0)
    assert "compiled" in off.reason
    assert told(decision).steered_share == pytest.approx(0.4)
    at_once = {**decision, "at_ms": 5.0}
    assert told(at_once).steered_share == 1.0
    between = told(fell, again, decision)
    assert between.steered_share == pytest.approx(0.4)
    assert [one.reason == "fell" for one in between.stretches] == [False, True, False]


def test_a_log_that_was_full_has_a_page_of_its_own(decision_log, tmp_path):
    log = tmp_path / "decisions.jsonl.1"
    log.write_text(decision_log.read_text("utf-8").replace(
        '"kind":"start"', '"kind":"start","continued":true', 1))  # fmt: skip
    written = write_report([log])
    assert written.path.name == "decisions.jsonl.1.html"
    assert "its beginning is in an older file" in written.path.read_text("utf-8")


@pytest.mark.parametrize("odd", [None, "x", 1e300, -1, {"a": 1}, [1], math.nan, True, 10**30])
def test_no_damaged_value_is_a_bug_of_beams(decision_log, tmp_path, odd):
    """One value after the other of one record of each kind: a page, or what is wrong with it."""
    records = [json.loads(line) for line in decision_log.read_text("utf-8").splitlines()]
    request = {"kind": "request", "at_ms": records[-1]["at_ms"], "late": False, "ttft_ms": 5.0,
               "longest_gap_ms": 7.0, "generated_tokens": 3, "active_energy_j": 1.0}  # fmt: skip
    few = [*records[:60], request, *records[-1:]]
    log = tmp_path / "log.jsonl"

    def spoilt(value):
        yield odd
        if isinstance(value, dict):
            for name in value:
                yield from ({**value, name: other} for other in spoilt(value[name]))

    of_kind = {one["kind"]: at for at, one in enumerate(few)}
    for at in of_kind.values():
        for other in spoilt(few[at]):
            lines = [*few[:at], other, *few[at + 1 :]]
            log.write_text("".join(f"{json.dumps(one)}\n" for one in lines))
            with contextlib.suppress(BeamError):
                write_report([log], force=True)


def test_of_several_runs_the_last_is_told(decision_log, tmp_path):
    text = decision_log.read_text("utf-8")
    (tmp_path / "two.jsonl").write_text(text + text)
    run = load_log(tmp_path / "two.jsonl")
    assert run.runs == 2
    assert len(run.at_s) == len(load_log(decision_log).at_s)


def test_a_run_without_decisions(tmp_path):
    log = tmp_path / "idle.jsonl"
    start = {"kind": "start", "at_ms": 5.0, "schema": "beam.decisions/1", "unix_s": 0.0}
    off = {"kind": "steering", "at_ms": 5.0, "steering": False, "reason": "no usable table"}
    log.write_text(f"{json.dumps(start)}\n{json.dumps(off)}\n")
    told = write_report([log]).inputs[0]
    assert told.sentence.endswith("took no decision.")
    text = Page((tmp_path / "idle.html").read_text("utf-8")).text
    assert "no usable table" in text and "no stop record" in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds no decisions"),
        ('{"kind":"start"}\n', "no decision log of this BEAM"),
        ('{"kind":"first_token","at_ms":9.5}\n', "its beginning is cut off"),
        ('{"kind":"start","schema":"beam.decisions/1"}\n', "does not write"),
        (
            '{"kind":"start","at_ms":0,"schema":"beam.decisions/1"}\n'
            '{"kind":"decision","at_ms":"soon"}\n',
            "does not write",
        ),
        (
            '{"kind":"start","at_ms":0,"schema":"beam.decisions/1"}\n'
            f'{{"kind":"decision","at_ms":1{"0" * 400}}}\n',
            "does not write",
        ),
        ("nonsense\n{}\n", "is not JSON"),
    ],
)
def test_logs_that_are_none(tmp_path, capsys, content, said):
    (tmp_path / "log.jsonl").write_text(content)
    assert main(["report", str(tmp_path / "log.jsonl")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "log.html").exists()
