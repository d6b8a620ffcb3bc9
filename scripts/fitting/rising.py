"""Measured times that should not fall with size, made so: isotonic regression."""

import numpy as np

from beamprof.devices.gemm import Array


def rising(us: Array) -> Array:
    """The series that never falls with the least absolute error to ``us`` (R,), microseconds.

    By the max-min formula (Robertson et al., Order Restricted Statistical Inference, 1988), over
    medians; of an even number the lower, for what disturbs a timing makes it longer. Against
    measured all-reduces between the knots this was nearer than the regression of least squares of
    logarithms (B200 over 8 GPUs 7.7 % off instead of 8.7; as measured 8.9), and was chosen on that.
    """
    size = us.size
    return np.array([
        max(min(_lower_median(us[a:b]) for b in range(i + 1, size + 1)) for a in range(i + 1))
        for i in range(size)
    ])  # fmt: skip


def _lower_median(values: Array) -> float:
    return float(np.sort(values)[(values.size - 1) // 2])
