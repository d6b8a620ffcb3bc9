"""What a request was promised: its first token, and one kind of streaming."""

import math
from dataclasses import dataclass, field
from enum import StrEnum
from numbers import Real


class StreamKind(StrEnum):
    """What is promised of the tokens after the first."""

    GAP = "gap"  # every gap between two tokens, or a stated share of them
    TPOT = "tpot"  # the mean time per token: a late one is made good by earlier ones
    E2E = "e2e"  # the whole request


# Where nobody says how long an answer will be, an e2e promise is planned for this many tokens.
ASSUMED_ANSWER_TOKENS = 256


_NUMBERS = (
    "ttft_ms", "tbt_ms", "tpot_ms", "e2e_ms", "tbt_share", "answer_tokens",
    "least_tokens_per_s", "max_slowdown",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Slo:
    """What one request was promised: its first token, and one kind of streaming.

    Attributes:
        ttft_ms: from arrival to first token.
        tbt_ms: between two tokens; 200 where no other kind is given, None where one is.
        tpot_ms: mean time per token after the first (DistServe, MLPerf).
        e2e_ms: from arrival to the last token.
        tbt_share: of a request's gaps that must be within tbt_ms; 1 with any other kind.
        answer_tokens: how long an answer is taken to be: e2e_ms is planned for it, and by tpot_ms
            and e2e_ms a stream that is behind has about so many tokens to make it good.
        least_tokens_per_s: how fast its tokens shall come at least. This and the next are limits
            on saving, no promises that goodput counts: where even the fastest setting is slower,
            nothing is lost.
        max_slowdown: how many times as long it may take as at the fastest setting.
        due_every_ms: when its tokens are due where no setting keeps its promise, which then buys
            nothing (search/keepable.py); set by BEAM.
        lost_due_ms: the same once a gap is late, where most others are promised longer ones.

    Raises:
        TypeError: no number.
        ValueError: a time, a share or a limit that is none, a share of gaps that nothing is
            promised of, or two kinds of streaming at once.
    """

    ttft_ms: float = 1000.0
    tbt_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None
    tbt_share: float = 1.0
    answer_tokens: int = ASSUMED_ANSWER_TOKENS
    least_tokens_per_s: float | None = None
    max_slowdown: float | None = None
    due_every_ms: float | None = field(default=None, compare=False)
    lost_due_ms: float | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for name in _NUMBERS:
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
                raise TypeError(f"{name} is a number, found {value!r:.60}")
        given = [ms for ms in (self.tbt_ms, self.tpot_ms, self.e2e_ms) if ms is not None]
        if len(given) > 1:
            raise ValueError("an SLO has one kind of streaming: tbt_ms, tpot_ms or e2e_ms")
        if not given:
            object.__setattr__(self, "tbt_ms", 200.0)
            given = [200.0]
        if not (self.ttft_ms > 0.0 and given[0] > 0.0):
            raise ValueError(f"an SLO is a time above 0, found {self.ttft_ms} and {given[0]} ms")
        if given[0] == math.inf:  # nobody could be paced by it
            raise ValueError(
                "a stream that is promised nothing has a long time, not an infinite one"
            )
        if not 0.0 < self.tbt_share <= 1.0:
            raise ValueError(f"tbt_share is above 0 and at most 1, found {self.tbt_share}")
        if self.tbt_ms is None and self.tbt_share < 1.0:
            raise ValueError(
                f"tbt_share is of gaps within tbt_ms, found {self.tbt_share} with {self.kind}_ms"
            )
        if not 1 <= self.answer_tokens < math.inf:
            raise ValueError(f"answer_tokens is 1 or more, found {self.answer_tokens}")
        floor, slowdown = self.least_tokens_per_s, self.max_slowdown
        if floor is not None and not 0.0 < floor < math.inf:
            raise ValueError(f"least_tokens_per_s is a number above 0, found {floor}")
        if slowdown is not None and not 1.0 <= slowdown < math.inf:
            raise ValueError(f"max_slowdown is a factor of 1 or more, found {slowdown}")

    def revised(
        self,
        *,
        ttft_ms: float | None = None,
        tbt_ms: float | None = None,
        tpot_ms: float | None = None,
        e2e_ms: float | None = None,
        tbt_share: float | None = None,
        answer_tokens: int | None = None,
        least_tokens_per_s: float | None = None,
        max_slowdown: float | None = None,
    ) -> "Slo":
        """The same with these in its place; another kind of streaming replaces its own.

        A share of gaps ends with the promise of gaps.
        """
        if tbt_ms is tpot_ms is e2e_ms is None:
            tbt_ms, tpot_ms, e2e_ms = self.tbt_ms, self.tpot_ms, self.e2e_ms
        if tbt_share is None:
            tbt_share = 1.0 if tbt_ms is None else self.tbt_share
        return Slo(
            self.ttft_ms if ttft_ms is None else ttft_ms,
            tbt_ms,
            tpot_ms,
            e2e_ms,
            tbt_share,
            self.answer_tokens if answer_tokens is None else answer_tokens,
            self.least_tokens_per_s if least_tokens_per_s is None else least_tokens_per_s,
            self.max_slowdown if max_slowdown is None else max_slowdown,
        )

    @property
    def kind(self) -> StreamKind:
        """Which streaming part is meant."""
        if self.tbt_ms is not None:
            return StreamKind.GAP
        return StreamKind.TPOT if self.tpot_ms is not None else StreamKind.E2E

    @property
    def stream_ms(self) -> float:
        """The target of its kind."""
        return self.tbt_ms or self.tpot_ms or self.e2e_ms or 0.0  # one of them is above 0

    @property
    def token_ms(self) -> float:
        """What it leaves for each token after the first, before that one is out."""
        if self.e2e_ms is None:
            return self.stream_ms
        left_ms = max(self.e2e_ms - self.ttft_ms, 0.5 * self.e2e_ms)
        return left_ms / max(self.answer_tokens - 1, 1)
