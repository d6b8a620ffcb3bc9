"""The load that advice is for, as a trace: drawn from a server's metrics, or from a rate.

Lengths follow the server's histograms, scaled to its means. Arrivals are Poisson: metrics do not
tell bursts, and real traffic has them.
"""

from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beamprof.advice.scrape import Histogram, Scrape
from beamprof.errors import ReplayError, TraceError
from beamprof.traces.arrivals import RateCurve, seeded
from beamprof.traces.synthetic import Lengths, poisson
from beamprof.traces.trace import Provenance, Trace, Transform, arrange
from beamprof.units import format_duration

# Enough requests for a share of 1 %, and no longer than it takes to wait for an answer.
REQUESTS = 600
_SHORTEST_S, _LONGEST_S = 120.0, 1800.0
MOST_RPS = 200.0
FEWEST = 9  # requests: of fewer no share is worth a percentage


@dataclass(frozen=True, slots=True)
class Observed:
    """What the server itself saw, to be held against what is predicted for it today.

    Attributes:
        ttft_ms, tbt_ms: means; None where it says nothing.
        cached_share: of prompt tokens that its prefix cache had.
        engines: that share its load; the times are of all, the load that is played is one's.
    """

    ttft_ms: float | None
    tbt_ms: float | None
    cached_share: float = 0.0
    engines: int = 1


@dataclass(frozen=True, slots=True)
class Load:
    """A trace, and where it comes from in words."""

    trace: Trace
    words: str
    observed: Observed | None = None


def load_from_rate(rate_rps: float, input_tokens: int, output_tokens: int, seed: int = 0) -> Load:
    """Poisson arrivals and uniform lengths. Raises TraceError on senseless numbers."""
    duration_s = _duration_s(rate_rps)
    lengths = Lengths(input_tokens, output_tokens)
    trace = poisson(rate_rps, duration_s, lengths=lengths, seed=seed)
    return Load(
        trace,
        f"{rate_rps:.3g} requests/s, {input_tokens:,} tokens in and {output_tokens:,} out on "
        "average; Poisson arrivals, lengths +-30 %",
    )


def load_from_scrape(scrape: Scrape, rate_rps: float | None = None, seed: int = 0) -> Load:
    """Like what one engine of the server had.

    Args:
        scrape: its metrics.
        rate_rps: of one engine; None = as counted.
        seed: of arrivals and lengths.

    Raises:
        TraceError: the rate is not to be told, or makes no sense.
    """
    counted = rate_rps is None
    if rate_rps is None:
        if scrape.seconds is None:
            raise TraceError(
                "the metrics do not say since when they count",
                hint="say the rate of requests: --rate 2.5",
            )
        rate_rps = scrape.prompts.count / scrape.seconds / scrape.engines
    duration_s = _duration_s(rate_rps)
    curve = RateCurve((0.0, duration_s), (rate_rps, rate_rps))
    arrival_s = curve.arrivals_s(seeded(seed, 0))
    random = seeded(seed, 1)
    frame = pl.DataFrame({
        "arrival_s": arrival_s,
        "input_tokens": _drawn(scrape.prompts, len(arrival_s), random),
        "output_tokens": _drawn(scrape.outputs, len(arrival_s), random),
    })  # fmt: skip
    each = f" for each of {scrape.engines} engines" if scrape.engines > 1 else ""
    made = Transform(
        "generate",
        {"kind": "vllm-metrics", "rate_rps": rate_rps, "seed": seed},
        0,
        frame.height,
        {},
    )
    record = Provenance("vLLM's metrics", "vllm-metrics", None, "the user's own", (made,))
    return Load(
        Trace(arrange(frame.with_row_index("request_id")), duration_s, record),
        f"{rate_rps:.3g} requests/s{each}"
        + (
            f", the mean of the {format_duration(scrape.seconds)} until {scrape.until}"
            if counted and scrape.seconds
            else ""
        )
        + f"; {scrape.prompts.mean:,.0f} tokens in and {scrape.outputs.mean:,.0f} out on average, "
        "by the server's histograms; Poisson arrivals",
        Observed(
            _mean_ms(scrape.ttft_s), _mean_ms(scrape.tbt_s), scrape.cached_share, scrape.engines
        ),
    )


def load_from_trace(trace: Trace, name: str) -> Load:
    """A trace as it is. Raises TraceError where it has too few requests to judge by."""
    if trace.requests < FEWEST:
        raise TraceError(
            f"{name} holds too few requests to judge by",
            cause=f"found {trace.requests}",
            hint=f"{FEWEST} at least; beam replay plays any",
        )
    return Load(trace, f"{trace.requests:,} requests of {name}")


def within(load: Load, most_tokens: int, model: str) -> Load:
    """A load whose requests the model takes.

    Lengths that were drawn from a server's histogram are cut: its last bucket reaches beyond what
    the server took. Others are refused.

    Raises:
        ReplayError: a request has more tokens than the model takes, or most of a server's have.
    """
    tokens = load.trace.input_tokens + load.trace.output_tokens
    longest, mean = int(tokens.max()), float(tokens.mean())
    if longest <= most_tokens:
        return load
    if load.observed is None:
        raise ReplayError(
            f"a request of this load has {longest:,} tokens, {model} takes {most_tokens:,}",
            hint="shorter --input-tokens and --output-tokens; of a trace: beam trace import FILE "
            f"--max-total-tokens {most_tokens} --over-limit drop",
        )
    if mean > most_tokens:
        raise ReplayError(
            f"the server's requests have {mean:,.0f} tokens on average",
            cause=f"{model} takes {most_tokens:,}",
            hint="is it another model, or one whose context was made longer? --model DIR names a "
            "folder with its config.json",
        )
    outputs = pl.min_horizontal("output_tokens", most_tokens - 1)
    inputs = pl.min_horizontal("input_tokens", most_tokens - outputs)
    frame = load.trace.frame.with_columns(
        input_tokens=inputs.cast(pl.Int64), output_tokens=outputs.cast(pl.Int64)
    )
    return replace(load, trace=replace(load.trace, frame=frame))


def _duration_s(rate_rps: float) -> float:
    if not 0.0 < rate_rps <= MOST_RPS:
        raise TraceError(
            f"a rate lies above 0 and up to {MOST_RPS:g} requests/s for one replica",
            cause=f"found {rate_rps:,.5g}",
            hint="--rate is what one engine gets: divide by the number of replicas",
        )
    if rate_rps * _LONGEST_S < FEWEST:
        raise TraceError(
            f"{rate_rps * 3600:.2g} requests in an hour are too few to judge by",
            hint=f"{FEWEST / _LONGEST_S * 3600:.0f} in an hour at least (--rate "
            f"{FEWEST / _LONGEST_S:g}); an idle server costs its idle power, which beam table "
            "inspect shows",
        )
    return min(_LONGEST_S, max(_SHORTEST_S, REQUESTS / rate_rps))


def _drawn(lengths: Histogram, count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Token counts like the histogram's, whose mean is its mean."""
    edges = np.array(lengths.edges)
    low = np.concatenate([[1.0], edges[:-1]])
    high = np.where(np.isfinite(edges), edges, np.maximum(2 * low, 2.0))
    low, high = np.maximum(1.0, np.minimum(low, high)), np.maximum(1.0, high)
    counts = np.array(lengths.counts)
    bucket = random.choice(len(edges), count, p=counts / counts.sum())
    drawn = low[bucket] + (high - low)[bucket] * random.random(count)
    # Inside a bucket values are not uniform: the mean is known, so it is kept.
    scaled = drawn * (lengths.mean / drawn.mean())
    whole: NDArray[np.int64] = np.maximum(1, np.round(scaled)).astype(np.int64)
    return whole


def _mean_ms(times_s: Histogram | None) -> float | None:
    return 1e3 * times_s.mean if times_s is not None and times_s.count else None
