"""Where energy is least along the clock: measured, modelled, and how far noise lets one say so.

Energy is flat around its minimum and measured with noise, so the measured minimum scatters. What
that allows any model is found by measuring again on paper: noise as large as what smoothing takes
away is added to the smoothed curves, and their minima are sought as before.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NEAR_MHZ = 60
SMOOTHING_MHZ = 90
NOISE_WITHIN_MHZ = 240  # of the minimum: far from it the curve has corners, and they are no noise
REPEATS = 200


@dataclass(frozen=True, slots=True)
class EnergyCurves:
    """One pass each (R, N), joules, at the same ascending clocks (N,), MHz."""

    clocks_mhz: Array
    measured_j: Array
    modelled_j: Array


@dataclass(frozen=True, slots=True)
class Correlations:
    """Pearson's r between two minima of each curve.

    Attributes:
        modelled: the modelled and the smoothed measured one.
        repeated: the smoothed measured one and that of the same measurement done again. No model
            can be expected to do better: this one would know every curve, its noise included.
        were_it_true: of modelled, if the model had no error but the measurements their noise.
    """

    modelled: float
    repeated: float
    were_it_true: float


def smoothed(clocks_mhz: Array, energy_j: Array) -> Array:
    """Energies (..., N) by parabolas through each clock's neighbours."""
    return np.asarray(energy_j @ _smoother(clocks_mhz).T)


def _smoother(clocks_mhz: Array) -> Array:
    """The matrix (N, N) that takes energies to smoothed ones."""
    rows = np.zeros((clocks_mhz.size, clocks_mhz.size))
    for row, at_mhz in zip(rows, clocks_mhz, strict=True):
        offset = (clocks_mhz - at_mhz) / SMOOTHING_MHZ
        near = np.abs(offset) <= 1
        row[near] = np.linalg.pinv(np.vander(offset[near], 3, increasing=True))[0]
    return rows


def correlations(curves: EnergyCurves) -> Correlations:
    """How the minima go together, over all curves."""
    clocks, rng = curves.clocks_mhz, np.random.default_rng(0)
    smooth_j = smoothed(clocks, curves.measured_j)
    noise = _noise(curves, smooth_j)[:, None]
    measured_mhz, modelled_mhz = _least(clocks, smooth_j), _least(clocks, curves.modelled_j)

    def again(energy_j: Array, true_mhz: Array) -> float:
        r = []
        for _ in range(REPEATS):
            noisy_j = energy_j * (1 + noise * rng.standard_normal(energy_j.shape))
            r.append(_r(true_mhz, _least(clocks, smoothed(clocks, noisy_j))))
        return float(np.mean(r))

    return Correlations(
        modelled=_r(modelled_mhz, measured_mhz),
        repeated=again(smooth_j, measured_mhz),
        were_it_true=again(curves.modelled_j, modelled_mhz),
    )


def _noise(curves: EnergyCurves, smooth_j: Array) -> Array:
    """Relative standard deviation of each measured curve around its smoothed one (R,)."""
    clocks = curves.clocks_mhz
    near = np.abs(clocks - np.median(_least(clocks, smooth_j))) <= NOISE_WITHIN_MHZ
    left = (curves.measured_j / smooth_j - 1)[:, near]
    taken = np.diag(_smoother(clocks))[near]  # of a point's own noise the smoothed curve has this
    return np.asarray(np.sqrt((left**2 / (1 - taken)).mean(axis=1)))


def _least(clocks_mhz: Array, energy_j: Array) -> Array:
    return np.asarray(clocks_mhz[energy_j.argmin(axis=-1)])


def _r(one: Array, other: Array) -> float:
    """Pearson's; of a minimum that never moves 0."""
    if not one.std() or not other.std():
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])
