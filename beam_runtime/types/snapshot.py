"""The engine at one moment: the form for people, JSON and tests.

BEAM itself holds it in columns (emulator/state.py).
"""

import numbers
from dataclasses import dataclass, fields
from enum import StrEnum

from beam_runtime.types.knobs import Knobs
from beam_runtime.types.slo import Slo
from beam_runtime.types.step_sizes import size_of

# How many times its TTFT SLO a prompt waits for streams: it never starves. Sooner costs streams,
# later requests that take ever longer (docs/how-it-works.md).
PATIENT_SLOS = 10.0
# The TBT margin where it costs energy alone, in margins: one late step loses all of its decodes.
# What 99.9 % of requests need instead of 99, and a little (Calibration).
WIDER = 1.2
# A first token's margin is what most requests need; of a shorter promise it is at most so much.
MOST_OF_TTFT = 0.3


class Phase(StrEnum):
    """Where a request stands in its life."""

    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True, slots=True)
class Correction:
    """What was learnt while serving: factors on predicted step time, margins, and the load.

    Attributes:
        prefill_scale: measured over predicted latency of steps that carry prefill.
        decode_scale: the same for decode-only steps.
        ttft_margin_ms: predicted TTFT must stay this far inside its SLO.
        tbt_margin_ms: predicted TBT must stay this far inside its SLO.
        arrivals_per_s: requests that come; 0 = nobody is expected.
        prompt_tokens: that such a request has to compute before its first; 0 = unknown.
        decode_tokens_per_s: tokens of answers that they ask for; 0 = unknown.
        prefill_by_size: factors beside prefill_scale, of steps of each size (step_sizes.py); what
            is left out is 1.
        decode_by_size: the same beside decode_scale.
        patience_slos: a prompt that has waited for so many times its TTFT SLO is served as vLLM
            would, whoever is late (control/patience.py).
    """

    prefill_scale: float = 1.0
    decode_scale: float = 1.0
    ttft_margin_ms: float = 20.0
    tbt_margin_ms: float = 15.0
    arrivals_per_s: float = 0.0
    prefill_by_size: tuple[float, ...] = ()
    decode_by_size: tuple[float, ...] = ()
    patience_slos: float = PATIENT_SLOS
    prompt_tokens: float = 0.0
    decode_tokens_per_s: float = 0.0

    @property
    def wide_margin_ms(self) -> float:
        """The TBT margin where a wider one costs nothing but energy."""
        return WIDER * self.tbt_margin_ms

    def first_margin_ms(self, ttft_slo_ms: float) -> float:
        """How much earlier than promised a first token shall be predicted."""
        return min(self.ttft_margin_ms, MOST_OF_TTFT * ttft_slo_ms)

    def scale(self, chunk_tokens: int, decodes: int) -> float:
        """Measured over predicted latency of a step with so many tokens of either."""
        scale, by_size = self.decode_scale, self.decode_by_size
        if chunk_tokens > 0:
            scale, by_size = self.prefill_scale, self.prefill_by_size
        size = size_of(chunk_tokens, decodes) if by_size else 0
        return scale * by_size[size] if size < len(by_size) else scale


_FROM_ZERO = ("_ms", "_threshold", "_adaptive")  # ends of names of limits that may be 0
# The costs of a step of any size are looked up: so many, at each clock, still have room in memory.
_OF_A_STEP, _LARGEST_STEP = ("max_batched_tokens", "max_num_seqs"), 1 << 22
_MOST = 1 << 40


def _kind(name: str, value: object) -> tuple[str, bool]:
    """What a limit of this name is, and whether the value is one."""
    if name.endswith("_adaptive"):
        return "True or False", isinstance(value, bool)
    if isinstance(value, bool):  # an int to Python
        value = None
    if name.endswith("_ms"):
        return "a number", isinstance(value, numbers.Real)
    return "a whole number", isinstance(value, numbers.Integral)


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What does not change while an engine runs.

    Attributes:
        pp: pipeline stages, the only one without a default.
        block_size: tokens of one KV-cache block.
        max_num_seqs: requests that may run at the same time.
        max_batched_tokens: tokens of the largest step that the engine was started for.
        max_model_len: longest prompt and answer together, tokens.
        long_prefill_token_threshold: most tokens of one prompt in a step where others are there,
            as vLLM has it; 0 = as many as the step holds.
        long_prefill_token_threshold_adaptive: no fewer than the largest step has for each request.
        max_steps_in_flight: vLLM's batch queue: pp (which 0 stands for), or pp + 1 with async
            scheduling.
        host_gap_ms: time per stage and step that no pass covers; about 5.5 ms on a measured
            node (benchmarks/fidelity.py); calibration takes what is missing for a slow table.
        transfer_ms: sending a step's activations from one stage to the next.
        clock_delay_ms: from asking for a clock to running at it; NVML takes 7 to 35 ms.

    Raises:
        TypeError: no number, or a count that is no whole one.
        ValueError: a count below 1, a time below 0, or more than there can be.
    """

    pp: int
    block_size: int = 16
    max_num_seqs: int = 256
    max_batched_tokens: int = 512
    max_model_len: int = 1 << 30
    long_prefill_token_threshold: int = 0
    long_prefill_token_threshold_adaptive: bool = False
    max_steps_in_flight: int = 0
    host_gap_ms: float = 0.0
    transfer_ms: float = 0.0
    clock_delay_ms: float = 25.0

    def __post_init__(self) -> None:
        if self.max_steps_in_flight == 0:
            object.__setattr__(self, "max_steps_in_flight", self.pp)
        for field in fields(self):
            value, least = getattr(self, field.name), int(not field.name.endswith(_FROM_ZERO))
            most = _LARGEST_STEP if field.name in _OF_A_STEP else _MOST
            expected, fits = _kind(field.name, value)
            if not fits:
                raise TypeError(f"{field.name} must be {expected}, found {value!r:.60}")
            if not float(value) >= least:
                raise ValueError(f"{field.name} must be {least} or more, found {value}")
            if float(value) > most:
                raise ValueError(f"{field.name} must be {most} at most, found {value}")

    def pass_within_ms(self, token_ms: float) -> float:
        """A stage's pass may take so long where a token comes round in that time."""
        hops_ms = (self.pp - 1) * self.transfer_ms
        return max(0.0, (token_ms - hops_ms) / self.pp - self.host_gap_ms)


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
