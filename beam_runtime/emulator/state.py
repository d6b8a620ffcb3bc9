"""The engine's state in columns: one record per request, one per step in flight.

Whoever holds an engine holds it in this form (the tracker, the vLLM adapter, the replay's plant,
the emulator and the search), so that a decision copies arrays. Snapshot is how a person, a JSON
file or a test writes it (moment.py).

A request's number is its row in ``requests``; it keeps the row for as long as it is known.
"""

import os
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_UNCOMPILED = os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")

Records = Any  # numpy has no types for the fields of a structured array

# What a running request can do now: a decode that is ready, a prompt with tokens to compute, a
# decode whose step is in flight (or that has reached the model's length), anything else.
OTHER, READY, PREFILL, DECODING = range(4)


def record_type(
    integers: str, floats: str = "", arrays: str = "", length: int = 0
) -> np.dtype[Any]:
    """All fields are 8 bytes wide, or arrays of such: copies move rows of integers."""
    return np.dtype(
        [(name, np.int64) for name in integers.split()]
        + [(name, np.float64) for name in floats.split()]
        + [(name, np.float64, (length,)) for name in arrays.split()]
    )


REQUEST = record_type(
    "total_tokens "  # prompt and answer so far: what has to be in the cache before the next token
    "computed_tokens "  # with a place in the KV cache, those of issued steps included
    "generated_tokens "
    "cached_tokens "  # of one that waits: its prefix-cache hit, in whole blocks
    "shared_blocks "  # of the hit: blocks that a request ahead of it holds, too
    "room_tokens "  # that its last KV block still takes
    "last_step "  # number of the latest step that held anything of it, as steps_back counts
    "kind "  # OTHER, READY, PREFILL or DECODING
    "shown "  # whether the step under composition gets to see it
    "slo_kind answer_tokens "  # what was promised of its stream (promises.py)
    "broken",  # 1: a promise to it is broken for good
    "arrival_ms first_token_ms last_token_ms ttft_slo_ms stream_slo_ms tbt_share "
    "token_slo_ms "  # what is left for each token after the first
    "lost_due_ms "  # of a gap, what its tokens are due by once that is broken
    "least_tokens_per_s max_slowdown "  # limits on saving; 0 = none (search/slowdown.py)
    "ttft_ms worst_gap_ms "  # noted by a play: NaN or inf and -1 until then
    "late_ms",  # noted by a play: how late its stream is at worst; -inf until then
)
PLACE = record_type(
    "running "  # the i-th running request, in the engine's order
    "waiting "  # the i-th place of the waiting queue, a ring
    "scheduled scheduled_tokens "  # the i-th of the step under composition
    "ready",  # the i-th of the decodes to choose from
    "due_ms due_by_rank_ms",  # when that is due; the same, sorted as far as need be
)
FLIGHT = record_type(
    "tokens",  # requests that get a token from it
    "finish_ms "  # when it is back
    "gap_ms",  # the tightest gap SLO among those, inf without any; found anew by ``classify``
)
ENGINE = record_type(
    "rows "  # in use; those who hold an engine for long leave gaps
    "running waiting waiting_head "
    "ready prefilling decoding "  # running requests by kind; ready ones decode, too
    "flying flying_head "
    "steps_back "  # that have come back so far
    "free_blocks",
    # Of the ready decodes: the first to be due, of all and of those that break a promise then for
    # good; the earliest last token.
    "due_ms gap_due_ms ready_since_ms",
)


class State(NamedTuple):
    """The arrays of one engine, as Python holds them.

    Attributes:
        engine: (1,) of ENGINE.
        requests: (n,) of REQUEST.
        places: (n,) of PLACE.
        flights: (s,) of FLIGHT, steps in flight, a ring.
        members: (s, n) requests that get a token from each.
        stage_free_ms: (pp,) when each stage finishes the last step issued so far.
    """

    engine: Records
    requests: Records
    places: Records
    flights: Records
    members: Ints
    stage_free_ms: Floats


def empty_state(requests: int, steps_in_flight: int, pp: int, free_blocks: int = 0) -> State:
    """An engine that has never had a request."""
    state = State(
        engine=records(1, ENGINE),
        requests=records(requests, REQUEST),
        places=records(requests, PLACE),
        flights=records(steps_in_flight + 1, FLIGHT),
        members=np.zeros((steps_in_flight + 1, requests), dtype=np.int64),
        stage_free_ms=np.full(pp, -np.inf),
    )
    engine = state.engine
    engine["free_blocks"] = free_blocks
    engine["due_ms"] = engine["gap_due_ms"] = engine["ready_since_ms"] = np.inf
    return state


def records(count: int, dtype: np.dtype[Any]) -> Records:
    """Zeros. Compiled code reads fields as attributes anyway; plain Python needs a view."""
    zeros = np.zeros(count, dtype)
    return zeros.view(np.recarray) if _UNCOMPILED else zeros
