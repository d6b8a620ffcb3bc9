"""Which requests had every promise kept: goodput is their share, the first number of a result."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beam_runtime.emulator.promises import E2E, TPOT
from beam_runtime.emulator.state import Records
from beam_runtime.types import SAME_MS
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


def promises(played: Played, promised: Records | None = None) -> Promises:
    """What a replay kept of ``promised``, (R,) of REQUEST: what it was played for by default.

    A policy that does not look at SLOs plays the same whatever is promised, so one replay of
    vanilla answers for any.
    """
    promised = played.promised if promised is None else promised
    request_ms = played.finish_ms - played.arrival_ms
    first_ms = played.first_token_ms - played.arrival_ms
    kind, limit_ms = promised["slo_kind"], promised["stream_slo_ms"] + SAME_MS
    return Promises(
        first_ms <= promised["ttft_slo_ms"] + SAME_MS,
        np.where(
            kind == E2E,
            request_ms <= limit_ms,
            np.where(kind == TPOT, tpot_ms(played) <= limit_ms, _gaps_kept(played, promised)),
        ),
    )


def tpot_ms(played: Played) -> Floats:
    """(R,) mean time per output token after the first; 0 for a lone token, NaN if unfinished."""
    after = np.maximum(1, played.output_tokens - 1)
    mean_ms: Floats = (played.finish_ms - played.first_token_ms) / after
    return mean_ms


def _gaps_kept(played: Played, promised: Records) -> Kept:
    """Late gaps are at most what the share leaves over: none for 1, 2 of 200 for 0.99."""
    owner = played.tokens["request"]
    late = played.tokens["gap_ms"] > promised["stream_slo_ms"][owner] + SAME_MS
    late_gaps = np.bincount(owner[late], minlength=len(played.arrival_ms))
    allowed = (1.0 - promised["tbt_share"]) * (played.output_tokens - 1) + 1e-9
    kept: Kept = late_gaps <= allowed
    return kept
