"""The knobs that were chosen, what is expected of them, and what else was looked at."""

from collections.abc import Mapping
from dataclasses import dataclass

from beam_runtime.types.knobs import Knobs
from beam_runtime.types.same_time import SAME_MS


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the emulator expects of one setting of the knobs.

    Attributes:
        ttft_ms: predicted TTFT of every request that has no token yet; infinite for one
            that cannot be admitted before another request ends.
        worst_tbt_ms: the longest gap before a token, for every request that gets a second.
        ttft_excess_ms: worst predicted TTFT + margin - SLO; at or below 0 is kept.
        tbt_excess_ms: the same for the tokens after the first, by the SLO's kind.
        ttft_worst: the request it belongs to, None where no request waits.
        tbt_worst: the same for TBT.
        broken: requests expected to lose a promise they still have: 0 where all margins are
            kept, and about 1 for each that is past saving (emulator/deadlines.py).
        horizon_ms: how far the emulator played.
        active_energy_j: all passes of all stages.
        idle_energy_j: every GPU-second that no pass covers.
        settlement_j: what makes candidates comparable: the price of tokens and time that
            this one leaves over against the common horizon.
        prompt_tokens: of prompts, computed within the horizon.
        output_tokens: of answers, within the horizon.
    """

    ttft_ms: Mapping[str, float]
    worst_tbt_ms: Mapping[str, float]
    ttft_excess_ms: float
    tbt_excess_ms: float
    ttft_worst: str | None
    tbt_worst: str | None
    broken: float
    horizon_ms: float
    active_energy_j: float
    idle_energy_j: float
    settlement_j: float = 0.0
    prompt_tokens: float = 0.0
    output_tokens: float = 0.0

    @property
    def energy_j(self) -> float:
        """What candidates are compared by: passes, idling, and equal work."""
        return self.active_energy_j + self.idle_energy_j + self.settlement_j

    @property
    def energy_per_token_j(self) -> float | None:
        """Passes and idling over the tokens of prompts and answers; None without a token."""
        tokens = self.prompt_tokens + self.output_tokens
        return (self.active_energy_j + self.idle_energy_j) / tokens if tokens else None

    @property
    def feasible(self) -> bool:
        """Whether every request's SLO is kept, margin included."""
        return max(self.ttft_excess_ms, self.tbt_excess_ms) <= SAME_MS


@dataclass(frozen=True, slots=True)
class Alternative:
    """A setting that was looked at and not taken.

    Attributes:
        knobs: the setting.
        energy_j: its predicted energy, comparable with the decision's forecast.
        refused: why, in words.
        request_id: the request whose SLO it would have broken, if that was the reason.
    """

    knobs: Knobs
    energy_j: float
    refused: str
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """The knobs to use from now on, and why.

    Attributes:
        knobs: the setting.
        forecast: what is expected of it.
        why: one sentence.
        alternatives: what else was looked at, the cheapest first.
        decided_ms: the snapshot's time.
    """

    knobs: Knobs
    forecast: Forecast
    why: str
    alternatives: tuple[Alternative, ...] = ()
    decided_ms: float = 0.0
