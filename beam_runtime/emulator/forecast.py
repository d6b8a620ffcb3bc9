"""What one candidate comes to: TTFT and TBT of every request, and joules over equal work.

The horizon ends when the waiting prefills are done, and not before a fixed look-ahead. Up to the
last step that carries prefill energy is counted step by step; what follows is decode-only and
counted in aggregate (steady.py).

A request that cannot be admitted before another ends is blocked: no knob helps it, its TTFT is
forecast as infinite and does not count against a candidate.
"""

import math
from typing import NamedTuple

from beam_runtime.emulator.compiler import compiled, entry
from beam_runtime.emulator.composer import classify
from beam_runtime.emulator.deadlines import first_margin_ms, first_risk, queue_risk, stream_risk
from beam_runtime.emulator.places import opened, restore
from beam_runtime.emulator.play import play
from beam_runtime.emulator.promises import GAP
from beam_runtime.emulator.setup import Setting, Tables
from beam_runtime.emulator.state import Floats, Records, State
from beam_runtime.emulator.steady import Prices, equal_work, settlement_j, steady


class Outcome(NamedTuple):
    """What is expected of one candidate; requests as rows, -1 for nobody.

    Attributes:
        active_j: all passes of all stages.
        idle_j: every GPU-second that no pass covers.
        settlement_j: what makes candidates comparable (steady.py).
        horizon_ms: how far it was played.
        ttft_excess_ms: worst TTFT + margin - SLO.
        ttft_row: whose that is.
        tbt_excess_ms: the same two for the stream: how late its tokens come, by its kind.
        tbt_row: see above.
        broken: requests expected to lose a promise they still have, those to come
            included (deadlines.py).
        cycle_ms: time between tokens in the decode-only phase, if the horizon reaches it.
        steps: played.
        most_tokens: of any step while prompts waited to go.
        prompt_tokens: computed within the horizon.
        output_tokens: decoded within the horizon.
    """

    active_j: float
    idle_j: float
    settlement_j: float
    horizon_ms: float
    ttft_excess_ms: float
    ttft_row: int
    tbt_excess_ms: float
    tbt_row: int
    broken: float
    cycle_ms: float
    steps: int
    most_tokens: int
    prompt_tokens: int
    output_tokens: float


@compiled
def forecast(
    state: State, start: State, setting: Setting, start_ms: float, lookahead_ms: float,
    prices: Prices, setup: Records, tables: Tables,
) -> Outcome:  # fmt: skip
    """Play ``setting`` forward from ``start``.

    Plays on ``state``, whose requests hold TTFT and longest gap afterwards.
    """
    restore(state, start)
    played = play(state, setting, start_ms, lookahead_ms, setup, tables)
    prefill_ms = played.span_ms / setup.pp
    rest_ms = max(0.0, lookahead_ms - prefill_ms)
    after = steady(
        played.after, setting.clock, setting.microbatches, setting.pace_ms, setup, tables
    )
    window_ms = played.span_ms
    if played.span_ms > 0.0:
        for free_ms in start.stage_free_ms:
            window_ms -= max(0.0, free_ms - start_ms)
    idle_j = tables.idle_w[setting.clock] * (window_ms - played.busy_ms) / 1e3
    horizon_ms = max(prefill_ms, lookahead_ms)
    output_tokens = played.decodes + after.tokens_per_ms * rest_ms

    cycle_ms = after.cycle_ms if rest_ms > 0.0 else 0.0
    ttft_worst_ms, ttft_row = -math.inf, -1
    tbt_worst_ms, tbt_row = -math.inf, -1
    broken = queue_risk(prefill_ms, prices.first_token_ms, prices.next_ms, setup)
    for row in range(state.engine.rows):
        request = state.requests[row]
        if request.broken == 1:
            continue
        at_risk = 0.0
        to_come = start.requests[row].ttft_ms == math.inf and request.ttft_ms < math.inf
        in_flight = request.first_token_ms <= played.settled_ms  # not where it is NaN: not out yet
        if to_come and not in_flight:
            margin_ms = first_margin_ms(request.ttft_slo_ms, setup)
            excess_ms = request.ttft_ms + margin_ms - request.ttft_slo_ms
            at_risk = first_risk(excess_ms, margin_ms)
            if excess_ms > ttft_worst_ms:
                ttft_worst_ms, ttft_row = excess_ms, row
        if request.worst_gap_ms >= 0.0:
            late_ms = late_after_ms(request, cycle_ms, rest_ms)
            excess_ms = late_ms + setup.tbt_margin_ms
            at_risk = max(
                at_risk, stream_risk(request, excess_ms, setup.tbt_margin_ms, prices.fastest_ms)
            )
            if excess_ms > tbt_worst_ms:
                tbt_worst_ms, tbt_row = excess_ms, row
        broken += at_risk
    return Outcome(
        played.active_j + after.active_w * rest_ms / 1e3,
        idle_j + after.idle_w * rest_ms / 1e3,
        settlement_j(prices, horizon_ms, output_tokens),
        horizon_ms,
        ttft_worst_ms,
        ttft_row,
        tbt_worst_ms,
        tbt_row,
        broken,
        cycle_ms,
        played.steps,
        played.most_tokens,
        played.chunk_tokens,
        output_tokens,
    )


@compiled
def late_after_ms(request: Records, cycle_ms: float, rest_ms: float) -> float:
    """How late a stream is once a phase of such cycles has gone on for ``rest_ms`` after a play."""
    late_ms: float = request.late_ms
    if cycle_ms > 0.0:
        over_ms = cycle_ms - request.token_slo_ms
        if request.slo_kind == GAP:
            late_ms = max(late_ms, over_ms)
        else:
            late_ms += over_ms * rest_ms / cycle_ms
    return late_ms


@entry
def forecast_one(
    state: State, start: State, setting: Setting, now_ms: float, lookahead_ms: float,
    pace_shares: Floats, setup: Records, tables: Tables,
) -> Outcome:  # fmt: skip
    """One candidate's forecast; ``state`` holds its requests' TTFT and gaps afterwards."""
    played, begin, given = opened(state), opened(start), setup[0]
    classify(begin, given)
    prices = equal_work(begin, lookahead_ms, pace_shares, given, tables)
    return forecast(played, begin, setting, now_ms, lookahead_ms, prices, given, tables)
