"""How far the steps of one kind are off the table: by which factors, and by what beside them."""

import math

import numpy as np
from numpy.typing import NDArray

from beam_runtime.control.calibration_rules import CalibrationRules
from beam_runtime.types import SIZES

ALL_AS_SAID = np.ones(SIZES)
# As a share of a step's length: shorter ones do not tell how it errs.
ABOUT_AS_LONG = 0.5


class StepErrors:
    """Of one kind of step.

    Args:
        start: the factor to begin with.
        rules: how to learn.
    """

    def __init__(self, start: float, rules: CalibrationRules) -> None:
        self.scale = Scale(start, rules)
        self._by_size = BySize(rules)
        self._window = Window(rules)

    def observe(self, size: int, predicted_ms: float, observed_ms: float) -> None:
        """Learn from one step of a size, predicted by the table alone."""
        self._window.observe(predicted_ms, observed_ms, size, self._by_size.factor(size))
        self.scale.observe(predicted_ms, observed_ms)
        if self.scale.settled:  # before, a size would take for its own what all are off by
            self._by_size.observe(size, observed_ms / (self.scale.clamped * predicted_ms))

    def factor(self, size: int) -> float:
        """Measured over predicted, of steps of this size."""
        return self.scale.clamped * self._by_size.factor(size)

    @property
    def by_size(self) -> tuple[float, ...]:
        """Correction's factors beside the scale, up to the largest size that was seen."""
        return tuple(self._by_size.factors[: self._by_size.largest + 1].tolist())

    def margin_ms(self) -> float:
        """What steps may take beyond what is predicted: the quantile of the latest."""
        return self._window.margin_ms(self.scale.clamped, self._by_size.factors)

    def pass_margin_ms(self, pass_ms: float, wider: float) -> float:
        """How much earlier than ``pass_ms`` steps are to be back so that they are back by then."""
        return self._window.pass_margin_ms(
            pass_ms, wider, self.scale.clamped, self._by_size.factors
        )


class Scale:
    """Exponentially weighted measured over predicted time; sums, so that long steps count more."""

    def __init__(self, start: float, rules: CalibrationRules) -> None:
        self._rules = rules
        self._start = start
        self._predicted_ms = 0.0
        self._observed_ms = 0.0
        self._steps = 0

    def observe(self, predicted_ms: float, observed_ms: float) -> None:
        """Learn from one step."""
        if self._steps == 0:
            # The table's own word, as if it had been observed for a while.
            self._predicted_ms = predicted_ms
            self._observed_ms = self._start * predicted_ms
        self._steps += 1
        # The first steps count as in a plain mean over them and the prior.
        weight = max(self._rules.weight, 1.0 / (self._rules.prior_steps + self._steps))
        self._predicted_ms += weight * (predicted_ms - self._predicted_ms)
        self._observed_ms += weight * (observed_ms - self._observed_ms)

    @property
    def raw(self) -> float:
        """As observed."""
        return self._observed_ms / self._predicted_ms if self._steps else self._start

    @property
    def clamped(self) -> float:
        """As far as the table is believed."""
        low, high = self._rules.clamp
        return min(max(self.raw, low), high)

    @property
    def settled(self) -> bool:
        """Whether enough was observed for what was assumed at first to be forgotten."""
        return self._steps > self._rules.settled_steps

    @property
    def inside(self) -> bool:
        """Whether the table is believed."""
        return self.raw == self.clamped


class BySize:
    """Exponentially weighted factors of sizes beside their kind's scale.

    The scale follows what slows all steps (a hot GPU) at once; a size that is seldom seen keeps
    what it was off by beside it.
    """

    def __init__(self, rules: CalibrationRules) -> None:
        self._rules = rules
        # Lists: one size is asked for with every step, all of them once a decision.
        self._raw = [1.0] * SIZES
        self._steps = [0] * SIZES

    def observe(self, size: int, ratio: float) -> None:
        """Learn from one step: measured time over what the scale alone predicts."""
        self._steps[size] += 1
        weight = 1.0 / (self._rules.prior_steps_of_size + self._steps[size])
        self._raw[size] += max(self._rules.weight, weight) * (ratio - self._raw[size])

    def factor(self, size: int) -> float:
        """Of one size."""
        low, high = self._rules.clamp
        return min(max(self._raw[size], low), high)

    @property
    def factors(self) -> NDArray[np.float64]:
        """(SIZES,) of them; 1 where a size was never seen."""
        low, high = self._rules.clamp
        return np.minimum(np.maximum(self._raw, low), high)

    @property
    def largest(self) -> int:
        """The largest size that was seen; -1 before any was."""
        return max((size for size, steps in enumerate(self._steps) if steps), default=-1)


class Window:
    """The latest steps, or first tokens: how long they were to take, and how long they took."""

    def __init__(self, rules: CalibrationRules) -> None:
        self._rules = rules
        self._predicted_ms: NDArray[np.float64] = np.zeros(rules.window)
        self._observed_ms: NDArray[np.float64] = np.zeros(rules.window)
        self._sizes: NDArray[np.intp] = np.zeros(rules.window, dtype=np.intp)
        self._factors: NDArray[np.float64] = np.zeros(rules.window)
        self._seen = 0

    def observe(
        self, predicted_ms: float, observed_ms: float, size: int = 0, factor: float = 1.0
    ) -> None:
        """One more; the oldest makes room. The factor is what was known of its size before it."""
        at = self._seen % self._rules.window
        self._predicted_ms[at] = predicted_ms
        self._observed_ms[at] = observed_ms
        self._sizes[at] = size
        self._factors[at] = factor
        self._seen += 1

    def margin_ms(self, scale: float = 1.0, by_size: NDArray[np.float64] = ALL_AS_SAID) -> float:
        """The quantile of what is left of the error once predictions are corrected; 0 or more.

        Through the present scale, and by the lesser of what is known of a size now and what was
        before the step: a factor learnt from a few steps explains them better than the next.
        """
        predicted_ms, observed_ms = self._corrected(scale, by_size)
        return self._quantile(observed_ms - predicted_ms)

    def pass_margin_ms(
        self,
        pass_ms: float,
        wider: float,
        scale: float = 1.0,
        by_size: NDArray[np.float64] = ALL_AS_SAID,
    ) -> float:
        """How much earlier than ``pass_ms`` steps are to be back so that they are back by then.

        Errors grow with steps: one that takes so much of its time longer may be pass_ms / (1 + so
        much) by prediction. Short steps err by more of their time (hosts), so those count that are
        ABOUT_AS_LONG, or a least window of the longest where few are; none is taken to be longer
        than the longest among these.
        """
        predicted_ms, observed_ms = self._corrected(scale, by_size)
        longest_ms = min(pass_ms, float(predicted_ms.max(initial=0.0)))
        enough = min(len(predicted_ms), self._rules.least_window)
        nth_longest_ms = float(np.partition(predicted_ms, -enough)[-enough]) if enough else 0.0
        about = predicted_ms >= max(min(ABOUT_AS_LONG * longest_ms, nth_longest_ms), 1e-9)
        late = wider * self._quantile(observed_ms[about] / predicted_ms[about] - 1.0)
        return late * min(pass_ms / (1.0 + late), longest_ms)

    def _corrected(
        self, scale: float, by_size: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        held = min(self._seen, self._rules.window)
        factors = np.minimum(by_size[self._sizes[:held]], self._factors[:held])
        return scale * factors * self._predicted_ms[:held], self._observed_ms[:held]

    def _quantile(self, errors: NDArray[np.float64]) -> float:
        held = len(errors)
        judged = max(held, self._rules.least_window)
        may_exceed = math.floor((1.0 - self._rules.share) * judged)
        if may_exceed >= held:
            return 0.0
        at = held - 1 - may_exceed
        return max(0.0, float(np.partition(errors, at)[at]))
