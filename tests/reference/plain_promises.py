"""When tokens are due and what is at risk, on dataclasses: the oracle of emulator/promises.py."""

import math
from collections.abc import Iterable
from dataclasses import replace

from beam_runtime.emulator.deadlines import (
    KEPT_TOKENS,
    LEAD_STEP,
    LEAD_TOKENS,
)
from beam_runtime.types import SAME_MS, Correction, RequestState, Slo, Snapshot, StreamKind


def last_token_ms(request: RequestState, state: Snapshot) -> float:
    """A decode whose latest token nobody timed counts from the snapshot on."""
    return state.now_ms if request.last_token_ms is None else request.last_token_ms


def token_ms(request: RequestState) -> float:
    """What is left for each token; an e2e promise knows it once the first token is out."""
    slo = request.slo
    if slo.e2e_ms is None or request.first_token_ms is None:
        return slo.token_ms
    left_ms = request.arrival_ms + slo.e2e_ms - request.first_token_ms
    return max(left_ms, 1.0) / max(slo.answer_tokens - 1, 1)


def due_ms(request: RequestState, state: Snapshot, lead_tokens: float = LEAD_TOKENS) -> float:
    """When its next token would be late; a mean's, so many tokens ahead or on the way there."""
    if request.slo.kind is StreamKind.GAP:
        return last_token_ms(request, state) + request.slo.token_ms
    first_ms = request.first_token_ms
    if first_ms is None:  # as if all tokens since were on time
        on_time_ms = (request.generated_tokens - 1) * request.slo.token_ms
        first_ms = last_token_ms(request, state) - on_time_ms
        request = replace(request, first_token_ms=first_ms)
    lead = min(lead_tokens, LEAD_STEP * request.generated_tokens)
    return first_ms + (request.generated_tokens - lead) * token_ms(request)


def joining_due_ms(request: RequestState, state: Snapshot) -> float:
    """The same where it may wait for others to go on with."""
    return due_ms(request, state, KEPT_TOKENS)


def timed(request: RequestState, state: Snapshot) -> RequestState:
    """With times for what nobody timed, and a promise that is broken by now marked."""
    if request.generated_tokens:
        last_ms = last_token_ms(request, state)
        first_ms = request.first_token_ms
        if first_ms is None:
            first_ms = last_ms - (request.generated_tokens - 1) * request.slo.token_ms
        return replace(request, first_token_ms=first_ms, last_token_ms=last_ms)
    late = state.now_ms - request.arrival_ms > request.slo.ttft_ms + SAME_MS
    return replace(request, broken=request.broken or late)


def tightest_ms(requests: Iterable[RequestState]) -> float:
    """The least time per token among promises that hold, else among all; 0 without any."""
    everyone = list(requests)
    holding = [r for r in everyone if not r.broken] or everyone
    return min((token_ms(r) for r in holding), default=0.0)


def first_margin_ms(ttft_slo_ms: float, learnt: Correction) -> float:
    """Of a short promise no more than three tenths."""
    return min(learnt.ttft_margin_ms, 0.3 * ttft_slo_ms)


def first_risk(excess_ms: float, margin_ms: float) -> float:
    """How likely a first token is lost, margin included."""
    return min(1.0, excess_ms / max(2.0 * margin_ms, 1.0)) if excess_ms > SAME_MS else 0.0


def queue_risk(
    prefill_ms: float, requests: Iterable[RequestState], next_ms: float, learnt: Correction
) -> float:
    """How many of those to come will lose their first token to a queue so long."""
    first_token_ms = min((r.slo.ttft_ms for r in requests), default=math.inf)
    late_ms = prefill_ms + next_ms + first_margin_ms(first_token_ms, learnt) - first_token_ms
    return learnt.arrivals_per_s * min(prefill_ms, max(0.0, late_ms)) / 1e3


def stream_risk(
    slo: Slo, of_token_ms: float, excess_ms: float, margin_ms: float, fastest_ms: float
) -> float:
    """The same of a stream."""
    if excess_ms <= SAME_MS:
        return 0.0
    if slo.kind is StreamKind.GAP:
        return min(1.0, excess_ms / max(2.0 * margin_ms, 1.0))
    behind_tokens = excess_ms / max(of_token_ms - fastest_ms, 1.0)
    return 1.0 - math.exp(-behind_tokens / slo.answer_tokens)


def late_after_ms(
    kind: StreamKind, late_ms: float, of_token_ms: float, cycle_ms: float, rest_ms: float
) -> float:
    """How late a stream is after a steady phase of such cycles."""
    if cycle_ms <= 0.0 or (math.isinf(late_ms) and kind is not StreamKind.GAP):
        return late_ms
    if kind is StreamKind.GAP:
        return max(late_ms, cycle_ms - of_token_ms)
    return late_ms + (cycle_ms - of_token_ms) * rest_ms / cycle_ms
