"""Which requests had every promise kept: goodput is their share, the first number of a result."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beam_runtime.types import SAME_MS, Slo, StreamKind
from beamprof.replay.played import Floats, Played

Kept = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Promises:
    """By request, (R,) each.

    Attributes:
        first: its first token came in time.
        stream: what was promised of its other tokens was kept; by itself where it has none.
    """

    first: Kept
    stream: Kept

    @property
    def both(self) -> Kept:
        """Every promise."""
        return self.first & self.stream

    @property
    def goodput(self) -> float:
        """The share of requests with every promise kept, 0 to 1."""
        return float(self.both.mean())


def promises(played: Played, slo: Slo | None = None) -> Promises:
    """What a replay kept of ``slo``, the one it was played for by default.

    A policy that does not look at SLOs plays the same whatever is promised, so one replay of
    vanilla answers for any.
    """
    slo = slo or played.slo
    first = played.first_token_ms - played.arrival_ms <= slo.ttft_ms + SAME_MS
    if slo.kind is StreamKind.E2E:
        stream = played.finish_ms - played.arrival_ms <= slo.stream_ms + SAME_MS
    elif slo.kind is StreamKind.TPOT:
        stream = tpot_ms(played) <= slo.stream_ms + SAME_MS
    else:
        stream = _gaps_kept(played, slo)
    return Promises(first, stream)


def tpot_ms(played: Played) -> Floats:
    """(R,) mean time per output token after the first; 0 for a lone token, NaN if unfinished."""
    after = np.maximum(1, played.output_tokens - 1)
    mean_ms: Floats = (played.finish_ms - played.first_token_ms) / after
    return mean_ms


def _gaps_kept(played: Played, slo: Slo) -> Kept:
    """Late gaps are at most what the share leaves over: none for 1, 2 of 200 for 0.99."""
    late = played.tokens["gap_ms"] > slo.stream_ms + SAME_MS
    requests = len(played.arrival_ms)
    late_gaps = np.bincount(played.tokens["request"][late], minlength=requests)
    allowed = (1.0 - slo.tbt_share) * (played.output_tokens - 1) + 1e-9
    kept: Kept = late_gaps <= allowed
    return kept
