"""A stage of a pipeline from two engines without one: the stage's layers, and some fewer.

    pass(n layers) = ends + n x layer

The ends (embedding, logits, sampler, the worker's own time) are there once in a pipeline, the
layers in every stage. Two layer counts tell them apart:

    latency   the stage's layers with both ends: the slowest stage sets the pipeline's beat
    energy    the stage's layers and 1/pp of the ends: what the stages spend adds up

So latency is a direct measurement, and a group of decodes that is alone in the pipeline is
forecast as (pp - 1) ends too slow, never too fast.
"""

from collections.abc import Sequence
from dataclasses import replace

from beamprof.backends.base import Measurement


def layer_counts(stage_layers: int, pp: int) -> tuple[int, ...]:
    """Which engines a stage needs, its own layer count first; without a pipeline that alone."""
    if pp == 1:
        return (stage_layers,)
    return (stage_layers, stage_layers // 2 if stage_layers > 1 else 2)


def stage_of(rows: Sequence[Measurement], layers: Sequence[int], pp: int) -> Measurement:
    """The stage's row from one row per engine, in the order of ``layers`` (layer_counts).

    Half-widths combine as independent. Noise cannot make the ends cost less than nothing.
    """
    whole = rows[0]
    if len(rows) == 1:
        return whole
    other = rows[1]
    n, m = layers
    # ends = (n other - m whole) / (n - m); the stage keeps 1/pp of them.
    ends_j = (n * other.energy_j - m * whole.energy_j) / (n - m)
    left_out = 1 - 1 / pp
    energy_j = whole.energy_j - left_out * min(max(0.0, ends_j), whole.energy_j)
    by_whole, by_other = 1 + left_out * m / (n - m), left_out * n / (n - m)
    energy_ci_j = None
    if whole.energy_ci_j is not None and other.energy_ci_j is not None:
        energy_ci_j = (
            (by_whole * whole.energy_ci_j) ** 2 + (by_other * other.energy_ci_j) ** 2
        ) ** 0.5
    return replace(whole, energy_j=energy_j, energy_ci_j=energy_ci_j)
