"""Online correction: what finished steps say about the table, and how much to keep in hand.

    scale    measured over predicted step time, one factor per kind of step, exponentially
             weighted, held inside [0.5, 2]
    size     what steps of one size take beside that: a table errs by rows
    margin   the error that remains over the last steps, as seen through the present factors: of
             first tokens its 99 % quantile, of streams what lets 99 % of requests keep every
             gap, where gaps are what is promised, by steps as long as the tightest gap leaves
             them. However noise bends the scale, the margin makes up for it
    drift    a window of steps 15 % off the table, three times running: reported, once
    trust    gone where a scale wants to leave its clamp; the controller then falls back
    load     how many requests come per second, over about the last 32, and how many tokens they
             ask for (answer_length.py)

It knows steps, first tokens and arrivals. Why they differ from the table (another kernel, another
tenant, a hot GPU) it does not know.
"""

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import NormalDist

from beam_runtime.control.answer_length import AnswerLength
from beam_runtime.control.calibration_rules import CalibrationRules
from beam_runtime.control.patience import Patience
from beam_runtime.control.step_errors import StepErrors, Window
from beam_runtime.emulator.moment import Moment
from beam_runtime.types import Correction, StepShape, size_of

_GAUSS = NormalDist()
# Streams are lost for lack of margin by as large a share as first tokens for lack of room, and by
# no larger one than this: wider margins take room from prompts (docs/how-it-works.md).
MOST_LOST = 0.2


class StepKind(StrEnum):
    """Kinds of steps that err by factors of their own: other kernels run in them."""

    PREFILL = "prefill-carrying"
    DECODE = "decode-only"

    @classmethod
    def of(cls, shape: StepShape) -> "StepKind":
        """The kind of a step."""
        return cls.PREFILL if shape.prefill_tokens else cls.DECODE


@dataclass(frozen=True, slots=True)
class Drift:
    """Steps of one kind have left the table behind by ``ratio``, measured over predicted."""

    kind: StepKind
    ratio: float

    def __str__(self) -> str:
        return f"{self.kind} steps take {self.ratio:.2f} times what the table says"


class Calibration:
    """Learns a Correction from finished steps and first tokens.

    Args:
        pp: stages that a token passes; one step's error comes back in each of them.
        floor: margins for what no step's error shows (jitter of hosts and clocks): of first tokens
            the table's error comes on top, of streams they are the least; its scales are the start.
        rules: how to learn.
        by_gap: whether a stream is promised its gaps. Where all are promised a mean over their
            answers, the errors of steps make up for each other, and the floor is enough.
    """

    def __init__(
        self,
        pp: int,
        floor: Correction | None = None,
        rules: CalibrationRules | None = None,
        *,
        by_gap: bool = True,
    ) -> None:
        self._pp = pp
        self._by_gap = by_gap
        self._floor = floor or Correction()
        self._rules = rules or CalibrationRules()
        start = {
            StepKind.PREFILL: self._floor.prefill_scale,
            StepKind.DECODE: self._floor.decode_scale,
        }
        self._errors = {kind: StepErrors(start[kind], self._rules) for kind in StepKind}
        self._ttft = Window(self._rules)
        self._patience = Patience()
        self._arrived_ms: float | None = None
        self._between_ms = self._prompt_tokens = 0.0
        self._answers = AnswerLength(self._rules)
        self._requests = self._gaps = 0.0
        self._drifts = {kind: _DriftWatch(kind, self._rules) for kind in StepKind}
        self._longest_ms = math.inf  # of a stage's pass beside the tightest gap that holds
        self._correction: Correction | None = self._floor

    def observe_step(
        self, shape: StepShape, predicted_ms: float, observed_ms: float
    ) -> Drift | None:
        """Learn from one step.

        Args:
            shape: what it carried.
            predicted_ms: one stage's pass as the table has it, without any correction.
            observed_ms: the same as it came out; host gap and transfer taken off.

        Returns:
            Drift, when this step completes the third drifting window of its kind.
        """
        if not (0.0 < predicted_ms < math.inf and math.isfinite(observed_ms)):
            return None
        observed_ms = min(max(0.0, observed_ms), self._rules.outlier * predicted_ms)
        kind = StepKind.of(shape)
        size = size_of(shape.prefill_tokens, shape.decode_requests)
        self._errors[kind].observe(size, predicted_ms, observed_ms)
        self._gaps += shape.decode_requests
        self._correction = None
        return self._drifts[kind].observe(predicted_ms, observed_ms)

    def observe_ttft(self, predicted_ms: float, observed_ms: float) -> None:
        """Learn from a first token and the prediction that was in force when it came."""
        if math.isfinite(predicted_ms) and math.isfinite(observed_ms):
            self._ttft.observe(predicted_ms, observed_ms)
            self._correction = None

    def observe_arrival(
        self, at_ms: float, waited_slos: float = 0.0, prompt_tokens: float = 0.0
    ) -> None:
        """Learn from a request that comes.

        Args:
            at_ms: when.
            waited_slos: how long the prompt that waits longest has waited, in its TTFT SLO.
            prompt_tokens: that it has to compute.
        """
        weight = self._rules.weight if self._prompt_tokens else 1.0
        self._prompt_tokens += weight * (prompt_tokens - self._prompt_tokens)
        self._patience.observe_arrival(waited_slos)
        before_ms = self._arrived_ms
        self._arrived_ms = at_ms if before_ms is None else max(before_ms, at_ms)
        kept = 1.0 - self._rules.weight
        self._requests, self._gaps = kept * self._requests + 1.0, kept * self._gaps
        if before_ms is None:
            return
        between_ms = self._arrived_ms - before_ms
        weight = self._rules.weight if self._between_ms else 1.0
        self._between_ms += weight * (between_ms - self._between_ms)
        self._correction = None

    def observe_tokens(self, tokens: int) -> None:
        """Learn from tokens of answers, complete or not."""
        self._answers.observe_tokens(tokens)
        self._correction = None

    def observe_answer(self, tokens: int, running: int) -> None:
        """Learn from an answer that ended, complete or not, while so many others run."""
        self._answers.observe_end(tokens, running)
        self._correction = None

    def corrected(self, moment: Moment) -> Moment:
        """The moment with what is learnt, its margins being for steps beside those present."""
        longest_ms = moment.limits.pass_within_ms(moment.tightest_gap_ms)
        if longest_ms != self._longest_ms:
            self._longest_ms, self._correction = longest_ms, None
        if moment.names:
            generated = moment.state.requests["generated_tokens"][: len(moment.names)]
            self._answers.observe_longest(int(generated.max()))
            self._correction = None
        return replace(moment, correction=self.correction)

    @property
    def correction(self) -> Correction:
        """What to correct predictions by now."""
        if self._correction is None:
            self._correction = self._learnt()
        return self._correction

    def scale(self, shape: StepShape) -> float:
        """The correction's factor for this step alone: asked of every step, and cheap."""
        size = size_of(shape.prefill_tokens, shape.decode_requests)
        return self._errors[StepKind.of(shape)].factor(size)

    def begin_from(self, floor: Correction, *, by_gap: bool) -> None:
        """Other promises from now on, and least margins for them; what was learnt stays."""
        self._floor, self._by_gap = floor, by_gap
        self._correction = None

    @property
    def trusted(self) -> bool:
        """Whether the table still describes this engine: no scale wants to leave its clamp."""
        return all(errors.scale.inside for errors in self._errors.values())

    def _learnt(self) -> Correction:
        prefill, decode = self._errors[StepKind.PREFILL], self._errors[StepKind.DECODE]
        # A token's way leads through every stage, and a slow step is slow in each of them.
        pass_ms = self._pp * max(prefill.margin_ms(), decode.margin_ms())
        stream_ms = 0.0
        if self._by_gap:
            longest_ms, wider = self._longest_ms, self._wider()
            stream_ms = self._pp * max(
                one.pass_margin_ms(longest_ms, wider) for one in (prefill, decode)
            )
        arrivals_per_s = 1e3 / self._between_ms if self._between_ms else 0.0
        return Correction(
            prefill_scale=prefill.scale.clamped,
            decode_scale=decode.scale.clamped,
            ttft_margin_ms=max(self._floor.ttft_margin_ms + pass_ms, self._ttft.margin_ms()),
            tbt_margin_ms=max(self._floor.tbt_margin_ms, stream_ms),
            arrivals_per_s=arrivals_per_s,
            prefill_by_size=prefill.by_size,
            decode_by_size=decode.by_size,
            patience_slos=self._patience.slos,
            prompt_tokens=self._prompt_tokens,
            decode_tokens_per_s=arrivals_per_s * self._answers.tokens,
        )

    def _wider(self) -> float:
        """How much wider than the quantile of a step's error is what a share of requests needs.

        With n gaps a request, a share q of requests needs q^(1/n) of its gaps in time (control.md).
        No window holds enough steps to show that quantile: the tail is taken to be a Gaussian's.
        """
        gaps = max(1.0, self._gaps / self._requests if self._requests else 1.0)
        lost = min(MOST_LOST, max(1.0 - self._rules.share, self._patience.late_share))
        kept = _GAUSS.inv_cdf((1.0 - lost) ** (1.0 / gaps))
        return kept / _GAUSS.inv_cdf(self._rules.share)


class _DriftWatch:
    """Counts windows in a row that are off to the same side."""

    def __init__(self, kind: StepKind, rules: CalibrationRules) -> None:
        self._kind = kind
        self._rules = rules
        self._predicted_ms = self._observed_ms = 0.0
        self._steps = self._windows = 0

    def observe(self, predicted_ms: float, observed_ms: float) -> Drift | None:
        self._predicted_ms += predicted_ms
        self._observed_ms += observed_ms
        self._steps += 1
        if self._steps < self._rules.drift_steps:
            return None
        ratio = self._observed_ms / self._predicted_ms
        self._predicted_ms = self._observed_ms = 0.0
        self._steps = 0
        if abs(ratio - 1.0) < self._rules.drift:
            self._windows = 0
            return None
        self._windows += 1
        return Drift(self._kind, ratio) if self._windows == self._rules.drift_windows else None
