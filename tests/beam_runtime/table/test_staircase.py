"""A stair that the table steps over is put where it stands; measured feet are left alone."""

import numpy as np
import pytest

from beam_runtime.table.staircase import find_stairs, with_feet, with_foot_edges


def staircase(tokens: np.ndarray, tread: float = 0.01) -> np.ndarray:
    """One unit for each row of 128-token tiles, and a gentle tread on top of it."""
    return np.ceil(tokens / 128) * 10.0 + tread * tokens


@pytest.mark.parametrize("tread", [0.0, 0.01, 0.02])
def test_a_stair_stands_right_behind_its_tile(tread: float):
    edges = np.array([64.0, 128.0, 192.0, 256.0, 320.0, 384.0, 448.0])
    values = np.stack([staircase(edges, tread), 2 * staircase(edges, tread)])
    stairs = find_stairs(edges, values.mean(axis=0))
    grown = with_foot_edges(edges, stairs)
    # The last stair has nothing behind it that would tell its tread.
    assert grown.tolist() == [64, 128, 136, 192, 256, 264, 320, 384, 448]
    between = np.arange(136, 257, 8)
    for factor, line in zip((1, 2), with_feet(values, edges, stairs), strict=True):
        expected = factor * staircase(between, tread)
        np.testing.assert_allclose(np.interp(between, grown, line), expected, rtol=1e-9)


def test_measured_feet_a_straight_line_and_other_places_are_left_alone():
    measured = np.array([64.0, 72.0, 128.0, 136.0, 256.0, 264.0])
    assert find_stairs(measured, staircase(measured)) == []
    straight = np.array([64.0, 128.0, 192.0, 256.0])
    assert find_stairs(straight, 3 * straight) == []
    elsewhere = np.array([100.0, 150.0, 200.0, 250.0])
    assert find_stairs(elsewhere, staircase(elsewhere)) == []
    assert with_feet(measured[None], measured, []).tolist() == [measured.tolist()]


def test_a_foot_never_falls_under_the_tile_before_it():
    edges = np.array([64.0, 128.0, 192.0, 256.0])
    noisy = np.array([[10.0, 20.0, 21.0, 25.0]])
    assert with_feet(noisy, edges, [1])[0, 2] == 20.0
