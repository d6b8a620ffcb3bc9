"""What vLLM does not keep of a request, and what it is slow to tell.

Most steps are the one before once more: the same decodes, a token each. Such decodes form a
cohort, and what is the same for all of them (when the last token came, how many came) is noted
once, not once for each: the engine's thread pays for every look at a request. A request that
goes its own way, by an ending, a preemption or a step with others, ends its cohort.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any, Self

from beam_runtime.engines.vllm.tally import ClassTally, Tally
from beam_runtime.types import Forecast, Slo, StreamKind


@dataclass(slots=True, eq=False)
class Followed:
    """One request.

    Attributes:
        tokens: prompt and answer as far as they were given out; a cohort may owe some.
        last_token_ms: likewise.
        longest_gap_ms: likewise, between two of its tokens.
        late_gaps: over what its SLO leaves for a token.
        energy_j: likewise, its share of its steps' active energy, by the tokens it had in them.
        prompt_tokens: of ``tokens``.
        slo_class: what its SLO is called.
        planned: its SLO as steps are planned for it (search/keepable.py).
        tally: the counters of that class.
        cohort: what it goes with.
    """

    arrival_ms: float
    slo: Slo
    tokens: int = 0
    first_token_ms: float | None = None
    last_token_ms: float | None = None
    longest_gap_ms: float = 0.0
    late_gaps: int = 0
    energy_j: float = 0.0
    prompt_tokens: int = 0
    slo_class: str = "default"
    planned: Slo = field(init=False)
    tally: ClassTally = field(default_factory=ClassTally)
    cohort: "Cohort | None" = None

    def __post_init__(self) -> None:
        self.planned = self.slo

    def settled(self) -> Self:
        """With all that its cohort owes it."""
        if self.cohort is not None:
            self.cohort.settle()
        return self

    def leave(self) -> None:
        """It goes its own way from here on."""
        if self.cohort is not None:
            self.cohort.dissolve()

    def note_late(self, gap_ms: float) -> None:
        """Count a gap, if it is over what the SLO leaves for a token."""
        if gap_ms > self.slo.token_ms:
            self.late_gaps += 1
            self.tally.late_gaps += 1
            if self.slo.tbt_share == 1.0:
                self.note_lost()

    def note_first(self, ttft_ms: float) -> None:
        """Count its first token, and whether that came in time."""
        self.tally.first(ttft_ms, self.prompt_tokens, self.slo)
        if ttft_ms > self.slo.ttft_ms:
            self.note_lost()

    def note_lost(self) -> None:
        """Its promise is broken for good."""
        if self.planned.lost_due_ms is not None:
            self.planned = replace(
                self.planned, due_every_ms=self.planned.lost_due_ms, lost_due_ms=None
            )

    def _streamed_late(self, tpot_ms: float | None) -> bool:
        """Whether the promise for the tokens after the first is broken, by its kind."""
        slo = self.slo
        if tpot_ms is None or self.last_token_ms is None:
            return False
        match slo.kind:
            case StreamKind.GAP:
                gaps = self.tokens - self.prompt_tokens - 1
                return self.late_gaps > (1.0 - slo.tbt_share) * gaps
            case StreamKind.TPOT:
                return tpot_ms > slo.stream_ms
            case StreamKind.E2E:
                return self.last_token_ms - self.arrival_ms > slo.stream_ms

    def done(self) -> dict[str, Any]:
        """It has its last token: count it; returns what the decision log says of it."""
        self.settled()
        tally, slo = self.tally, self.slo
        generated = self.tokens - self.prompt_tokens
        first_ms, last_ms = self.first_token_ms, self.last_token_ms
        ttft_ms = tpot_ms = None
        if first_ms is not None and last_ms is not None:
            ttft_ms = first_ms - self.arrival_ms
            if generated > 1:
                tpot_ms = (last_ms - first_ms) / (generated - 1)
                tally.tpot_ms.add(tpot_ms)
        late = ttft_ms is None or ttft_ms > slo.ttft_ms or self._streamed_late(tpot_ms)
        tally.completions += 1
        tally.late_completions += late
        tally.slow_completions += tpot_ms is not None and tpot_ms > slo.token_ms
        tally.energy_j.add(self.energy_j)
        return {
            "slo_class": self.slo_class,
            "prompt_tokens": self.prompt_tokens,
            "generated_tokens": generated,
            "ttft_ms": ttft_ms,
            "tpot_ms": tpot_ms,
            "longest_gap_ms": self.longest_gap_ms,
            "late": late,
            "active_energy_j": self.energy_j,
        }


class Cohort:
    """Decodes that were together in the latest step of each of them.

    Args:
        names: their requests, in the order of the step.
        known: the same requests.
        computed_tokens: of all of them, this step included.

    Attributes:
        whole: nobody has left; once False it stays so.
        last_ms: when their latest tokens came; None = not together.
        tbt_ms: the tightest TBT SLO among them.
        due_every_ms: the tightest as steps are planned for them.
        by_gap: every one of them was promised its gaps.
        energy_j: of their steps together, not yet shared out.
    """

    __slots__ = (
        "_longest_ms",
        "_owed",
        "_tallies",
        "by_gap",
        "computed_tokens",
        "due_every_ms",
        "energy_j",
        "known",
        "last_ms",
        "names",
        "tbt_ms",
        "whole",
    )  # fmt: skip

    def __init__(self, names: tuple[str, ...], known: list[Followed], computed_tokens: int) -> None:
        for one in known:
            one.leave()
            one.cohort = self
        self.names = names
        self.known = known
        self.computed_tokens = computed_tokens
        self.whole = True
        self.last_ms: float | None = None
        self.tbt_ms = min([one.slo.token_ms for one in known])
        self.due_every_ms = min([one.planned.due_every_ms or one.planned.token_ms for one in known])
        self.by_gap = all(one.slo.kind is StreamKind.GAP for one in known)
        self.energy_j = 0.0
        self._owed = 0
        self._longest_ms = 0.0
        by_class = Counter(one.slo_class for one in known)
        found = {one.slo_class: one.tally for one in known}
        self._tallies = [(found[name], count) for name, count in by_class.items()]

    def token(self, at_ms: float, expected: Forecast | None, tally: Tally) -> None:
        """Each has a token more. Once per step: written for speed."""
        gap_ms = 0.0 if self.last_ms is None else at_ms - self.last_ms
        self.last_ms = at_ms
        self._owed += 1
        self._longest_ms = max(self._longest_ms, gap_ms)
        tally.gap(gap_ms, at_ms, expected)
        for one, count in self._tallies:
            one.generated_tokens += count
            one.gaps += count
            one.gap_ms.add(gap_ms, count)
        if gap_ms > self.tbt_ms:
            for request in self.known:
                request.note_late(gap_ms)

    def settle(self) -> None:
        """Note at each request what was noted here."""
        owed, self._owed = self._owed, 0
        if owed:
            longest_ms, self._longest_ms = self._longest_ms, 0.0
            for one in self.known:
                one.tokens += owed
                one.last_token_ms = self.last_ms
                one.longest_gap_ms = max(one.longest_gap_ms, longest_ms)
        if self.energy_j:
            each_j, self.energy_j = self.energy_j / len(self.known), 0.0
            for one in self.known:
                one.energy_j += each_j

    def dissolve(self) -> None:
        """They are not together any more."""
        self.settle()
        self.whole = False
        for one in self.known:
            one.cohort = None
