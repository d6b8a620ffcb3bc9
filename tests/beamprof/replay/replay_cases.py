"""A small table and small traces: what a replay does with them can be worked out by hand."""

import numpy as np
import polars as pl
from paper_table import paper_table

from beamprof.traces.trace import Provenance, Trace

CLOCKS_MHZ = (600, 800, 1000, 1200, 1400)
IDLE_W = 90.0
CELLS = [(tokens, 0, 0, 0) for tokens in (8, 64, 128, 256, 512)] + [
    (0, 0, b, b * context) for b in (1, 8, 64, 256) for context in (64, 1024)
]


def pass_ms(cell, clock_mhz):
    c, _, b, s = cell
    return (8.0 + 0.05 * (c + b) + 1e-5 * s) * (0.5 + 0.5 * 1400 / clock_mhz)


def pass_j(cell, clock_mhz):
    return (200.0 + 400.0 * (clock_mhz / 1400) ** 3) * pass_ms(cell, clock_mhz) / 1e3


def make_table(pp=4, model="small", clocks=CLOCKS_MHZ, latency=1.0, idle=True):
    return paper_table(
        CELLS, clocks, lambda cell, clock: latency * pass_ms(cell, clock), pass_j,
        idle_w=IDLE_W, idle_rows=idle, pp=str(pp), model=model,
    )  # fmt: skip


def make_trace(rows, duration_s):
    """rows: (arrival_s, input, output)."""
    frame = pl.DataFrame(
        {
            "request_id": list(range(len(rows))),
            "arrival_s": [float(row[0]) for row in rows],
            "input_tokens": [row[1] for row in rows],
            "output_tokens": [row[2] for row in rows],
        }
    )
    return Trace(frame, float(duration_s), Provenance("by hand", "test", None, "own"))


def random_trace(seed, requests=40, rate=4.0, longest=600):
    random = np.random.default_rng(seed)
    arrival = np.cumsum(random.exponential(1 / rate, requests))
    lengths = random.integers(1, longest, requests)
    outputs = random.integers(1, 40, requests)
    rows = list(zip(arrival.tolist(), lengths.tolist(), outputs.tolist(), strict=True))
    return make_trace(rows, np.ceil(arrival[-1]) + 1)
