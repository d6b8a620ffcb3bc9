"""The page says the replay's numbers, loads nothing, and is written whole or not at all."""

import json
import re
import shutil
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from page_reading import Page

from beamprof.cli.main import main
from beamprof.errors import OutputError, ReportError
from beamprof.replay.saved import load_replay
from beamprof.report.html.burst import Window, busiest
from beamprof.report.html.late_shares import Sample, late_shares
from beamprof.report.html.number_words import percent, points, significant
from beamprof.report.html.render import render
from beamprof.report.html.replay_part import replay_part
from beamprof.report.html_report import write_report
from beamprof.units import format_duration, format_energy


def test_it_is_well_formed_and_loads_nothing(both, page):
    assert page.faults == []
    assert page.loads == ["data:,"], "the empty icon that keeps browsers from asking for one"
    assert "url(" not in page.style and "@import" not in page.style
    assert page.count("script") == 0
    assert not [name for _, found in page.tags for name in found if name.startswith("on")]
    policy = next(t["content"] for tag, t in page.tags if t.get("http-equiv"))
    assert policy.startswith("default-src 'none'")
    assert both.size_bytes == both.path.stat().st_size


def test_every_figure_is_there(page, replayed):
    policies = [rung.metrics.policy for rung in load_replay(replayed).report.rungs]
    for title in (
        "Goodput, and what readers get", "Energy", "Latency against its promises", "Promises kept",
        "Where the energy goes",
        "Time in each knob", "Where this comes from", "Predicted and observed",
        "Errors of the forecast", "Decisions over time", "When BEAM did not steer, and anomalies",
    ):  # fmt: skip
        assert title in page.words
    for policy in policies:
        assert page.words.count(policy) >= 4, "bars, curves, table, timeline"
    assert any(words.startswith("The busiest stretch") for words in page.words)
    labels = [found["aria-label"] for found in page.of_class("plot")]
    assert all(labels)
    for strip in ("clock, MHz", "chunk, tokens", "arriving, requests/s", "computed, tokens/s"):
        assert strip in labels


def test_energy_is_the_replays_in_words_and_in_lengths(page, replayed):
    report = load_replay(replayed).report
    longest_j = max(rung.metrics.energy_j for rung in report.rungs)
    for rung in report.rungs:
        m = rung.metrics
        for words in (
            format_energy(m.energy_j, longest_j),
            f"{rung.to_vanilla:.3f} of vanilla",
            f"{rung.to_static:.3f} of static",
            f"{significant(m.j_per_token)} J/token",
            f"{significant(m.j_per_request)} J/request",
        ):
            assert words in page.words
    widths = [float(found["width"].rstrip("%")) for found in page.of_class("solid")]
    kept = [100 * rung.metrics.goodput for rung in report.rungs]
    assert widths[: len(kept)] == pytest.approx(kept, rel=1e-3), "goodput first"
    widths = widths[len(kept) :]
    wanted = [100 * rung.metrics.energy_j / longest_j for rung in report.rungs]
    assert widths[: len(wanted)] == pytest.approx(wanted, rel=1e-3)
    bound = page.of_class("bound")[0]
    assert float(bound["width"].rstrip("%")) == pytest.approx(
        100 * report.oracle_j / longest_j, rel=1e-3
    )
    parts = [
        float(found["width"].rstrip("%")) / 100 * longest_j for found in page.of_class("prefill")
        if "width" in found
    ]  # fmt: skip
    assert parts == pytest.approx([r.metrics.prefill_energy_j for r in report.rungs], rel=1e-3)


def test_attainment_is_the_replays(page, replayed):
    for rung in load_replay(replayed).report.rungs:
        kept = rung.metrics.attainment
        at = page.words.index("Promises kept")
        row = page.words[page.words.index(rung.metrics.policy, at) :][:13]
        assert row[1] == percent(kept.ttft, 2) and row[3] == percent(kept.stream, 2)
        assert row[7] == f"{rung.metrics.ttft.p99_ms:,.0f}"


def test_goodput_and_what_it_costs_the_reader_stand_beside_energy(page, replayed):
    report = load_replay(replayed).report
    at = page.words.index("Goodput, and what readers get")
    assert at < page.words.index("Energy")
    for rung in report.rungs:
        m = rung.metrics
        row = page.words[page.words.index(m.policy, at) :][:6]
        assert row[1:] == [
            f"{percent(m.goodput)} kept", f"{points(rung.goodput_points)} points",
            f"request {format_duration(m.request.mean_ms / 1e3)}",
            f"p99 {format_duration(m.request.p99_ms / 1e3)}",
            f"{m.tokens_per_s_user:.1f} tokens/s",
        ]  # fmt: skip


def test_what_it_stands_on_is_said(page, replayed):
    record = load_replay(replayed).record
    assert "No server ran" in page.text and "a table measured on GPUs" in page.text
    assert any(f"rows {record.table.rows_sha256[:12]}" in words for words in page.words)
    assert any("3 % step noise, seed 7" in words for words in page.words)
    assert "beam replay --table t.parquet --trace x.csv" in page.words
    assert any(words.startswith("by hand (test)") for words in page.words)
    assert any(record.made in words and "beamprof" in words for words in page.words)


@pytest.mark.parametrize("source", ["modelled", "imported"])
def test_a_table_that_was_not_measured_is_not_called_so(replayed, source):
    saved = load_replay(replayed)
    table = replace(saved.record.plant_table, sources=(source,))
    saved = replace(saved, record=replace(saved.record, plant_table=table, table=table))
    standing = replay_part(saved, busiest(saved)).standing
    assert {"modelled": "a modelled table, not a measured one", "imported": "others measured"}[
        source
    ] in standing
    assert "measured on GPUs" not in standing


def heights(svg):
    """Points of each curve, in shares of the plot."""
    frame = svg[svg.index('class="curves"') :]
    curves = []
    for path in re.findall(r' d="([^"]+)"', frame):
        numbers = [float(one) for one in re.findall(r"-?[\d.]+", path)]
        points = list(zip(numbers[::2], numbers[1::2], strict=True))
        curves.append([(x / 1000, 1 - y / 1000) for x, y in points])
    return curves


def test_a_curve_crosses_the_slo_at_the_share_that_broke_it():
    values_ms = np.arange(1.0, 1001.0)
    sample = Sample("one", "c0", values_ms, np.ones(1000, dtype=np.int64))
    svg = late_shares([sample], 900.0, "label")
    (curve,) = heights(svg)
    x_slo = float(re.search(r'<line class="slo" x1="([\d.]+)%', svg).group(1)) / 100
    y = next(before[1] for before, after in pairwise(curve) if after[0] > x_slo)
    assert 10 ** (3 * (y - 1)) == pytest.approx(0.1, rel=0.05)  # three decades: 1000 values
    assert "SLO 900 ms" in svg


def test_a_timeline_shows_the_clock_that_ran(replayed):
    saved = load_replay(replayed)
    window = busiest(saved, 5.0)
    part = replay_part(saved, window)
    body = next(s.body for s in part.sections if s.title.startswith("The busiest"))
    beam = next(line for line in body.timelines if line.name == "beam")
    strip = next(strip for strip in beam.strips if strip.name == "clock, MHz")
    steps = saved.steps_between("beam", window.from_s * 1e3, window.to_s * 1e3)
    clocks = steps["clock_mhz"].to_numpy()
    seen = {round(y, 3) for curve in heights(strip.svg.replace("H", " ").replace("V", " "))
            for _, y in curve[:1]}  # fmt: skip
    first = (clocks[0] - clocks.min()) / (clocks.max() - clocks.min())
    assert seen == {round(first, 3)}
    for value in (clocks.min(), clocks.max()):
        assert f">{value:,}<" in strip.svg


def test_the_busiest_stretch_holds_most_tokens(replayed):
    saved = load_replay(replayed)
    one = saved.requests.filter(policy="vanilla")

    def tokens(from_s):
        inside = pl.col("arrival_ms").is_between(from_s * 1e3, from_s * 1e3 + 4e3, closed="left")
        rows = one.filter(inside)
        return (rows["input_tokens"] + rows["output_tokens"]).sum()

    found = busiest(saved, 4.0)
    assert found.to_s - found.from_s == 4.0
    assert tokens(found.from_s) == max(tokens(s) for s in range(int(saved.report.duration_s) - 3))


def test_a_window_can_be_asked_for(replayed, tmp_path):
    path = write_report([replayed], tmp_path / "w.html", window=(2.0, 4.0)).path
    assert "From 0:02 to 0:04" in path.read_text("utf-8")
    for nothing in ((5.0, 3.0), (1e6, None)):
        with pytest.raises(ReportError, match="nothing lies between"):
            write_report([replayed], tmp_path / "no.html", window=nothing)
    assert not (tmp_path / "no.html").exists()


def test_hostile_names_stay_text(replayed, decision_log, tmp_path):
    evil = '</text></svg><script>alert(1)</script><img src="http://x/y" onerror=go()>'
    saved = load_replay(replayed)

    def named(frame):
        return frame.with_columns(pl.col("policy").replace({"beam": evil}))

    rungs = tuple(
        replace(r, metrics=replace(r.metrics, policy=evil)) if r.metrics.policy == "beam" else r
        for r in saved.report.rungs
    )
    trace = replace(saved.record.trace, source=evil, licence="javascript:alert(2)")
    saved = replace(
        saved,
        report=replace(saved.report, rungs=rungs, trace=evil, assumed=(evil,), model=evil),
        record=replace(saved.record, trace=trace, command=evil),
        requests=named(saved.requests),
        gaps=named(saved.gaps),
        steps=named(saved.steps.collect()).lazy(),
    )
    page = Page(render([replay_part(saved, Window(0.0, 5.0, chosen=False))]))
    assert page.faults == [] and page.loads == ["data:,"] and page.count("script") == 0
    assert page.count("img") == 0
    assert page.words.count(evil) >= 5
    # The same in a log, which an engine's words reach.
    lines = decision_log.read_text("utf-8").splitlines()
    lines = [
        line.replace('"reason":"the engine', '"reason":"' + evil.replace('"', '\\"'))
        for line in lines
    ]
    log = tmp_path / "<b>.jsonl"
    log.write_text("\n".join(lines))
    page = Page(write_report([log], tmp_path / "l.html").path.read_text("utf-8"))
    assert page.faults == [] and page.count("script") == page.count("img") == page.count("b") == 0
    assert evil in page.text and "<b>.jsonl" in page.text


# The command


def test_the_command_writes_beside_its_input(replayed, tmp_path, capsys):
    folder = tmp_path / "day"
    shutil.copytree(replayed, folder)
    assert main(["report", str(folder / "steps.parquet")]) == 0
    out = capsys.readouterr().out
    assert " of vanilla's energy" in out or "saves energy" in out or "No policy keeps" in out
    assert f"wrote {folder / 'report.html'}" in out
    assert main(["report", str(folder)]) == 2
    assert "exists" in capsys.readouterr().err
    assert main(["report", str(folder), str(folder), "--force", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["command"], len(answer["data"]["inputs"])) == ("report", 1)
    assert answer["data"]["inputs"][0]["kind"] == "replay"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("no.parquet", None, "there is no file or folder"),
        ("text.parquet", b"hello", "it is text"),
        ("empty.parquet", b"", "it is empty"),
        ("log.jsonl.gz", b"\x1f\x8b\x08", "it is a gzip file\nhint: unpack it first"),
        ("cut.parquet", b"PAR1" + bytes(64), "cannot be read as a Parquet file"),
        ("other.parquet", pl.DataFrame({"mass_kg": [1.0]}), "Parquet file of something else"),
        ("folder", "folder", "holds no replay"),
    ],
)
def test_bad_input_is_exit_2(tmp_path, capsys, name, content, said):
    path = tmp_path / name
    if isinstance(content, str):
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        content.write_parquet(path)
    assert main(["report", str(path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and said in err and "hint: " in err
    assert "Traceback" not in err
    assert not list(tmp_path.rglob("*.html"))


def test_without_jinja2_it_says_what_to_install(replayed, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert main(["report", str(replayed), "-o", str(tmp_path / "r.html")]) == 2
    assert "pip install 'beamprof[report]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_of_a_page_that_cannot_be_made(replayed, tmp_path, monkeypatch):
    old = tmp_path / "r.html"
    old.write_text("mine")

    def broken(parts):
        raise OutputError("no room")

    monkeypatch.setattr("beamprof.report.html_report.render", broken)
    with pytest.raises(OutputError):
        write_report([replayed], old, force=True)
    assert old.read_text() == "mine" and list(tmp_path.iterdir()) == [old]
