"""When a request's next token is due, and what is at risk: one function each for all who ask.

    gap    last token + SLO
    tpot   first token + tokens since x SLO: a late token is made good by earlier ones
    e2e    as tpot, with what the first token left over shared among the tokens of an answer

By tpot and e2e a stream's lead earlier than that: it grows from token to token.
"""

import math

from beam_runtime.emulator.compiler import compiled
from beam_runtime.emulator.promises import E2E, GAP, breaks, share_ms
from beam_runtime.emulator.state import Records
from beam_runtime.types import MOST_OF_TTFT, SAME_MS

# By tpot and e2e a stream is kept so many tokens ahead: a chunk may come at any time, and an
# answer may end at any token. It is brought there by so much of a token with each. What other
# leads gave on parts of five traces stands in docs/how-it-works.md, "By tpot".
LEAD_TOKENS, LEAD_STEP = 8.0, 0.2
# Of that it gives up all but this much to go on in one step with other decodes.
KEPT_TOKENS = 1.0

_breaks, _share_ms = compiled(breaks), compiled(share_ms)


@compiled
def due_ms(request: Records) -> float:
    """When a decode's next token would be late."""
    if request.slo_kind == GAP:
        due: float = request.last_token_ms + request.token_slo_ms
    else:
        due = ahead_due_ms(request, LEAD_TOKENS)
    return due


@compiled
def joining_due_ms(request: Records) -> float:
    """The same where it may wait for other decodes to go on with."""
    if request.slo_kind == GAP:
        return due_ms(request)
    return ahead_due_ms(request, KEPT_TOKENS)


@compiled
def ahead_due_ms(request: Records, lead_tokens: float) -> float:
    """When a mean's next token is due, so many tokens ahead of its SLO or on the way there."""
    lead = min(lead_tokens, LEAD_STEP * request.generated_tokens)
    due: float = request.first_token_ms + (request.generated_tokens - lead) * request.token_slo_ms
    return due


@compiled
def first_margin_ms(ttft_slo_ms: float, setup: Records) -> float:
    """Correction.first_margin_ms."""
    margin_ms: float = min(setup.ttft_margin_ms, MOST_OF_TTFT * ttft_slo_ms)
    return margin_ms


@compiled
def first_risk(excess_ms: float, margin_ms: float) -> float:
    """How likely a first token breaks its promise that is predicted so late, margin included.

    0 where the margin is kept, 1 from a margin beyond the SLO on, straight in between.
    """
    if excess_ms <= SAME_MS:
        return 0.0
    at_risk: float = min(1.0, excess_ms / max(2.0 * margin_ms, 1.0))
    return at_risk


@compiled
def queue_risk(prefill_ms: float, first_token_ms: float, setup: Records) -> float:
    """How many of those to come will lose their first token to a queue so long.

    First come, first served: whoever comes before the queue is down to what their SLO has room
    for. So prompts whose own promise is broken still press, by those behind them. Nobody knows
    the class of those to come: they are taken to be promised the tightest of those present.
    """
    late_ms = prefill_ms + first_margin_ms(first_token_ms, setup) - first_token_ms
    lost: float = setup.arrivals_per_s * max(0.0, late_ms) / 1e3
    return lost


@compiled
def stream_risk(request: Records, excess_ms: float, margin_ms: float, fastest_ms: float) -> float:
    """The same of a stream.

    A gap that is a margin beyond its SLO is lost. A mean that is behind is made good by later
    tokens, as far as the engine can give them faster, and lost if the answer ends before: at any
    token, as likely as answers of the assumed length do. So nobody is given up, however late.
    """
    if excess_ms <= SAME_MS:
        return 0.0
    if request.slo_kind == GAP:
        lost: float = min(1.0, excess_ms / max(2.0 * margin_ms, 1.0))
    else:
        behind_tokens = excess_ms / max(request.token_slo_ms - fastest_ms, 1.0)
        lost = 1.0 - math.exp(-behind_tokens / request.answer_tokens)
    return lost


@compiled
def note_first(request: Records, token_ms: float) -> None:
    """Its first token is out: what e2e leaves for the others is known now."""
    request.first_token_ms = token_ms
    if request.slo_kind == E2E:
        request.token_slo_ms = _share_ms(request)


@compiled
def note_broken(request: Records, token_ms: float) -> None:
    """Of an engine's own state, before the token is noted: is a promise broken by it?"""
    if _breaks(request, token_ms):
        request.broken = 1
        request.token_slo_ms = max(request.token_slo_ms, request.lost_due_ms)


@compiled
def tightest_ms(holding_ms: float, all_ms: float) -> float:
    """The least time per token among promises that hold; among all where every one is broken."""
    return all_ms if holding_ms == math.inf else holding_ms
