"""The nouns that every room shares: frozen, slotted, with units in their names."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum

# Times closer than a nanosecond are the same time: it keeps rounding out of the decisions.
SAME_MS = 1e-6


class Source(StrEnum):
    """Where a row's numbers come from. Never mixed silently."""

    MEASURED = "measured"
    MODELLED = "modelled"
    IMPORTED = "imported"


class Origin(StrEnum):
    """How an answer was reached from a table, from best to worst."""

    MEASURED = "measured"
    INTERPOLATED = "interpolated"
    EXTRAPOLATED = "extrapolated"


@dataclass(frozen=True, slots=True)
class StepShape:
    """What one engine step holds, as far as its cost is concerned.

    A batch is (C, its context, B, sum of contexts), never one mean context:
    keyed on that, mixed batches are 6-17 % wrong (design/table.md).

    Attributes:
        prefill_tokens: C, new prompt tokens of all chunks in the step.
        prefill_context_tokens: tokens of those requests already in the KV cache.
        decode_requests: B, requests that decode one token each.
        decode_context_tokens: KV tokens of the B requests together, before this step.
        prefill_pairs: (query, key) pairs that the chunks attend, the sum over chunks of
            c * (k + (c + 1) / 2). Left at None for a single chunk, where it follows from
            C and its context; give it for a step with several chunks.

    Raises:
        ValueError: one of the counts is below 0.
    """

    prefill_tokens: int = 0
    prefill_context_tokens: int = 0
    decode_requests: int = 0
    decode_context_tokens: int = 0
    prefill_pairs: float | None = None

    def __post_init__(self) -> None:
        for name in (
            "prefill_tokens",
            "prefill_context_tokens",
            "decode_requests",
            "decode_context_tokens",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, found {getattr(self, name)}")
        if self.prefill_pairs is None:
            pairs = chunk_pairs(self.prefill_tokens, self.prefill_context_tokens)
            object.__setattr__(self, "prefill_pairs", pairs)

    @property
    def tokens(self) -> int:
        """New tokens of the step: what its GEMMs see."""
        return self.prefill_tokens + self.decode_requests


def chunk_pairs(chunk_tokens: float, context_tokens: float) -> float:
    """(query, key) pairs that one causal chunk attends: c * (k + (c + 1) / 2)."""
    return chunk_tokens * (context_tokens + (chunk_tokens + 1) / 2)


class Phase(StrEnum):
    """Where a request stands in its life."""

    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True, slots=True)
class Knobs:
    """The four settings that BEAM chooses together.

    Attributes:
        clock_mhz: locked SM clock of all the replica's GPUs; the highest stands for unlocked,
            and 0 for it where no table tells the clocks.
        chunk_tokens: tokens of one engine step, decodes included (vLLM's
            max_num_scheduled_tokens).
        microbatches: into how many pipeline microbatches the decodes are split, 1..pp.
        pace_ms: how long a ready decode batch may be held back at most; it is never held
            past the moment at which one of its tokens would be late.
    """

    clock_mhz: int
    chunk_tokens: int
    microbatches: int = 1
    pace_ms: float = 0.0


class StreamKind(StrEnum):
    """What is promised of the tokens after the first."""

    GAP = "gap"  # every gap between two tokens, or a stated share of them
    TPOT = "tpot"  # the mean time per token: a late one is made good by earlier ones
    E2E = "e2e"  # the whole request


# Where nobody says how long an answer will be, an e2e promise is planned for this many tokens.
ASSUMED_ANSWER_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Slo:
    """What one request was promised: its first token, and one kind of streaming.

    Attributes:
        ttft_ms: from arrival to first token.
        tbt_ms: between two tokens; 200 where no other kind is given, None where one is.
        tpot_ms: mean time per token after the first (DistServe, MLPerf).
        e2e_ms: from arrival to the last token.
        tbt_share: of a request's gaps that must be within tbt_ms.
        answer_tokens: how long an answer e2e_ms is planned for.
        least_tokens_per_s: how fast its tokens shall come at least. This and the next are limits
            on saving, no promises that goodput counts: where even the fastest setting is slower,
            nothing is lost.
        max_slowdown: how many times as long it may take as at the fastest setting.

    Raises:
        ValueError: a time, a share or a limit that is none, or two kinds of streaming at once.
    """

    ttft_ms: float = 1000.0
    tbt_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None
    tbt_share: float = 1.0
    answer_tokens: int = ASSUMED_ANSWER_TOKENS
    least_tokens_per_s: float | None = None
    max_slowdown: float | None = None

    def __post_init__(self) -> None:
        given = [ms for ms in (self.tbt_ms, self.tpot_ms, self.e2e_ms) if ms is not None]
        if len(given) > 1:
            raise ValueError("an SLO has one kind of streaming: tbt_ms, tpot_ms or e2e_ms")
        if not given:
            object.__setattr__(self, "tbt_ms", 200.0)
            given = [200.0]
        if not (self.ttft_ms > 0.0 and given[0] > 0.0):
            raise ValueError(f"an SLO is a time above 0, found {self.ttft_ms} and {given[0]} ms")
        if not 0.0 < self.tbt_share <= 1.0:
            raise ValueError(f"tbt_share is above 0 and at most 1, found {self.tbt_share}")
        if not self.answer_tokens >= 1:
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
        """The same with these in its place; another kind of streaming replaces its own."""
        if tbt_ms is tpot_ms is e2e_ms is None:
            tbt_ms, tpot_ms, e2e_ms = self.tbt_ms, self.tpot_ms, self.e2e_ms
        return Slo(
            self.ttft_ms if ttft_ms is None else ttft_ms,
            tbt_ms,
            tpot_ms,
            e2e_ms,
            self.tbt_share if tbt_share is None else tbt_share,
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


@dataclass(frozen=True, slots=True)
class Rules:
    """The composer's rules, each of which can be switched off (design/control.md).

    Attributes:
        just_in_time: issue a step only when the first stage is about to be free.
        ride_along: while there is prefill, ready decodes ride in every chunk step; off, decodes
            are split into microbatches there too.
        give_way: of those, decodes that will be in time in the step after it too leave their
            places to prompts, but for a fair share of each step; off, all ride.
        late_cuts_chunk: a chunk that would make a decode late is cut to what is in time; where
            nothing is, the decodes go ahead of it alone.
        pace: hold ready decodes, and merge them, until the earliest is due.
        lead_ms: how long before the first stage is free a step is issued.
        min_chunk_tokens: room for prefill that a step keeps beside all running decodes.
    """

    just_in_time: bool = True
    ride_along: bool = True
    give_way: bool = True
    late_cuts_chunk: bool = True
    pace: bool = True
    lead_ms: float = 2.0
    min_chunk_tokens: int = 32

    @classmethod
    def vanilla(cls) -> "Rules":
        """Plain vLLM: every rule off, its queue filled as soon as it has room."""
        return cls(False, False, False, False, False, min_chunk_tokens=0)


@dataclass(frozen=True, slots=True)
class Correction:
    """What was learnt while serving: factors on predicted step time, margins, and the load.

    Attributes:
        prefill_scale: measured over predicted latency of steps that carry prefill.
        decode_scale: the same for decode-only steps.
        ttft_margin_ms: predicted TTFT must stay this far inside its SLO.
        tbt_margin_ms: predicted TBT must stay this far inside its SLO.
        arrivals_per_s: requests that come; 0 = nobody is expected.
    """

    prefill_scale: float = 1.0
    decode_scale: float = 1.0
    ttft_margin_ms: float = 20.0
    tbt_margin_ms: float = 15.0
    arrivals_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What does not change while an engine runs.

    Attributes:
        pp: pipeline stages, the only one without a default.
        block_size: tokens of one KV-cache block.
        max_num_seqs: requests that may run at the same time.
        max_batched_tokens: tokens of the largest step that the engine was started for.
        max_model_len: longest prompt and answer together, tokens.
        max_steps_in_flight: vLLM's batch queue: pp (which 0 stands for), or pp + 1 with async
            scheduling.
        host_gap_ms: time per stage and step that no pass covers; about 5.5 ms on a measured
            node (benchmarks/fidelity.py); calibration takes what is missing for a slow table.
        transfer_ms: sending a step's activations from one stage to the next.
        clock_delay_ms: from asking for a clock to running at it; NVML takes 7 to 35 ms.

    Raises:
        ValueError: a count below 1 or a time below 0.
    """

    pp: int
    block_size: int = 16
    max_num_seqs: int = 256
    max_batched_tokens: int = 512
    max_model_len: int = 1 << 30
    max_steps_in_flight: int = 0
    host_gap_ms: float = 0.0
    transfer_ms: float = 0.0
    clock_delay_ms: float = 25.0

    def __post_init__(self) -> None:
        if self.max_steps_in_flight == 0:
            object.__setattr__(self, "max_steps_in_flight", self.pp)
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name.endswith("_ms") else 1
            if not value >= least:
                raise ValueError(f"{field.name} must be {least} or more, found {value}")


@dataclass(frozen=True, slots=True)
class RequestState:
    """One request as the engine sees it.

    Attributes:
        request_id: the engine's name for it.
        prompt_tokens: tokens of its prompt.
        arrival_ms: when it arrived, on the snapshot's time axis.
        slo: what it was promised.
        computed_tokens: tokens with a place in the KV cache, those of issued steps included.
        generated_tokens: tokens it has been given so far.
        cached_tokens: tokens that a prefix cache holds; computed on admission as far as they
            fill KV blocks, but for the last one of prompt and answer.
        first_token_ms: when it got its first token.
        last_token_ms: when it got its latest token.
        steps_ahead: steps that have to come back until none in flight holds anything of it;
            a preempted request is passed over until then.
        unheld_tokens: of the cached ones, those in KV blocks that no request ahead of it in
            the engine's order holds: admission takes these from the free blocks.
        broken: a promise to it is broken for good: goodput counts it no more.
    """

    request_id: str
    prompt_tokens: int
    arrival_ms: float
    slo: Slo = Slo()
    computed_tokens: int = 0
    generated_tokens: int = 0
    cached_tokens: int = 0
    first_token_ms: float | None = None
    last_token_ms: float | None = None
    steps_ahead: int = 0
    unheld_tokens: int = 0
    broken: bool = False

    @property
    def pending_tokens(self) -> int:
        """Tokens still to be computed: 1 for a ready decode, 0 while its step is in flight."""
        return self.prompt_tokens + self.generated_tokens - self.computed_tokens

    @property
    def phase(self) -> Phase:
        """Waiting, prefilling (also after a preemption) or decoding."""
        if self.computed_tokens == 0:
            return Phase.WAITING
        if self.generated_tokens > 0 and self.pending_tokens <= 1:
            return Phase.DECODE
        return Phase.PREFILL


@dataclass(frozen=True, slots=True)
class StepInFlight:
    """A step that was issued and has not come back.

    Attributes:
        finish_ms: when its tokens are expected.
        request_ids: the requests that get a token then (decodes, and prompts whose last
            chunk is in the step).
    """

    finish_ms: float
    request_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The engine at one moment: all that a decision depends on.

    Attributes:
        now_ms: the moment; all times of the snapshot are on this axis.
        limits: what does not change.
        knobs: the settings in force (clock_mhz is the one asked for last).
        running: admitted requests, in the engine's order.
        waiting: requests not admitted, first come first.
        in_flight: issued steps, oldest first.
        stage_free_ms: for each stage, when it finishes the last step issued so far; all of
            them free by default.
        free_blocks: KV-cache blocks that nobody holds, those included that a prefix cache
            could give back.
        clock_since_ms: when knobs.clock_mhz was asked for.
        previous_clock_mhz: the clock that GPUs run at until the change took effect;
            None where knobs.clock_mhz is in effect.
        correction: what calibration learnt so far.
    """

    now_ms: float
    limits: EngineLimits
    knobs: Knobs
    running: tuple[RequestState, ...] = ()
    waiting: tuple[RequestState, ...] = ()
    in_flight: tuple[StepInFlight, ...] = ()
    stage_free_ms: tuple[float, ...] = ()
    free_blocks: int = 1 << 30
    clock_since_ms: float = float("-inf")
    previous_clock_mhz: int | None = None
    correction: Correction = Correction()

    def __post_init__(self) -> None:
        if not self.stage_free_ms:
            object.__setattr__(self, "stage_free_ms", (float("-inf"),) * self.limits.pp)


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
