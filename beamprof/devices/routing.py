"""How a router's choices fall on the experts of one GPU: experts with work, rows, tiles.

Two views. A server's tokens choose by chance: an expert that a token takes with probability q has
work in a step of n tokens with probability 1 - (1 - q)^n. A benchmark of the operator hands out
whole counts. The former prices steps; the latter is what measured operators are compared with.

Shares follow a power law, as recorded routers' do; 0 = evenly.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

TILE_ROWS = (16, 32, 64, 128, 256)
SPREAD = 10.0  # the most wanted expert's share over the least wanted one's
Loads = tuple[float, ...]  # experts with work, rows, then tiles for each of TILE_ROWS


@lru_cache(maxsize=65536)
def expected_loads(tokens: int, experts: int, top_k: int, ep: int, spread: float) -> Loads:
    """What a GPU with experts / ep of them expects; its share holds the most wanted expert.

    ``spread`` is the ratio of the most to the least wanted expert, shares falling as a power law of
    exponent 1 between (1: all alike).
    """
    rank = (np.arange(experts) + 0.5) / experts
    shares = spread**-rank
    chosen = _inclusion(shares / shares.sum(), top_k)[::ep]
    rows = tokens * chosen
    active = 1.0 - (1.0 - np.minimum(chosen, 1.0)) ** tokens
    # One tile for an expert with work; for many rows h to a tile, and half a tile to spare.
    tiles = [float(np.maximum(active, rows / height + active / 2).sum()) for height in TILE_ROWS]
    return float(active.sum()), float(rows.sum()), *tiles


def _inclusion(shares: Array, top_k: int) -> Array:
    """Probability that a token takes each expert: proportional to its share, none above 1."""
    chosen = top_k * shares
    for _ in range(shares.size):
        over = chosen > 1.0
        if not over.any():
            break
        chosen = np.where(over, 1.0, chosen)
        free = chosen < 1.0
        if not free.any():
            break
        chosen[free] *= max(0.0, top_k - float((~free).sum())) / chosen[free].sum()
    return np.asarray(np.minimum(chosen, 1.0))


@lru_cache(maxsize=65536)
def drawn_loads(tokens: int, experts: int, top_k: int, ep: int, skew: float) -> Loads:
    """What aiconfigurator's operator benchmark gives its busiest GPU: whole counts.

    ``skew`` is the exponent of the power law that counts are drawn from, between 1 and 0.8 n tokens
    (where there are fewer choices than experts: between 0.01 and 2); 0 = balanced. Quantiles stand
    for the draw.
    """
    choices = tokens * top_k
    if not skew:
        counts = np.full(experts, choices // experts, dtype=np.float64)
        counts[: choices % experts] += 1
    else:
        least, most = (1.0, max(tokens * 0.8, 2.0)) if choices > experts else (0.01, 2.0)
        power = 1.0 - skew
        middle = 1.0 - (np.arange(experts) + 0.5) / experts
        drawn = ((most**power - least**power) * middle + least**power) ** (1.0 / power)
        counts = _rounded(drawn / drawn.sum() * choices, choices)
    if ep > 1:
        counts = _busiest(counts, experts // ep, ep) if skew else counts[::ep][: experts // ep]
    counts = np.minimum(counts, tokens)
    tiles = [float(np.ceil(counts / height).sum()) for height in TILE_ROWS]
    return float((counts > 0).sum()), float(counts.sum()), *tiles


def _rounded(counts: Array, total: int) -> Array:
    """Whole numbers of falling counts; what is missing goes to the smallest, the rest comes from
    the largest, one each in turn.
    """
    whole = np.round(counts)
    missing = int(total - whole.sum())
    for i in range(abs(missing)):
        whole[(-1 - i if missing > 0 else i) % whole.size] += np.sign(missing)
    return np.asarray(np.maximum(whole, 0.0))


def _busiest(counts: Array, local: int, ep: int) -> Array:
    """The GPU with the most wanted expert; the others of its experts are as they come."""
    others = 1 + (np.arange(local - 1) * ep + ep // 2) % max(counts.size - 1, 1)
    return np.concatenate([counts[:1], counts[others]])
