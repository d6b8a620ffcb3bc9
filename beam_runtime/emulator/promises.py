"""What requests were promised, in columns; deadlines.py tells when their tokens are due.

A promise that is broken for good buys nothing more: no clock is raised for it. Its request is
served in its turn, and its tokens stay due, as before or as most others': without that they come
in lumps, and lumps make others late.

Plain Python, for those who need no compiler; deadlines.py compiles what emulators share.
"""

from typing import Any

import numpy as np

from beam_runtime.emulator.state import Records
from beam_runtime.types import SAME_MS, Slo, StreamKind

GAP, TPOT, E2E = range(3)
_KINDS = {StreamKind.GAP: GAP, StreamKind.TPOT: TPOT, StreamKind.E2E: E2E}


def promise(record: Records, slo: Slo) -> None:
    """Write what one request, or each of several, was promised."""
    record["ttft_slo_ms"], record["stream_slo_ms"] = slo.ttft_ms, slo.stream_ms
    record["token_slo_ms"], record["tbt_share"] = slo.due_every_ms or slo.token_ms, slo.tbt_share
    record["lost_due_ms"] = slo.lost_due_ms or 0.0
    record["broken"] |= slo.due_every_ms is not None
    record["slo_kind"], record["answer_tokens"] = _KINDS[slo.kind], slo.answer_tokens
    record["least_tokens_per_s"] = slo.least_tokens_per_s or 0.0
    record["max_slowdown"] = slo.max_slowdown or 0.0


def promised(record: Records) -> Slo:
    """What one request was promised."""
    kind, target_ms = int(record["slo_kind"]), float(record["stream_slo_ms"])
    due_every_ms = float(record["token_slo_ms"])
    return Slo(
        float(record["ttft_slo_ms"]),
        target_ms if kind == GAP else None,
        target_ms if kind == TPOT else None,
        target_ms if kind == E2E else None,
        float(record["tbt_share"]),
        int(record["answer_tokens"]),
        float(record["least_tokens_per_s"]) or None,
        float(record["max_slowdown"]) or None,
        due_every_ms if kind == GAP and due_every_ms != target_ms else None,
        float(record["lost_due_ms"]) or None,
    )


def settle_times(records: Records, now_ms: float) -> None:
    """Of a copy to play on: what nobody timed, and which promises are broken by now.

    A token that nobody timed counts from now on, a first token as if all since were on time.
    """
    last_ms, first_ms = records["last_token_ms"], records["first_token_ms"]
    last_ms[np.isnan(last_ms)] = now_ms
    given = records["generated_tokens"]
    untimed = np.isnan(first_ms) & (given > 0)
    on_time_ms = last_ms - (given - 1) * records["token_slo_ms"]
    first_ms[untimed] = on_time_ms[untimed]
    begun = (records["slo_kind"] == E2E) & (given > 0)
    if begun.any():
        records["token_slo_ms"][begun] = share_ms(records[begun])
    waited_ms = now_ms - records["arrival_ms"]
    records["broken"] |= (given == 0) & (waited_ms > records["ttft_slo_ms"] + SAME_MS)
    ease(records)


def waited_slos(records: Records, now_ms: float) -> float:
    """How long the oldest of those without a first token has waited, in its TTFT SLO."""
    waiting = records[records["generated_tokens"] == 0]
    slos = (now_ms - waiting["arrival_ms"]) / waiting["ttft_slo_ms"]
    return float(slos.max(initial=0.0))


def ease(records: Records) -> None:
    """Gaps that are broken for good: tokens are due as those of most others."""
    lost = (records["broken"] == 1) & (records["lost_due_ms"] > records["token_slo_ms"])
    records["token_slo_ms"][lost] = records["lost_due_ms"][lost]


def tightest_gap_ms(records: Records) -> float:
    """The tightest gap that holds; where all are broken of all, inf without any."""
    gaps = records[records["slo_kind"] == GAP]
    holding = gaps[gaps["broken"] == 0]
    return float((holding if len(holding) else gaps)["token_slo_ms"].min(initial=np.inf))


def share_ms(records: Records) -> Any:
    """What e2e leaves for each token once the first is out: of one request, or of each."""
    left_ms = records["arrival_ms"] + records["stream_slo_ms"] - records["first_token_ms"]
    return np.maximum(left_ms, 1.0) / np.maximum(records["answer_tokens"] - 1, 1)


def breaks(records: Records, token_ms: float) -> Any:
    """Whether a token at that time, which is not noted yet, breaks a promise for good.

    Of one request, or of each. Where a share of gaps may be late nobody is given up: the answer
    may still be long.
    """
    waited_ms, gap_ms = token_ms - records["arrival_ms"], token_ms - records["last_token_ms"]
    first = records["generated_tokens"] == 0
    late_first = first & (waited_ms > records["ttft_slo_ms"] + SAME_MS)
    every_gap = (records["slo_kind"] == GAP) & (records["tbt_share"] == 1.0)
    further = records["generated_tokens"] > 0
    return late_first | (further & every_gap & (gap_ms > records["token_slo_ms"] + SAME_MS))
