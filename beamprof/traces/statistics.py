"""What a trace looks like in numbers: rates, lengths, burstiness. Percentiles are exact."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beamprof.traces.prefixes import prefix_reuse
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
        bins: how many there are, empty ones too.
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
class ObservedStatistics:
    """What a log observed, over the requests with a first and a last token.

    TPOT is the mean time per output token after the first, of one request; a request of one
    token has none.
    """

    requests: int
    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    tpot_mean_ms: float | None
    tpot_p99_ms: float | None
    request_mean_s: float
    request_p99_s: float


@dataclass(frozen=True, slots=True)
class PrefixStatistics:
    """Prompt tokens that an endless prefix cache would not compute again (see prefixes)."""

    source: str
    block_tokens: int
    prompt_tokens: int
    reused_tokens: int
    reused_share: float


@dataclass(frozen=True, slots=True)
class TraceStatistics:
    """A trace in numbers.

    Rates are over ``duration_s``; ``copies`` have the arrival and lengths of an earlier request;
    ``gap_cv`` is the coefficient of variation of the gaps
    between arrivals (1 for a Poisson process; None under 3 requests or if all arrive at once).
    """

    requests: int
    duration_s: float
    last_arrival_s: float
    distinct_arrivals: int
    copies: int
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
    prefix: PrefixStatistics | None
    observed: ObservedStatistics | None


def trace_statistics(trace: Trace) -> TraceStatistics:
    """Every number of a trace. Bins wider than the trace are left out."""
    total = trace.input_tokens + trace.output_tokens
    return TraceStatistics(
        requests=trace.requests,
        duration_s=trace.duration_s,
        last_arrival_s=float(trace.arrival_s[-1]),
        distinct_arrivals=int(np.unique(trace.arrival_s).size),
        copies=_copies(trace),
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
        prefix=_prefix(trace),
        observed=_observed(trace),
    )


def tokens_per_s(trace: Trace) -> float:
    """Mean input + output tokens that arrive per second."""
    return float((trace.input_tokens + trace.output_tokens).sum()) / trace.duration_s


def rate_over_time(trace: Trace, bins: int) -> NDArray[np.float64]:
    """Requests per second in ``bins`` equal parts of the trace, shape (bins,)."""
    counts, _ = np.histogram(trace.arrival_s, bins=bins, range=(0.0, trace.duration_s))
    return counts / (trace.duration_s / bins)


def _bin(trace: Trace, bin_s: int) -> BinStatistics:
    """Empty bins are counted, not held: a trace of ten rows may last a year."""
    bins = int(trace.duration_s // bin_s)
    # Bins are half-open: an arrival at the very end belongs to a bin that is not there.
    place = trace.arrival_s // bin_s
    inside = place < bins
    total = (trace.input_tokens + trace.output_tokens)[inside]
    _, bin_of = np.unique(place[inside], return_inverse=True)
    requests = np.bincount(bin_of).astype(float)
    tokens = np.bincount(bin_of, weights=total).astype(float)
    mean = requests.sum() / bins
    empty = bins - len(requests)
    variance = (((requests - mean) ** 2).sum() + empty * mean**2) / bins
    return BinStatistics(
        bin_s=bin_s,
        bins=bins,
        p90_tokens_per_s=_percentile(tokens, empty, 0.9) / bin_s,
        max_tokens_per_s=float(tokens.max(initial=0.0) / bin_s),
        dispersion=float(variance / mean) if mean else 0.0,
    )


def _percentile(values: NDArray[np.float64], zeros: int, share: float) -> float:
    """As numpy's (linear), of ``values`` and as many zeros; no value is below 0."""
    ordered = np.sort(values)
    at = share * (len(values) + zeros - 1)
    low = int(at)
    ends = [ordered[place - zeros] if place >= zeros else 0.0 for place in (low, low + 1)
            if place - zeros < len(ordered)]  # fmt: skip
    return float(ends[0] + (ends[-1] - ends[0]) * (at - low))


def _copies(trace: Trace) -> int:
    alike = trace.frame.select("arrival_s", "input_tokens", "output_tokens").n_unique()
    return trace.requests - alike


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


def _prefix(trace: Trace) -> PrefixStatistics | None:
    reuse = prefix_reuse(trace)
    if reuse is None:
        return None
    return PrefixStatistics(
        reuse.source, reuse.block_tokens, reuse.prompt_tokens, reuse.reused_tokens, reuse.share
    )


def _observed(trace: Trace) -> ObservedStatistics | None:
    if not {"first_token_s", "last_token_s"} <= set(trace.frame.columns):
        return None
    first_s = trace.frame["first_token_s"].cast(float).to_numpy()
    last_s = trace.frame["last_token_s"].cast(float).to_numpy()
    known = np.isfinite(first_s) & np.isfinite(last_s)
    if not known.any():
        return None
    ttft_s, request_s = (first_s - trace.arrival_s)[known], (last_s - trace.arrival_s)[known]
    later = trace.output_tokens[known] - 1
    tpot_ms = ((request_s - ttft_s)[later > 0] / later[later > 0]) * 1e3
    return ObservedStatistics(
        requests=int(known.sum()),
        ttft_mean_s=float(ttft_s.mean()),
        ttft_p50_s=float(np.percentile(ttft_s, 50)),
        ttft_p99_s=float(np.percentile(ttft_s, 99)),
        tpot_mean_ms=float(tpot_ms.mean()) if tpot_ms.size else None,
        tpot_p99_ms=float(np.percentile(tpot_ms, 99)) if tpot_ms.size else None,
        request_mean_s=float(request_s.mean()),
        request_p99_s=float(np.percentile(request_s, 99)),
    )
