"""The tile staircase, where a table steps over its feet.

A GEMM of one token more than full tiles starts another row of tiles, so step time rises right
behind a full tile and hardly until the next. BEAM's own sweeps measure both feet of every stair and
leave nothing to do here. A table with a cell every 64 tokens shows a stair as one steep gap:
read as a straight line, everything inside the gap comes out too cheap.

On an A100's measured GEMMs (Vidur, Llama-3 70B, TP 1, 2, 4, 8), seen at 64, 80, 96, 112, 128
and then every 64 tokens up to 512, straight lines are 4.0 to 5.4 % off above 64 tokens; with
feet it is 1.4 to 2.4 % (benchmarks/staircase.py).
"""

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

# Tiles are a multiple of 64 tokens high on every GPU that has a device file.
TILE_TOKENS = 64
# Where the rise is over; the plans of beamprof measure this foot.
FOOT_TOKENS = 8
# A stair is this much steeper than the gap behind it.
STEEPNESS = 3.0


def find_stairs(edges_tokens: FloatArray, latency_ms: FloatArray) -> list[int]:
    """Indices of the edges right behind which a stair rises unmeasured.

    Args:
        edges_tokens: (N,) measured token counts, ascending.
        latency_ms: (N,) at them.
    """
    gaps = np.diff(edges_tokens)
    slopes = np.diff(latency_ms) / gaps
    return [
        n
        for n in range(len(gaps) - 1)
        if edges_tokens[n] % TILE_TOKENS == 0
        and gaps[n] > FOOT_TOKENS
        and slopes[n] > STEEPNESS * max(slopes[n + 1], 0.0)
    ]


def with_foot_edges(edges_tokens: FloatArray, stairs: list[int]) -> FloatArray:
    """(N + stairs,) the edges with every stair's upper foot among them."""
    after = [n + 1 for n in stairs]
    grown: FloatArray = np.insert(edges_tokens, after, edges_tokens[stairs] + FOOT_TOKENS)
    return grown


def with_feet(values: FloatArray, edges_tokens: FloatArray, stairs: list[int]) -> FloatArray:
    """(M, N + stairs) values at with_foot_edges.

    A foot lies on the line that leads back from behind the stair, never under its lower foot.

    Args:
        values: (M, N) latency or energy of M clocks at the edges.
        edges_tokens: (N,) measured token counts, ascending.
        stairs: what find_stairs found.
    """
    gaps = np.diff(edges_tokens)
    treads = np.maximum(np.diff(values, axis=1) / gaps, 0.0)
    feet = [
        np.maximum(values[:, n], values[:, n + 1] - treads[:, n + 1] * (gaps[n] - FOOT_TOKENS))
        for n in stairs
    ]
    columns = np.reshape(feet, (len(stairs), len(values))).T
    grown: FloatArray = np.insert(values, [n + 1 for n in stairs], columns, axis=1)
    return grown
