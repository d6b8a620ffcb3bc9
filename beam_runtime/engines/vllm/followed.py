"""What vLLM does not keep of a request, and what it is slow to tell.

Most steps are the one before once more: the same decodes, a token each. Such decodes form a
cohort, and what is the same for all of them (when the last token came, how many came) is noted
once, not once for each: the engine's thread pays for every look at a request. A request that
goes its own way, by an ending, a preemption or a step with others, ends its cohort.
"""

from dataclasses import dataclass
from typing import Self

from beam_runtime.engines.vllm.tally import Tally
from beam_runtime.types import Forecast, Slo


@dataclass(slots=True, eq=False)
class Followed:
    """One request.

    Attributes:
        tokens: prompt and answer as far as they were given out; a cohort may owe some.
        last_token_ms: likewise.
        cohort: what it goes with.
    """

    arrival_ms: float
    slo: Slo
    tokens: int = 0
    first_token_ms: float | None = None
    last_token_ms: float | None = None
    cohort: "Cohort | None" = None

    def settled(self) -> Self:
        """With all that its cohort owes it."""
        if self.cohort is not None:
            self.cohort.settle()
        return self

    def leave(self) -> None:
        """It goes its own way from here on."""
        if self.cohort is not None:
            self.cohort.dissolve()


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
    """

    __slots__ = (
        "_foretold", "_foretold_by", "_foretold_ms", "_owed", "computed_tokens", "known",
        "last_ms", "names", "tbt_ms", "whole",
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
        self._owed = 0
        self._foretold_by: Forecast | None = None
        self._foretold, self._foretold_ms = 0, 0.0

    def token(self, at_ms: float, expected: Forecast | None, tally: Tally) -> None:
        """Each has a token more. Once per step: written for speed."""
        gap_ms = 0.0 if self.last_ms is None else at_ms - self.last_ms
        self.last_ms = at_ms
        self._owed += 1
        if expected is not self._foretold_by:
            self._foretell(expected)
        count, foretold = len(self.known), self._foretold
        tally.tbts += count
        tally.tbt_ms += count * gap_ms
        tally.predicted_tbts += foretold
        tally.predicted_actual_tbt_ms += foretold * gap_ms
        tally.predicted_tbt_ms += self._foretold_ms
        if gap_ms > self.tbt_ms:
            tally.late_tbts += sum([gap_ms > one.slo.token_ms for one in self.known])

    def settle(self) -> None:
        """Note at each request what was noted here."""
        owed, self._owed = self._owed, 0
        if owed:
            for one in self.known:
                one.tokens += owed
                one.last_token_ms = self.last_ms

    def dissolve(self) -> None:
        """They are not together any more."""
        self.settle()
        self.whole = False
        for one in self.known:
            one.cohort = None

    def _foretell(self, expected: Forecast | None) -> None:
        """How many have a forecast of their longest gap, and these together."""
        worst_ms = {} if expected is None else expected.worst_tbt_ms
        gaps_ms = [worst_ms[name] for name in self.names if name in worst_ms]
        self._foretold, self._foretold_ms = len(gaps_ms), sum(gaps_ms)
        self._foretold_by = expected
