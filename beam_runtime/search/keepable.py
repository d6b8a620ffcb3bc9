"""Promises as streams are served: what an engine can keep at all, and how long answers are.

A gap that no cut can keep would still cut every chunk to the least, and prompts starve for
nothing (design/control.md). Means are no such case: their prompts go first. A promise of the
whole answer is shared among its tokens, and nobody says how many come: those seen before do.
"""

from collections import deque
from dataclasses import replace

from beam_runtime.printable import in_ms
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import (
    ASSUMED_ANSWER_TOKENS,
    EngineLimits,
    Rules,
    Slo,
    StepShape,
    StreamKind,
)

# Beside a token a gap has to leave room for a small chunk.
_BESIDE_TOKENS = 2 * Rules().min_chunk_tokens
# Answers are taken to be as long as all but one in twenty of the latest; as long as this until
# some were seen: who is too early loses nothing.
_LATEST, _SOME, _LONG_TOKENS, _SHARE = 512, 20, 1024, 0.95


class Keepable:
    """What one engine can keep by its table.

    Args:
        cost: what its steps cost.
        limits: of the engine.
    """

    def __init__(self, cost: StepCost, limits: EngineLimits) -> None:
        def least_ms(step: StepShape) -> float:
            return limits.pp * (float(cost.latency_ms(step).min()) + limits.host_gap_ms)

        self._least_gap_ms = least_ms(StepShape(_BESIDE_TOKENS, decode_requests=1))
        self._least_mean_ms = least_ms(StepShape(decode_requests=1))
        self._answers: deque[int] = deque(maxlen=_LATEST)
        self._answer_tokens: int | None = None  # not known any more

    def answered(self, tokens: int) -> None:
        """An answer is complete."""
        self._answers.append(tokens)
        self._answer_tokens = None

    @property
    def answer_tokens(self) -> int:
        """How long an answer is taken to be."""
        if self._answer_tokens is None:
            by_length = sorted(self._answers)
            some = len(by_length) >= _SOME
            likely = by_length[int(_SHARE * (len(by_length) - 1))] if some else _LONG_TOKENS
            self._answer_tokens = max(likely, 2)
        return self._answer_tokens

    def hopeless(self, slo: Slo) -> str:
        """Why no setting keeps this promise of a stream, in words; empty where one may."""
        gap = slo.kind is StreamKind.GAP
        least_ms = self._least_gap_ms if gap else self._least_mean_ms
        if least_ms <= slo.token_ms:
            return ""
        beside = f" beside {_BESIDE_TOKENS} prompt tokens" if gap else ""
        return (
            f"a token{beside} takes {in_ms(least_ms)} at the fastest clock, promised are "
            f"{in_ms(slo.token_ms)}"
        )

    def served(self, slo: Slo, default: Slo) -> Slo:
        """The promise as its stream is served.

        A gap without hope is due as most others are; one that may be kept is once it was late: a
        few tight ones had cut everybody's chunks for as long as they lasted. A promise of the
        whole answer is for as many tokens as answers have, where its own are not told.
        """
        if slo.kind is StreamKind.E2E and slo.answer_tokens == ASSUMED_ANSWER_TOKENS:
            return replace(slo, answer_tokens=self.answer_tokens)
        if slo.kind is not StreamKind.GAP:
            return slo
        others_ms = max(default.token_ms, self._least_gap_ms)
        if self.hopeless(slo):
            return replace(slo, due_every_ms=others_ms)
        return replace(slo, lost_due_ms=others_ms) if slo.token_ms < others_ms else slo
