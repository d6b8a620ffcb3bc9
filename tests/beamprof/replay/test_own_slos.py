"""Requests that bring promises of their own are served and counted by them."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from replay_cases import make_trace, random_trace

from beam_runtime.emulator.promises import E2E, GAP, TPOT
from beam_runtime.types import Slo
from beamprof.cli.main import main
from beamprof.errors import ReplayError, SweepError
from beamprof.replay.goodput import promises
from beamprof.replay.ladder import replay
from beamprof.replay.metrics import measure, servable_in_time
from beamprof.replay.options import ReplayOptions
from beamprof.replay.plant import play
from beamprof.replay.policies.registry import policy_named
from beamprof.replay.promised import own_slos, promised_slos
from beamprof.replay.results import request_frame
from beamprof.replay.saved import load_replay
from beamprof.report.replay_views import limits_met
from beamprof.slo import parse_classes
from beamprof.tables.table_file import write_table


def with_columns(trace, **columns):
    frame = trace.frame.with_columns(
        **{name: pl.Series(values, dtype=pl.Float64) for name, values in columns.items()}
    )
    return trace.transformed(frame, "slo", {}, {})


def test_a_requests_own_promise_stands_in_for_the_replays():
    trace = with_columns(
        make_trace([(i, 10, 5) for i in range(4)], 5),
        slo_ttft_ms=[None, 50.0, None, 70.0],
        slo_tpot_ms=[None, None, 30.0, None],
        slo_e2e_ms=[None, None, None, 900.0],
    )
    rows = promised_slos(trace, Slo(1000.0, 200.0, tbt_share=0.9))
    assert rows["ttft_slo_ms"].tolist() == [1000.0, 50.0, 1000.0, 70.0]
    assert rows["stream_slo_ms"].tolist() == [200.0, 200.0, 30.0, 900.0]
    assert rows["slo_kind"].tolist() == [GAP, GAP, TPOT, E2E]
    assert rows["tbt_share"].tolist() == [0.9, 0.9, 1.0, 1.0]  # of gaps alone
    assert own_slos(trace) == 3
    assert own_slos(make_trace([(0, 1, 1)], 1)) == 0


def test_two_promises_of_one_stream_are_refused(site):
    trace = with_columns(
        make_trace([(0, 10, 5), (1, 10, 5)], 5),
        slo_tbt_ms=[None, 50.0],
        slo_e2e_ms=[900.0, 900.0],
    )
    with pytest.raises(ReplayError, match="one thing of its stream") as refused:
        promised_slos(trace, site.slo)
    assert refused.value.cause == "request 1 brings slo_e2e_ms and slo_tbt_ms"


def test_goodput_counts_each_request_by_its_own(table, site):
    trace = random_trace(5, requests=80, rate=8.0)
    random = np.random.default_rng(1)
    ttft_ms = random.choice([60.0, 150.0, 1e4], 80)
    tbt_ms = np.where(random.random(80) < 0.5, 50.0, 500.0)
    own = with_columns(trace, slo_ttft_ms=ttft_ms.tolist(), slo_tbt_ms=tbt_ms.tolist())
    where = replace(site, noise=0.05)
    played = play(own, policy_named("static:1000", table), where)
    kept = promises(played)
    assert kept.first.tolist() == (played.first_token_ms - played.arrival_ms <= ttft_ms).tolist()
    worst_ms = np.zeros(80)
    np.maximum.at(worst_ms, played.tokens["request"], played.tokens["gap_ms"])
    assert kept.stream.tolist() == (worst_ms <= tbt_ms).tolist()
    assert 0 < kept.both.sum() < 80
    metrics = measure(played, servable_in_time(own, where, 512))
    assert metrics.goodput == kept.goodput
    late = played.tokens["gap_ms"] > tbt_ms[played.tokens["request"]]
    assert metrics.attainment.tbt == pytest.approx(1 - late.mean())
    assert request_frame(played, own.frame["request_id"])["late_tokens"].sum() == late.sum()


def test_who_could_be_served_in_time_is_asked_by_request(site):
    rows = [(float(i), 3000, 1) for i in range(2)]
    own = with_columns(make_trace(rows, 5), slo_ttft_ms=[200.0, None])
    assert servable_in_time(own, replace(site, slo=Slo(5000.0)), 512).tolist() == [False, True]


def test_beam_serves_the_strict_as_strictly_as_they_ask(table, site):
    """Half of the requests allow 60 ms a token, half 400: the first keep theirs, too."""
    trace = random_trace(7, requests=60, rate=2.0)
    strict = np.arange(60) % 2 == 0
    own = with_columns(trace, slo_tbt_ms=np.where(strict, 60.0, 400.0).tolist())
    where = replace(site, slo=Slo(2000.0, 400.0))
    loose = play(trace, policy_named("beam", table), where)
    played = play(own, policy_named("beam", table), where)
    assert promises(played).both[strict].mean() > 0.9
    # Played for 400 ms alone, hardly one of them would have been kept.
    assert promises(loose, promised_slos(own, where.slo)).both[strict].mean() < 0.3


def test_the_report_says_how_many(table):
    trace = random_trace(1)
    own = with_columns(trace, slo_ttft_ms=[100.0] * 30 + [None] * 10)
    assert "30 of 40 requests with SLOs of their own" in replay(table, own, []).assumed
    assert not any("of their own" in words for words in replay(table, trace, []).assumed)


def classed(trace, names):
    frame = trace.frame.with_columns(pl.Series("slo_class", names, dtype=pl.String))
    return trace.transformed(frame, "classes", {}, {})


def test_a_class_stands_between_the_replays_promise_and_a_requests_own():
    trace = with_columns(make_trace([(i, 10, 5) for i in range(5)], 5),
                         slo_ttft_ms=[None, 50.0, None, None, 60.0])  # fmt: skip
    trace = classed(trace, ["batch", "batch", "chat", None, None])
    classes = {"batch": Slo(9000.0, 500.0, tbt_share=0.9), "chat": Slo(700.0, tpot_ms=80.0)}
    rows = promised_slos(trace, Slo(1000.0, 200.0), classes)
    assert rows["ttft_slo_ms"].tolist() == [9000.0, 50.0, 700.0, 1000.0, 60.0]
    assert rows["stream_slo_ms"].tolist() == [500.0, 500.0, 80.0, 200.0, 200.0]
    assert rows["slo_kind"].tolist() == [GAP, GAP, TPOT, GAP, GAP]
    assert rows["tbt_share"].tolist() == [0.9, 0.9, 1.0, 1.0, 1.0]
    # Without an SLO for it a class is promised what all are.
    alone = promised_slos(trace, Slo(1000.0, 200.0), {"chat": classes["chat"]})
    assert alone["ttft_slo_ms"].tolist() == [1000.0, 50.0, 700.0, 1000.0, 60.0]


def test_a_limit_of_all_or_of_a_class_makes_streams_faster(table, site):
    trace = classed(random_trace(7, requests=60, rate=2.0), ["chat"] * 60)
    where = replace(site, slo=Slo(2000.0, 400.0))
    limited = Slo(2000.0, 400.0, max_slowdown=1.5)
    free = play(trace, policy_named("beam", table), where)
    of_all = play(trace, policy_named("beam", table), replace(where, slo=limited))
    of_class = play(trace, policy_named("beam", table), replace(where, classes={"chat": limited}))
    assert of_all.tokens["gap_ms"].mean() < 0.6 * free.tokens["gap_ms"].mean()
    assert of_class.tokens["gap_ms"].mean() == of_all.tokens["gap_ms"].mean()
    assert promises(of_all).goodput >= promises(free).goodput
    assert of_all.energy_j > free.energy_j


def test_a_tight_gap_that_few_are_promised_costs_the_others_no_first_token(table, site):
    """Streams that have lost theirs cut chunks no more: they did for as long as they lasted."""
    names = ["chat" if number % 10 == 0 else "batch" for number in range(200)]
    trace = classed(random_trace(3, requests=200, rate=8.0), names)
    where = replace(
        site, slo=Slo(1000.0, 200.0), noise=0.03, classes={"chat": Slo(1000.0, 60.0)}
    )  # fmt: skip

    def late(policy):
        played = play(trace, policy_named(policy, table), where)
        waited_ms = played.first_token_ms - played.arrival_ms
        return int((waited_ms[np.array(names) == "batch"] > 1000.0).sum())

    assert late("beam") <= late("vanilla") + 2


def test_a_limit_is_said_with_what_came_of_it(table, tmp_path, capsys):
    path, rows = tmp_path / "t.parquet", random_trace(1)
    write_table(table.columns, table.metadata, path)
    limited = Slo(least_tokens_per_s=1e5, max_slowdown=1.5)
    report = replay(table, rows, ["beam"], ReplayOptions(slo=limited))
    (words,) = limits_met(report)
    assert "at least 100000 tokens/s, at most 1.5 times as slow. All requests: beam took" in words
    assert f"{report.rungs[-1].slowdown:.2f} times vanilla's mean request time" in words
    assert any("a request alone gets" in text for text in report.assumed)
    free = replay(table, rows, ["beam"], ReplayOptions())
    assert limits_met(free) == ()
    assert report.rungs[-1].slowdown < free.rungs[-1].slowdown


def test_each_class_has_its_goodput(table):
    trace = random_trace(5, requests=60, rate=8.0)
    trace = classed(trace, [("batch", "chat", None)[i % 3] for i in range(60)])
    options = ReplayOptions(noise=0.0, classes=(("batch", Slo(1e-3, 200.0)),))
    report = replay(table, trace, ["vanilla"], options)
    found = {one.name: one for one in report.by_class}
    assert {name: one.requests for name, one in found.items()} == {"batch": 20, "chat": 20, "": 20}
    assert found["batch"].goodput["vanilla"] == 0.0, "nobody answers in a microsecond"
    assert found["chat"].slo == options.slo
    shares = [one.goodput["vanilla"] * one.requests for one in found.values()]
    assert sum(shares) / 60 == pytest.approx(report.vanilla.goodput)


def test_static_best_is_the_best_for_the_classes_too(table):
    """Loose promises for all of a class may be kept at a lower clock."""
    trace = classed(random_trace(5, requests=60, rate=8.0), ["batch"] * 60)
    slo, classes = Slo(300.0, 150.0), (("batch", Slo(1e5, 1e4)),)
    tight = replay(table, trace, ["vanilla"], ReplayOptions(slo=slo))
    loose = replay(table, trace, ["vanilla"], ReplayOptions(slo=slo, classes=classes))
    assert loose.static.metrics.energy_j < tight.static.metrics.energy_j
    assert tight.static.metrics.goodput > 0.99
    assert loose.static.metrics.goodput == 1.0


@pytest.mark.parametrize("has_column", [True, False])
def test_an_slo_for_a_class_that_nobody_is_of_is_refused(table, has_column):
    trace = make_trace([(0, 10, 5)], 5)
    trace = classed(trace, ["chat"]) if has_column else trace
    options = ReplayOptions(classes=(("caht", Slo()),))
    with pytest.raises(ReplayError, match="of class caht") as refused:
        replay(table, trace, ["vanilla"], options)
    assert ("chat" in refused.value.cause) is has_column


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (["batch"], "NAME=TTFT/TBT"),
        (["=1s/200ms"], "NAME=TTFT/TBT"),
        (["1s/tpot=100ms"], "NAME=TTFT/TBT"),
        (["a=1s/200ms", "a=2s/200ms"], "two SLOs"),
        (["a=1s"], "TTFT/TBT"),
        (["a=1/200ms"], "no unit"),
    ],
)
def test_what_is_no_slo_of_a_class_is_refused(values, words):
    with pytest.raises(SweepError, match=words):
        parse_classes(values, "--slo-class")


def test_classes_are_read_and_shown_on_the_command_line(tmp_path, monkeypatch, capsys, table):
    monkeypatch.chdir(tmp_path)
    write_table(table.columns, table.metadata, tmp_path / "t.parquet")
    rows = [f"{i},{200 + i},{5},{'batch' if i % 2 else ''}" for i in range(10)]
    text = "arrival_s,input_tokens,output_tokens,slo_class\n" + "\n".join(rows) + "\n"
    (tmp_path / "x.csv").write_text(text)
    words = ["replay", "-t", "t.parquet", "--trace", "x.csv", "--policy", "vanilla"]
    assert main([*words, "--slo-class", "batch=10s/tpot=500ms", "-o", "run"]) == 0
    out = capsys.readouterr().out
    assert "10s/tpot=500ms" in out
    assert "5 requests" in out
    assert main(["report", "run", "--json"]) == 0, "what was written is read again"
    found = load_replay(tmp_path / "run").report.by_class
    assert [(one.name, one.requests) for one in found] == [("", 5), ("batch", 5)]
    page = (tmp_path / "run/report.html").read_text("utf-8")
    assert "By SLO class" in page
    assert "batch 10s/tpot=500ms (5)" in page
