"""Draw a trace from a ServeGen pool, by ServeGen's own rules.

Per 600-s window each client gets its share of the aggregate rate; ceil(share x 600)
inter-arrivals from its Gamma or Weibull are rescaled to sum to 600 s and cumulated, and those
inside the window are kept; the last falls on the window's end, which is outside, so a client
below one request per window emits nothing, as in ServeGen. (ServeGen keeps that last one where
rounding puts it a hair before the end: 0.2 % more requests.) One uniform number gives both
lengths (comonotone), from the newest block at or before the window.

Every (client, window) has its own child of the seed and times are whole microseconds: the same
clients, window, scale and seed give the same trace on any machine, and an hour is a slice of a
day. What it does not model: sessions, prefixes, correlation between clients.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from beamprof.errors import TraceError
from beamprof.traces.arrivals import seeded, whole_microseconds
from beamprof.traces.policies import MissingDataset
from beamprof.traces.servegen_pool import (
    WINDOW_S,
    Client,
    ClientWindow,
    LengthBlock,
    Pool,
    read_pool,
)
from beamprof.traces.statistics import tokens_per_s
from beamprof.traces.trace import Provenance, Trace, Transform, arrange

LICENCE = "Apache-2.0 as published in ServeGen"
_WINDOW_US = WINDOW_S * 1_000_000
_MOST_REQUESTS = 100_000_000
_SEARCH_STEPS, _GOOD_ENOUGH, _ENOUGH = 12, 0.005, 0.02


@dataclass(frozen=True, slots=True)
class Draw:
    """What to draw from a pool.

    Attributes:
        start_s: where the trace begins on the pool's time axis (day x 86400 + time of day).
        duration_s: how long it lasts.
        scale: factor on every client's rate.
        seed: of everything random.
        missing: what to do with active clients without lengths.
    """

    start_s: float
    duration_s: float
    scale: float = 1.0
    seed: int = 0
    missing: MissingDataset = MissingDataset.ERROR

    def __post_init__(self) -> None:
        if not (self.start_s >= 0 and 0 < self.duration_s < math.inf and 0 < self.scale < math.inf):
            raise TraceError(
                "a draw starts at 0 s or later and has a duration and a scale above 0",
                cause=f"found start {self.start_s:g} s, duration {self.duration_s:g} s, "
                f"scale {self.scale:g}",
            )


def draw_from_pool(folder: Path, draw: Draw) -> Trace:
    """Read the pool in ``folder`` and draw a trace from it.

    Raises:
        ImportFormatError: no pool, or a broken one.
        TraceError: a span outside the pool, a client without a dataset, nothing drawn.
    """
    return sample(read_pool(folder, draw.start_s, draw.start_s + draw.duration_s), draw)


def sample(pool: Pool, draw: Draw) -> Trace:
    """Draw a trace from clients that were read for the same span.

    Raises:
        TraceError: a client without a dataset, or nothing drawn.
    """
    pairs, skipped = _windows_with_lengths(pool, draw.missing)
    expected = sum(window.rate_rps for _, window, _ in pairs) * draw.scale * WINDOW_S
    if expected > _MOST_REQUESTS:
        raise TraceError(
            f"this draw means about {expected:.3g} requests",
            hint="give a smaller --scale or a shorter --duration",
        )
    columns = [_sampled(client, window, block, draw) for client, window, block in pairs]
    frame = pl.concat([_EMPTY, *columns]).sort("arrival_s", "client_id", maintain_order=True)
    inside = pl.col("arrival_s").is_between(0, draw.duration_s, closed="left")
    frame = frame.filter(inside).with_row_index("request_id")
    clipped = sum(int((frame[name].to_numpy() < 1).sum()) for name in _LENGTHS)
    frame = frame.with_columns(pl.col(*_LENGTHS).clip(1), pl.col("client_id").cast(pl.String))
    heard = frame["client_id"].n_unique()
    parameters = {
        "start_s": draw.start_s,
        "duration_s": draw.duration_s,
        "scale": draw.scale,
        "seed": draw.seed,
        "missing": str(draw.missing),
        "numpy": np.__version__,
    }
    counts = {
        "active_clients": len(pool.clients),
        "clients_without_dataset": skipped,
        "clients_too_slow_to_appear": len(pool.clients) - skipped - heard,
        "lengths_clipped_to_1": clipped,
    }
    return Trace(
        arrange(frame),
        draw.duration_s,
        Provenance(
            source=f"ServeGen pool {pool.name}",
            format="servegen-native",
            sha256=pool.sha256,
            licence=LICENCE,
            transforms=(Transform("generate", parameters, 0, frame.height, counts),),
        ),
    )


def scale_for_tokens_per_s(
    pool: Pool, draw: Draw, target_tps: float, finish: Callable[[Trace], Trace]
) -> Draw:
    """The draw with the scale at which the finished trace carries ``target_tps``.

    A fixed-point search on realised traces: windows round slow clients away, so the laws' own
    expectation lies too high.

    Args:
        pool: the clients.
        draw: all but its scale.
        target_tps: mean input + output tokens per second.
        finish: what is done to the trace afterwards, e.g. dropping long requests.

    Raises:
        TraceError: no scale comes within 2 % (a pool of few requests), or as sample.
    """
    if not 0 < target_tps < math.inf:
        raise TraceError(f"--target-tps must be above 0 tokens/s, found {target_tps:g}")
    scale = target_tps / _promised_tokens_per_s(pool, draw)
    best, least_miss = scale, math.inf
    for _ in range(_SEARCH_STEPS):
        trace = finish(sample(pool, replace(draw, scale=scale)))
        ratio = tokens_per_s(trace) / target_tps
        if abs(ratio - 1) < least_miss:
            best, least_miss = scale, abs(ratio - 1)
        if least_miss <= _GOOD_ENOUGH:
            break
        scale /= ratio
    if least_miss > _ENOUGH:
        raise TraceError(
            f"no scale gives {target_tps:g} tokens/s; the nearest misses it by {least_miss:.1%}",
            cause="the span holds few requests, so each counts for much",
            hint="take a longer --duration, another --seed, or give --scale itself",
        )
    return replace(draw, scale=best)


def _promised_tokens_per_s(pool: Pool, draw: Draw) -> float:
    """Tokens per second that the laws promise at scale 1."""
    pairs, _ = _windows_with_lengths(pool, draw.missing)
    end_s = draw.start_s + draw.duration_s
    tokens = 0.0
    for _, window, block in pairs:
        inside_s = min(window.start_s + WINDOW_S, end_s) - max(window.start_s, draw.start_s)
        per_request = block.input_law.mean_tokens + block.output_law.mean_tokens
        tokens += window.rate_rps * inside_s * per_request
    if tokens <= 0:
        raise TraceError("no client of the pool asks anything in this span")
    return tokens / draw.duration_s


_LENGTHS = ("input_tokens", "output_tokens")
_EMPTY = pl.DataFrame(
    schema={
        "arrival_s": pl.Float64,
        "input_tokens": pl.Int64,
        "output_tokens": pl.Int64,
        "client_id": pl.Int64,
    }
)


def _windows_with_lengths(
    pool: Pool, missing: MissingDataset
) -> tuple[list[tuple[Client, ClientWindow, LengthBlock]], int]:
    """Every active window with its lengths, and how many clients lack them."""
    pairs = []
    without: dict[int, float] = {}
    for client in pool.clients:
        for window in client.windows:
            block = client.block_for(window)
            if block is None:
                without[client.client_id] = without.get(client.client_id, 0.0) + window.rate_rps
            else:
                pairs.append((client, window, block))
    if without and missing is MissingDataset.ERROR:
        rate = sum(window.rate_rps for client in pool.clients for window in client.windows)
        listed = ", ".join(str(client_id) for client_id in list(without)[:12])
        raise TraceError(
            f"{len(without)} of {len(pool.clients)} active clients have no lengths in the pool",
            cause=f"clients {listed}{', ...' if len(without) > 12 else ''}, with "
            f"{sum(without.values()) / rate:.0%} of the requests",
            hint="get their chunk-<id>-dataset.json, or leave them out: --missing-dataset skip",
        )
    return pairs, len(without)


def _sampled(client: Client, window: ClientWindow, block: LengthBlock, draw: Draw) -> pl.DataFrame:
    """One client's requests in one window, times from the trace's start."""
    count = math.ceil(window.rate_rps * draw.scale * WINDOW_S)
    generator = seeded(draw.seed, client.client_id, window.start_s)
    since_s = _arrivals_in_window(window, count, generator)
    uniform = generator.random(len(since_s))
    return pl.DataFrame(
        {
            "arrival_s": whole_microseconds(since_s + (window.start_s - draw.start_s)),
            "input_tokens": block.input_law.at(uniform),
            "output_tokens": block.output_law.at(uniform),
            "client_id": np.full(len(since_s), client.client_id, dtype=np.int64),
        },
        schema=_EMPTY.schema,
    )


def _arrivals_in_window(
    window: ClientWindow, count: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """``count`` - 1 ascending times in [0, WINDOW_S): the last inter-arrival ends outside."""
    if count < 2:
        return np.empty(0)
    if window.family == "Gamma":
        gaps = generator.gamma(window.shape, window.scale_s, count)
    else:
        gaps = generator.weibull(window.shape, count) * window.scale_s
    total_s = float(np.cumsum(gaps)[-1])  # in sequence: np.sum's order depends on the CPU
    if not 0 < total_s < math.inf:
        gaps, total_s = np.ones(count), float(count)  # every draw of an extreme shape underflowed
    times_us = np.cumsum(np.rint(gaps / total_s * _WINDOW_US).astype(np.int64))[:-1]
    inside: NDArray[np.float64] = times_us[times_us < _WINDOW_US] / 1e6
    return inside
