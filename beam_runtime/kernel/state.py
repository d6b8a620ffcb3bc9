"""The engine as arrays: what a Snapshot, its limits and a StepCost look like when compiled.

Few arrays with named rows instead of many arrays: every array of a compiled call costs both
compile time and call time.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Rows of State.requests, one column per request (a "row" in names is that column's index, as in
# the snapshot's running + waiting).
TOTAL, COMPUTED, CACHED, GENERATED = range(4)  # tokens
LAST_STEP = 4  # number of the latest step that held anything of it, as STEPS_BACK counts
KIND, ROOM = range(5, 7)  # what it can do now; room in its last KV block
SHARED = 7  # blocks of its hit that a request ahead of it holds, too
RUNNING, WAITING = range(8, 10)  # queues of requests; WAITING is a ring
SHOWN = 10  # whether the step under composition gets to see it
ITEM, ITEM_TOKENS = range(11, 13)  # what is in that step
FLY = 13  # from here on one row per step in flight: who gets a token

# KIND: a decode that is ready, a prompt with tokens to compute, a decode whose step is in
# flight (or that has reached the model's length), anything else.
OTHER, READY, PREFILL, DECODING = range(4)

# Rows of State.times; TTFT and GAP are what a play notes, KEY is room for choosing.
ARRIVAL, LAST, TTFT_SLO, TBT_SLO, TTFT, GAP, KEY = range(7)

# State.at: counts
N_RUNNING, N_WAITING, WAIT_HEAD, FREE_BLOCKS, CHUNK_OWED = range(5)
N_FLYING, FLY_HEAD = range(5, 7)
N_READY, N_PREFILL, N_DECODING = range(7, 10)  # running requests by KIND; ready ones decode too
STEPS_BACK = 10  # steps that have come back
FLY_COUNT = 11  # from here on how many requests get a token from each step in flight

# State.clock: milliseconds
DUE, READY_SINCE = range(2)  # of the ready decodes: earliest last token + SLO, earliest last token
STAGE_FREE = 2  # from here on when each stage is free, then when each step in flight finishes


class State(NamedTuple):
    """A Snapshot as arrays, for n requests (running and servable waiting ones)."""

    at: Ints
    requests: Ints
    times: Floats
    clock: Floats


class Tables(NamedTuple):
    """StepCost as lookups: quantity 0 is milliseconds, 1 is joules.

    Attributes:
        step: (2, T, M) by tokens and clock.
        attention: (2, M, F) by cost_fit.FEATURES.
        idle_w: (M,) a stage that waits.
    """

    step: Floats
    attention: Floats
    idle_w: Floats


MS, JOULE = range(2)


class Engine(NamedTuple):
    """EngineLimits, Correction and Rules as scalars."""

    pp: int
    block_size: int
    max_num_seqs: int
    max_batched: int
    max_model_len: int
    max_in_flight: int
    slots: int
    gap_ms: float
    transfer_ms: float
    prefill_scale: float
    decode_scale: float
    ttft_margin_ms: float
    tbt_margin_ms: float
    just_in_time: bool
    ride_along: bool
    give_way: bool
    late_cuts: bool
    pace: bool
    lead_ms: float
    min_chunk: int


class Setting(NamedTuple):
    """One candidate: Knobs with its ClockPlan, clocks as indices."""

    clock: int
    clock_before: int
    switch_ms: float
    chunk: int
    microbatches: int
    pace_ms: float


class Batch(NamedTuple):
    """A filled step: its items stand in State.requests[ITEM] and [ITEM_TOKENS]."""

    items: int
    admitted: int
    preempted: int
    free_blocks: int
    chunk: int
    context: int
    pairs: float
    decodes: int
    decode_context: int
