"""window-dvfs: a clock per window of load, as DynamoLLM does it; clock only.

Every 5 s an exponential average of the arriving prompt tokens per second picks the cheapest of
five clocks whose mean TTFT and p90 TBT kept the SLO when that load was tried in advance, else
the highest. The trial is one replayed minute of Poisson arrivals for each clock and load.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from beam_runtime.types import Knobs
from beamprof.replay.plant import play
from beamprof.replay.policies.base import CHUNK_TOKENS, Policy
from beamprof.replay.policies.static import Static
from beamprof.replay.site import Site
from beamprof.replay.view import View
from beamprof.traces.arrivals import seeded
from beamprof.traces.trace import Provenance, Trace

WINDOW_MS = 5000.0
WEIGHT = 0.2
# Of an A100 with 1410 MHz; other GPUs' clocks in proportion to their highest.
CLOCKS_MHZ, OF_MHZ = (600, 800, 1000, 1200, 1400), 1410
LOADS_TPS = (600, 1200, 2400, 3600, 4800)
# The load that the trials were made with: lengths uniform within 30 % of these.
INPUT_TOKENS, OUTPUT_TOKENS, SPREAD = 1050, 150, 0.3
MINUTE_S = 60.0


@dataclass(frozen=True, slots=True)
class _Trial:
    """What one clock did under one load."""

    ttft_mean_ms: float
    tbt_p90_ms: float
    energy_j: float


class WindowDvfs(Policy):
    """The clock follows the load; chunk 256."""

    tick_ms = WINDOW_MS
    max_batched_tokens = CHUNK_TOKENS

    def start(self, view: View) -> Knobs:
        """Try every clock under every load."""
        served = view.cost.clocks_mhz
        top = int(served[-1])
        wanted = [clock * top / OF_MHZ for clock in CLOCKS_MHZ]
        self._clocks = sorted({int(served[np.abs(served - clock).argmin()]) for clock in wanted})
        self._trials = {
            (clock, tps): _try(clock, tps, view) for clock in self._clocks for tps in LOADS_TPS
        }
        self._seen_tokens = 0
        self._load_tps: float | None = None
        return Knobs(self._clocks[-1], CHUNK_TOKENS)

    def decide(self, view: View) -> Knobs:
        """One window is over."""
        window_tps = (view.arrived_tokens - self._seen_tokens) / WINDOW_MS * 1e3
        self._seen_tokens = view.arrived_tokens
        before = window_tps if self._load_tps is None else self._load_tps
        self._load_tps = (1 - WEIGHT) * before + WEIGHT * window_tps
        return Knobs(self._cheapest(self._load_tps, view), CHUNK_TOKENS)

    def _cheapest(self, load_tps: float, view: View) -> int:
        tried = next((tps for tps in LOADS_TPS if tps >= load_tps), LOADS_TPS[-1])
        keeping = [
            clock
            for clock in self._clocks
            if self._trials[clock, tried].ttft_mean_ms <= view.slo.ttft_ms
            and self._trials[clock, tried].tbt_p90_ms <= view.slo.token_ms
        ]
        if not keeping:
            return self._clocks[-1]
        return min(keeping, key=lambda clock: self._trials[clock, tried].energy_j)


def _try(clock_mhz: int, tps: float, view: View) -> _Trial:
    site = Site(view.cost, view.cost, view.limits, view.kv_blocks, view.slo)
    played = play(_minute(tps), Static("trial", clock_mhz, CHUNK_TOKENS), site)
    gaps = played.tokens["gap_ms"]
    return _Trial(
        float((played.first_token_ms - played.arrival_ms).mean()),
        float(np.percentile(gaps, 90)),
        played.energy_j,
    )


def _minute(tps: float) -> Trace:
    random = seeded(0)
    rate_rps = tps / INPUT_TOKENS
    uniforms = random.random((3, int(rate_rps * MINUTE_S * 2) + 50))
    arrival_s = np.cumsum(-np.log1p(-uniforms[0]) / rate_rps)
    n = max(1, int((arrival_s < MINUTE_S).sum()))

    def lengths(mean: int, at: int) -> pl.Series:
        low = round(mean * (1 - SPREAD))
        wide = round(mean * 2 * SPREAD) + 1
        return pl.Series((low + np.floor(uniforms[at, :n] * wide)).astype(np.int64))

    frame = pl.DataFrame(
        {
            "request_id": np.arange(n),
            "arrival_s": np.minimum(arrival_s[:n], MINUTE_S),
            "input_tokens": lengths(INPUT_TOKENS, 1),
            "output_tokens": lengths(OUTPUT_TOKENS, 2),
        }
    )
    return Trace(frame, MINUTE_S, Provenance("poisson", "window-dvfs trial", None, "own"))
