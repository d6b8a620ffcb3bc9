"""A replay's answer as one picture, for a slide."""

import shutil
import xml.etree.ElementTree as ET

import pytest

from beamprof.cli.main import main
from beamprof.errors import ReportError
from beamprof.replay.saved import load_replay
from beamprof.report import picture as pictures
from beamprof.report.html_report import write_report
from beamprof.report.replay_views import answer

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def drawn(replayed, tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "answer.svg"
    assert write_report([replayed], path).size_bytes == path.stat().st_size
    return ET.parse(path).getroot()


def test_every_policy_has_its_goodput_and_its_energy_to_scale(drawn, replayed):
    report = load_replay(replayed).report
    bars = [
        float(bar.get("width")) for bar in drawn.iter(f"{SVG}rect") if "%" not in bar.get("width")
    ]
    kept = [rung.metrics.goodput for rung in report.rungs]
    energy_j = [rung.metrics.energy_j for rung in report.rungs]
    assert bars[0::2] == pytest.approx([210 * share for share in kept], abs=0.06)
    assert bars[1::2] == pytest.approx([210 * one / max(energy_j) for one in energy_j], abs=0.06)


def test_it_says_the_answer_and_what_it_stands_on(drawn, replayed):
    report = load_replay(replayed).report
    assert drawn.find(f"{SVG}title").text == answer(report)
    words = " ".join(one.text for one in drawn.iter(f"{SVG}text"))
    assert answer(report) in words
    assert "Simulated by beam replay" in words
    assert f"(table: {' and '.join(load_replay(replayed).record.plant_table.sources)})" in words
    for assumption in report.assumed:
        assert assumption in words


def test_nothing_lies_outside(drawn):
    width, height = (float(drawn.get(side)) for side in ("width", "height"))
    for text in drawn.iter(f"{SVG}text"):
        assert 0 < float(text.get("x")) < width and 10 < float(text.get("y")) < height - 5


def test_it_needs_nothing_of_the_page(drawn):
    everything = ET.tostring(drawn, "unicode")
    assert "var(" not in everything and "class=" not in everything and "href" not in everything


def test_a_picture_is_of_one_replay(replayed, decision_log, tmp_path):
    for paths in ([decision_log], [replayed, decision_log]):
        with pytest.raises(ReportError, match="a picture is of one replay"):
            write_report(paths, tmp_path / "x.svg")
    assert not (tmp_path / "x.svg").exists()


def test_without_a_browser_a_png_is_refused_and_nothing_is_left(replayed, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures.shutil, "which", lambda name: None)
    with pytest.raises(ReportError, match="Chromium") as refused:
        write_report([replayed], tmp_path / "x.png")
    assert ".svg" in refused.value.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(
    not any(map(shutil.which, pictures._BROWSERS)), reason="no Chromium: apt-get install chromium"
)
def test_a_png_is_the_picture_twice_as_sharp(replayed, drawn, tmp_path):
    path = tmp_path / "x.png"
    assert main(["report", str(replayed), "-o", str(path)]) == 0
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    size = [int.from_bytes(head[at : at + 4], "big") for at in (16, 20)]
    assert size == [2 * int(drawn.get(side)) for side in ("width", "height")]
