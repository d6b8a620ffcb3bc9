"""Single requests of a decision log: goodput first, and joules."""

import json

import pytest

from beamprof.report.html.log_part import log_part, log_window
from beamprof.report.html.log_requests import done_requests, requests_section
from beamprof.report.html.log_run import load_log


def told(**changes):
    return {
        "slo_class": None, "prompt_tokens": 100, "generated_tokens": 10, "ttft_ms": 50.0,
        "tpot_ms": 20.0, "longest_gap_ms": 30.0, "late": False, "active_energy_j": 4.0,
    } | changes  # fmt: skip


def test_promises_and_joules_by_class():
    done = done_requests([
        told(slo_class="chat"),
        told(slo_class="chat", late=True, ttft_ms=150.0, active_energy_j=8.0),
        told(slo_class="batch", generated_tokens=90, active_energy_j=18.0, longest_gap_ms=None),
        told(slo_class="batch", ttft_ms=None, late=True, generated_tokens=10, active_energy_j=10.0),
    ])  # fmt: skip
    section = requests_section(done)
    assert [row[:3] for row in section.body.rows] == [
        ("all", "4", "50.0 %"), ("batch", "2", "50.0 %"), ("chat", "2", "50.0 %"),
    ]  # fmt: skip
    by_class = {
        row[0]: dict(zip(section.body.heads, row, strict=True)) for row in section.body.rows
    }
    assert by_class["all"]["J/request mean"] == "10.0"
    assert by_class["chat"]["J/request mean"] == "6.00"
    assert by_class["batch"]["J/token"] == "0.280"
    assert by_class["chat"]["TTFT p50 ms"] == "100"
    assert by_class["batch"]["longest gap p50 ms"] == "30"


def test_one_class_is_one_row_and_none_is_no_section():
    assert len(requests_section(done_requests([told(), told()])).body.rows) == 1
    assert requests_section(()) is None


def test_the_page_begins_with_them(decision_log, tmp_path):
    lines = decision_log.read_text("utf-8").splitlines()
    at_ms = json.loads(lines[-1])["at_ms"]
    extra = [
        json.dumps({"kind": "request", "at_ms": at_ms, "request_id": str(n), **told(late=n == 0)})
        for n in range(4)
    ]
    path = tmp_path / "with.jsonl"
    path.write_text("\n".join([*lines[:-1], *extra, lines[-1]]) + "\n")
    run = load_log(path)
    part = log_part(run, log_window(run))
    assert part.sections[0].title == "Requests"
    assert "75.0 % of 4 requests kept every promise, at 4.00 J each" in part.sentence
    bare = load_log(decision_log)
    assert log_part(bare, log_window(bare)).sections[0].title == "Predicted and observed"
    with pytest.raises(Exception, match="does not write"):
        path.write_text("\n".join([lines[0], '{"kind": "request", "at_ms": 1.0}']))
        load_log(path)
