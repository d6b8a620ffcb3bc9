"""What noise allows to be said of the cheapest clock, on curves whose truth is known."""

import numpy as np
from optimal_clocks import EnergyCurves, correlations, smoothed

CLOCKS_MHZ = np.arange(510.0, 1411.0, 30.0)
MINIMA_MHZ = np.linspace(900.0, 1200.0, 40)
TRUE_J = 5.0 * (1 + ((CLOCKS_MHZ - MINIMA_MHZ[:, None]) / 1000) ** 2)


def noisy(share: float) -> np.ndarray:
    noise = np.random.default_rng(1).standard_normal(TRUE_J.shape)
    return TRUE_J * (1 + share * noise)


def test_a_parabola_is_smoothed_into_itself():
    np.testing.assert_allclose(smoothed(CLOCKS_MHZ, TRUE_J), TRUE_J, rtol=1e-12)


def test_without_noise_the_true_model_correlates_wholly():
    found = correlations(EnergyCurves(CLOCKS_MHZ, TRUE_J, TRUE_J))
    np.testing.assert_allclose([found.modelled, found.repeated, found.were_it_true], 1.0)


def test_noise_takes_from_the_true_model_what_is_foretold():
    found = correlations(EnergyCurves(CLOCKS_MHZ, noisy(0.02), TRUE_J))
    assert 0.2 < found.were_it_true < 0.9
    assert abs(found.modelled - found.were_it_true) < 0.25
    assert found.repeated < 0.9


def test_a_wrong_model_is_told_from_noise():
    found = correlations(EnergyCurves(CLOCKS_MHZ, noisy(0.002), TRUE_J[::-1]))
    assert found.modelled < -0.8
    assert found.were_it_true > 0.8


def test_a_minimum_that_never_moves_correlates_with_nothing():
    still = np.broadcast_to(TRUE_J[:1], TRUE_J.shape)
    assert correlations(EnergyCurves(CLOCKS_MHZ, noisy(0.01), still)).modelled == 0.0
