import math
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from beamprof.plain import plain
from beamprof.report.terminal import Curve, plot, shade_legend, shaded_line
from beamprof.tables.inspect import efficient


def test_shades_grow_with_the_distance_from_the_best():
    values = [0.3, 0.15, 0.07, 0.03, 0.01, 0.0, math.nan]
    assert shaded_line(values, 7, ascii_only=False).plain == "█▓▒░·◆ "
    assert shaded_line(values, 7, ascii_only=True).plain == "#%+:.O "


def test_the_best_survives_crowding():
    values = [0.5] * 40
    values[27] = 0.0
    line = shaded_line(values, 10, ascii_only=False).plain
    assert len(line) == 10
    assert line.index("◆") == 27 // 4


def test_legends_have_no_surprises_in_ascii():
    assert shade_legend(ascii_only=True).plain.isascii()
    assert "◆" in shade_legend(ascii_only=False).plain


@given(
    st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=1, max_size=20),
    st.integers(30, 120),
    st.integers(3, 30),
)
def test_any_curve_fits_its_frame(points, width, height):
    x, y = zip(*points, strict=True)
    curve = Curve(x, y, "a", "cyan", joined=range(len(x)), marked=0)
    lines = plot([curve], width=width, height=height, x_title="x", y_title="y", ascii_only=True)
    text = [line.plain for line in lines]
    assert len(text) == height + 3
    assert all(len(line) <= max(width, 60) for line in text)
    assert "a" in "".join(text[1 : height + 1])
    assert "".join(text).isascii()


def test_a_falling_line_falls():
    curve = Curve([0, 1], [1, 0], "a", "cyan", joined=(0, 1), marked=1)
    lines = plot([curve], width=40, height=8, x_title="x", y_title="y", ascii_only=True)
    stars = [line.plain.find("*") for line in lines[1:8]]
    assert stars == sorted(stars)
    assert stars[0] < stars[-1]


def test_efficient_points_are_those_that_nothing_beats():
    latency = [1.0, 1.1, 1.2, 1.3, 1.2]
    energy = [1.0, 0.8, 0.9, 0.7, 0.75]
    assert efficient(latency, energy) == [0, 1, 4, 3]


@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=1, max_size=30))
def test_every_point_is_efficient_or_beaten(points):
    latency, energy = zip(*points, strict=True)
    kept = efficient(latency, energy)
    for place in range(len(points)):
        beaten = any(latency[k] <= latency[place] and energy[k] <= energy[place] for k in kept)
        assert beaten
    pairs = [(latency[k], energy[k]) for k in kept]
    assert all(a[0] < b[0] and a[1] > b[1] for a, b in pairwise(pairs))


def test_plain_leaves_nothing_that_json_lacks():
    curve = Curve((1.0, math.nan), (math.inf, 2.0), "a", "cyan", (0,), 1)
    assert plain({1: curve}) == {
        "1": {
            "x": [1.0, None],
            "y": [None, 2.0],
            "label": "a",
            "style": "cyan",
            "joined": [0],
            "marked": 1,
        }
    }
