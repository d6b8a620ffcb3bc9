"""Axes, names and thinning: what a plot may never do, whatever it is given."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beamprof.report.html.colours import colours
from beamprof.report.html.columns import columns
from beamprof.report.html.late_shares import Sample, late_shares
from beamprof.report.html.number_words import percent, significant
from beamprof.report.html.scale import Linear, Log
from beamprof.report.html.scatter import MOST_DOTS, predicted_and_observed
from beamprof.report.html.strips import dots_strip, steps_strip, time_words

positive = st.floats(1e-6, 1e9)


@given(positive, st.floats(1.001, 1e6), st.floats(-1e9, 1e9), st.integers(1, 12))
def test_a_scale_stays_inside_and_its_ticks_too(low, factor, value, most):
    for scale in (Log(low, low * factor), Linear(low, low * factor)):
        assert 0.0 <= scale.share(value) <= 1.0
        assert scale.share(scale.low) == 0.0
        assert scale.share(scale.high) == pytest.approx(1.0)
        ticks = scale.ticks(most)
        assert len(ticks) <= most
        assert list(ticks) == sorted(set(ticks))
        assert all(low * (1 - 1e-6) <= tick <= low * factor * (1 + 1e-6) for tick in ticks)


@given(positive, st.floats(0.0, 1e3), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_a_scale_keeps_the_order(low, span, one, two):
    for scale in (Log(low, low * (1 + span)), Linear(low, low + span)):
        a, b = sorted((low * (1 + one * span), low * (1 + two * span)))
        assert scale.share(a) <= scale.share(b)


@given(st.floats(1e-3, 1e6), st.floats(1.0, 1e4))
def test_a_usual_axis_has_labels(low, decades):
    assert Log(low, low * 10 * decades).ticks(7)


@given(st.floats(0.0, 1.0), st.integers(0, 3))
def test_a_share_is_never_rounded_to_all_or_nothing(share, digits):
    words = percent(share, digits)
    value = float(words.removesuffix(" %").lstrip("<>"))
    assert abs(value - 100 * share) <= 10.0**-digits
    if 1e-9 < share < 1 - 1e-9:
        assert words.startswith(("<", ">")) or 0.0 < value < 100.0


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.0, "0"), (0.01234, "0.0123"), (3.0, "3.00"), (29.14, "29.1"), (1961.4, "1,961"),
     (-4.2, "-4.20")],
)  # fmt: skip
def test_three_digits(value, words):
    assert significant(value) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0:00"), (65, "1:05"), (7265, "2:01:05"), (59.5, "0:59.5"), (0.0004, "0:00"),
     (119.9999, "2:00")],
)  # fmt: skip
def test_moments(seconds, words):
    assert time_words(seconds) == words


def samples(lists):
    return [
        Sample(f"policy-{n}", f"c{n}", np.sort(np.array(values)), np.ones(len(values), np.int64))
        for n, values in enumerate(lists)
    ]


@settings(max_examples=40)
@given(
    st.lists(st.lists(st.floats(0.0, 1e5), min_size=1, max_size=60), min_size=1, max_size=6),
    st.floats(1.0, 1e4),
)
def test_late_shares_never_rise_and_every_policy_is_named(lists, slo_ms):
    svg = late_shares(samples(lists), slo_ms, "any")
    root = ET.fromstring(svg)
    names = [text.text for text in root.iter("text")]
    assert all(f"policy-{n}" in names for n in range(len(lists)))
    for path in root.iter("path"):
        numbers = re.findall(r"[MHV]([\d.]+)(?: ([\d.]+))?", path.get("d"))
        assert numbers
        heights = [float(y) for y in re.findall(r"V([\d.]+)", path.get("d"))]
        widths = [float(x) for x in re.findall(r"H([\d.]+)", path.get("d"))]
        assert heights == sorted(heights) and widths == sorted(widths)


def test_nothing_to_show_draws_nothing():
    assert late_shares(samples([[]]), 100.0, "none") == ""
    assert predicted_and_observed(np.array([]), np.array([]), None, "none") == ""


def boxes(svg):
    """(left, right, top, bottom) in pixels of each policy's name on a phone."""
    found = []
    for place in ET.fromstring(svg).iter("svg"):
        if place.get("class").startswith("callout"):
            text = place.find("text")
            x = float(place.get("x").rstrip("%")) / 100 * 290 + float(text.get("x"))
            y = float(place.get("y").rstrip("%")) / 100 * 300 + float(text.get("y"))
            width = 7.6 * len(text.text)
            left = x if " start" in text.get("class") else x - width
            found.append((left, left + width, y - 12, y + 3))
    return found


def test_names_do_not_lie_on_each_other():
    random = np.random.default_rng(0)
    for spread in (0.05, 0.3, 1.0):
        lists = [random.lognormal(5 + 0.1 * n, spread, 2000) for n in range(5)]
        placed = boxes(late_shares(samples(lists), 200.0, "names"))
        assert len(placed) == 5
        for at, one in enumerate(placed):
            for other in placed[:at]:
                apart = one[1] <= other[0] or other[1] <= one[0]
                assert apart or one[3] <= other[2] or other[3] <= one[2]
            assert one[0] >= 0 and one[1] <= 290


def test_a_long_log_makes_no_long_page_and_keeps_its_peaks():
    points = [(n / 100, 1000.0 + 15 * (n % 7)) for n in range(200_000)]
    points[123_456] = (1234.56, 1410.0)
    strip = steps_strip("clock, MHz", (0.0, 2000.0), points, from_zero=False)
    assert len(strip.svg) < 120_000
    path = re.search(r' d="([^"]+)"', strip.svg).group(1)
    assert "V0H" in path, "the one step at the top clock is still there"
    many = np.geomspace(10, 1000, 50_000)
    svg = predicted_and_observed(many, many * 1.1, 500.0, "many")
    assert 0 < svg.count("<circle") <= MOST_DOTS
    dots = dots_strip("TTFT", (0.0, 100.0), [(n / 1e3, 5.0) for n in range(99_000)], 10.0, str)
    assert dots.svg.count("<circle") <= 3000


def test_columns_are_as_high_as_their_shares():
    svg = columns({1005: 0.75, 1410: 0.25}, "c4", "clock")
    rects = [float(r.get("height").rstrip("%")) for r in ET.fromstring(svg).iter("rect")]
    assert rects[0] == pytest.approx(3 * rects[1], rel=1e-4)
    assert "75.0 %" in svg and "1,005" in svg


def test_known_policies_keep_their_colour_and_others_differ():
    css = colours(["vanilla", "beam", "beam:no-pace", "static:900", "static:best"])
    assert css["vanilla"] == "c0" and css["beam"] == "c4"
    assert len(set(css.values())) == 5
