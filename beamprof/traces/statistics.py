"""What a trace looks like in numbers: rates, lengths, burstiness. Percentiles are exact."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beamprof.traces.trace import Trace

BINS_S = (1, 10, 60)


@dataclass(frozen=True, slots=True)
class LengthStatistics:
    """One length over all requests, in tokens."""

    mean_tokens: float
    p50_tokens: float
    p90_tokens: float
    p99_tokens: float
    max_tokens: int


@dataclass(frozen=True, slots=True)
class BinStatistics:
    """Load in bins of one width; only whole bins are counted.

    Attributes:
        bin_s: the width.
        bins: how many there are.
        p90_tokens_per_s: 90th percentile over the bins, input + output tokens at arrival.
        max_tokens_per_s: the fullest bin.
        dispersion: variance over mean of the requests per bin; 1 for a Poisson process.
    """

    bin_s: int
    bins: int
    p90_tokens_per_s: float
    max_tokens_per_s: float
    dispersion: float


@dataclass(frozen=True, slots=True)
class TraceStatistics:
    """A trace in numbers.

    Rates are over ``duration_s``; ``gap_cv`` is the coefficient of variation of the gaps
    between arrivals (1 for a Poisson process; None under 3 requests or if all arrive at once).
    """

    requests: int
    duration_s: float
    last_arrival_s: float
    distinct_arrivals: int
    requests_per_s: float
    tokens_per_s: float
    input_tokens_per_s: float
    output_tokens_per_s: float
    input: LengthStatistics
    output: LengthStatistics
    longest_request_tokens: int
    bins: tuple[BinStatistics, ...]
    gap_cv: float | None
    clients: int | None
    sessions: int | None
    reused_prefix_share: float | None


def trace_statistics(trace: Trace) -> TraceStatistics:
    """Every number of a trace. Bins wider than the trace are left out."""
    total = trace.input_tokens + trace.output_tokens
    return TraceStatistics(
        requests=trace.requests,
        duration_s=trace.duration_s,
        last_arrival_s=float(trace.arrival_s[-1]),
        distinct_arrivals=int(np.unique(trace.arrival_s).size),
        requests_per_s=trace.requests / trace.duration_s,
        tokens_per_s=tokens_per_s(trace),
        input_tokens_per_s=float(trace.input_tokens.sum()) / trace.duration_s,
        output_tokens_per_s=float(trace.output_tokens.sum()) / trace.duration_s,
        input=_lengths(trace.input_tokens),
        output=_lengths(trace.output_tokens),
        longest_request_tokens=int(total.max()),
        bins=tuple(_bin(trace, width) for width in BINS_S if trace.duration_s >= width),
        gap_cv=_gap_cv(trace.arrival_s),
        clients=_distinct(trace, "client_id"),
        sessions=_distinct(trace, "session_id"),
        reused_prefix_share=_reused_prefix_share(trace),
    )


def tokens_per_s(trace: Trace) -> float:
    """Mean input + output tokens that arrive per second."""
    return float((trace.input_tokens + trace.output_tokens).sum()) / trace.duration_s


def rate_over_time(trace: Trace, bins: int) -> NDArray[np.float64]:
    """Requests per second in ``bins`` equal parts of the trace, shape (bins,)."""
    counts, _ = np.histogram(trace.arrival_s, bins=bins, range=(0.0, trace.duration_s))
    return counts / (trace.duration_s / bins)


def _bin(trace: Trace, bin_s: int) -> BinStatistics:
    bins = int(trace.duration_s // bin_s)
    # Bins are half-open: an arrival at the very end belongs to a bin that is not there.
    place = (trace.arrival_s // bin_s).astype(np.int64)
    total = trace.input_tokens + trace.output_tokens
    requests = np.bincount(place, minlength=bins)[:bins]
    tokens = np.bincount(place, weights=total, minlength=bins)[:bins]
    mean = requests.mean()
    return BinStatistics(
        bin_s=bin_s,
        bins=bins,
        p90_tokens_per_s=float(np.percentile(tokens / bin_s, 90)),
        max_tokens_per_s=float(tokens.max() / bin_s),
        dispersion=float(requests.var() / mean) if mean else 0.0,
    )


def _lengths(tokens: NDArray[np.int64]) -> LengthStatistics:
    p50, p90, p99 = np.percentile(tokens, (50, 90, 99))
    return LengthStatistics(
        mean_tokens=float(tokens.mean()),
        p50_tokens=float(p50),
        p90_tokens=float(p90),
        p99_tokens=float(p99),
        max_tokens=int(tokens.max()),
    )


def _gap_cv(arrival_s: NDArray[np.float64]) -> float | None:
    gaps = np.diff(arrival_s)
    if gaps.size < 2 or gaps.mean() == 0:
        return None
    return float(gaps.std() / gaps.mean())


def _distinct(trace: Trace, column: str) -> int | None:
    if column not in trace.frame.columns:
        return None
    return int(trace.frame[column].drop_nulls().n_unique())


def _reused_prefix_share(trace: Trace) -> float | None:
    """Share of prefix blocks that an earlier request held: what an endless cache would save."""
    if "prefix_hashes" not in trace.frame.columns:
        return None
    blocks = trace.frame["prefix_hashes"].explode().drop_nulls()
    return 1.0 - blocks.n_unique() / len(blocks) if len(blocks) else None
