"""Synthetic traces: a rate over time, independent uniform lengths, all from one seed.

    poisson   ___________      one rate
    step      ___|‾‾‾|___      a burst: low, high, low (the talk's: 4 to 20 requests/s)
    ramp      ___...---‾‾‾     one rate to another (the talk's: 2 to 6.4 requests/s)
    spike     __|___|___|_     requests that arrive at once, over a base rate (the talk's: an
                               event of 1500 prefill tokens)

Real traffic is burstier and its lengths hang together: judge policies on real traces.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beamprof.errors import TraceError
from beamprof.traces.arrivals import RateCurve, seeded
from beamprof.traces.trace import Provenance, Trace, Transform, arrange

_ARRIVALS, _LENGTHS, _SPIKES = 0, 1, 2  # children of the seed, one per purpose


# A trace is held in memory: some 100 bytes a request.
_MOST_REQUESTS = 20_000_000
_MOST_TOKENS = 16_000_000


@dataclass(frozen=True, slots=True)
class Lengths:
    """Independent uniform lengths around two means.

    The defaults are those of the measured node: 1050 and 150 tokens, both +- 30 %
    (the BEAM artifact's serving benchmark).

    Attributes:
        input_tokens: mean prompt.
        output_tokens: mean output.
        spread: half the width of both ranges, as a fraction of the mean; 0 = all equal.
    """

    input_tokens: int = 1050
    output_tokens: int = 150
    spread: float = 0.3

    def __post_init__(self) -> None:
        longest = max(self.input_tokens, self.output_tokens)
        if longest > _MOST_TOKENS:
            raise TraceError(
                f"lengths of {longest:,} tokens are more than any model takes",
                hint=f"{_MOST_TOKENS:,} tokens at most",
            )
        if self.input_tokens < 1 or self.output_tokens < 1 or not 0 <= self.spread < 1:
            raise TraceError(
                "lengths are 1 token or more and their spread lies in 0..1 (1 excluded)",
                cause=f"found input {self.input_tokens}, output {self.output_tokens}, "
                f"spread {self.spread:g}",
            )

    def draw(self, generator: np.random.Generator, requests: int) -> dict[str, NDArray[np.int64]]:
        """Columns input_tokens and output_tokens, each of shape (requests,)."""
        return {
            "input_tokens": self._uniform(generator, self.input_tokens, requests),
            "output_tokens": self._uniform(generator, self.output_tokens, requests),
        }

    def _uniform(
        self, generator: np.random.Generator, mean: int, requests: int
    ) -> NDArray[np.int64]:
        low = max(1, round(mean * (1 - self.spread)))
        high = round(mean * (1 + self.spread))
        return low + np.floor(generator.random(requests) * (high - low + 1)).astype(np.int64)


def poisson(rate_rps: float, duration_s: float, *, lengths: Lengths, seed: int) -> Trace:
    """Poisson arrivals at one rate.

    Raises:
        TraceError: senseless numbers, or a draw without a single request.
    """
    curve = RateCurve((0.0, duration_s), (rate_rps, rate_rps))
    return _drawn("poisson", curve, lengths, seed)


def step(
    low_rps: float,
    high_rps: float,
    duration_s: float,
    *,
    burst_start_s: float,
    burst_s: float,
    lengths: Lengths,
    seed: int,
) -> Trace:
    """A burst: ``low_rps``, then ``high_rps`` for ``burst_s``, then ``low_rps`` again.

    Raises:
        TraceError: as poisson; or the burst does not lie inside the duration.
    """
    end_s = burst_start_s + burst_s
    if not 0 <= burst_start_s < end_s <= duration_s:
        raise TraceError(
            "the burst must lie inside the trace",
            cause=f"it runs from {burst_start_s:g} s to {end_s:g} s of {duration_s:g} s",
            hint="make --duration longer, or the burst earlier or shorter",
        )
    curve = RateCurve(
        (0.0, burst_start_s, burst_start_s, end_s, end_s, duration_s),
        (low_rps, low_rps, high_rps, high_rps, low_rps, low_rps),
    )
    return _drawn("step", curve, lengths, seed)


def ramp(
    from_rps: float, to_rps: float, duration_s: float, *, lengths: Lengths, seed: int
) -> Trace:
    """A rate that grows (or falls) in a straight line. Raises TraceError as poisson does."""
    return _drawn("ramp", RateCurve((0.0, duration_s), (from_rps, to_rps)), lengths, seed)


def spike(
    rate_rps: float,
    duration_s: float,
    *,
    every_s: float,
    requests: int,
    spike_input_tokens: int,
    lengths: Lengths,
    seed: int,
) -> Trace:
    """Poisson arrivals, and every ``every_s`` seconds ``requests`` prompts at the same moment.

    The first spike comes after ``every_s``; its prompts have exactly ``spike_input_tokens``,
    its outputs are drawn like the others.

    Raises:
        TraceError: as poisson; or no spike lies inside the duration.
    """
    if not 0 < every_s < duration_s or requests < 1 or spike_input_tokens < 1:
        raise TraceError(
            "spikes need an interval inside the trace, 1 request or more and 1 token or more",
            cause=f"found every {every_s:g} s of {duration_s:g} s, {requests} requests of "
            f"{spike_input_tokens} tokens",
        )
    curve = RateCurve((0.0, duration_s), (rate_rps, rate_rps))
    _check_size(curve.expected_requests + duration_s / every_s * requests)
    base_s = curve.arrivals_s(seeded(seed, _ARRIVALS))
    moments_s = np.arange(1, int(np.ceil(duration_s / every_s))) * every_s
    spikes_s = np.repeat(moments_s, requests)
    base = lengths.draw(seeded(seed, _LENGTHS), len(base_s))
    struck = lengths.draw(seeded(seed, _SPIKES), len(spikes_s))
    frame = pl.DataFrame(
        {
            "arrival_s": np.concatenate([base_s, spikes_s]),
            "input_tokens": np.concatenate(
                [base["input_tokens"], np.full(len(spikes_s), spike_input_tokens)]
            ),
            "output_tokens": np.concatenate([base["output_tokens"], struck["output_tokens"]]),
        }
    ).sort("arrival_s", maintain_order=True)
    parameters = {
        "rate_rps": rate_rps,
        "every_s": every_s,
        "requests": requests,
        "spike_input_tokens": spike_input_tokens,
    }
    return _trace("spike", frame, duration_s, parameters, lengths, seed)


def _drawn(kind: str, curve: RateCurve, lengths: Lengths, seed: int) -> Trace:
    _check_size(curve.expected_requests)
    arrival_s = curve.arrivals_s(seeded(seed, _ARRIVALS))
    frame = pl.DataFrame(
        {"arrival_s": arrival_s, **lengths.draw(seeded(seed, _LENGTHS), len(arrival_s))}
    )
    parameters = {"times_s": list(curve.times_s), "rates_rps": list(curve.rates_rps)}
    return _trace(kind, frame, curve.duration_s, parameters, lengths, seed)


def _check_size(requests: float) -> None:
    if requests > _MOST_REQUESTS:
        raise TraceError(
            f"this load means {requests:.3g} requests: more than can be held",
            hint=f"{_MOST_REQUESTS:,} at most: a lower rate, or a shorter --duration",
        )


def _trace(
    kind: str,
    frame: pl.DataFrame,
    duration_s: float,
    parameters: Mapping[str, object],
    lengths: Lengths,
    seed: int,
) -> Trace:
    drawn = Transform(
        name="generate",
        parameters={
            "kind": kind,
            **parameters,
            "duration_s": duration_s,
            "lengths": asdict(lengths),
            "seed": seed,
        },
        requests_before=0,
        requests_after=frame.height,
        counts={},
    )
    provenance = Provenance(
        source=f"synthetic {kind}",
        format="synthetic",
        sha256=None,
        licence="none: drawn numbers",
        transforms=(drawn,),
    )
    return Trace(arrange(frame.with_row_index("request_id")), duration_s, provenance)
