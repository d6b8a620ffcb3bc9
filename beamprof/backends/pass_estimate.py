"""How long a pass will take, for plans and progress: roofline guesses, corrected by the last cell.

Never part of a number that goes into a table.
"""

from beam_runtime.types import StepShape
from beamprof.models.shape import StageShape

# First guesses at what a device does, FLOP/s and bytes/s.
GUESSED_SPEEDS = {"cuda": (300e12, 1.5e12), "cpu": (50e9, 10e9)}
PASSES_PER_CELL = 6  # warm-up and window, where a single pass outlasts both


class PassEstimate:
    """Seconds of a pass of one stage; ``place`` is "cuda" or "cpu".

    ``speeds`` are its FLOP/s and bytes/s where somebody knows them.
    """

    def __init__(
        self, stage: StageShape, place: str, speeds: tuple[float, float] | None = None
    ) -> None:
        self._stage = stage
        self._flops_per_s, self._bytes_per_s = speeds or GUESSED_SPEEDS[place]
        self._slowness = 1.0

    def seconds(self, step: StepShape) -> float:
        """The longer of computing and moving, times how wrong the last guess was."""
        return self._slowness * self._guess(step)

    def learn(self, step: StepShape, pass_s: float) -> None:
        """Remember what a pass took."""
        self._slowness = pass_s / self._guess(step)

    def _guess(self, step: StepShape) -> float:
        stage = self._stage
        pairs = (step.prefill_pairs or 0.0) + step.decode_context_tokens
        flops = stage.linear_flops_per_token * step.tokens + stage.attention_flops_per_pair * pairs
        weights_bytes = stage.weight_bytes
        cached_tokens = step.prefill_context_tokens + step.decode_context_tokens
        moved_bytes = weights_bytes + cached_tokens * stage.kv_bytes_per_token
        return max(flops / self._flops_per_s, moved_bytes / self._bytes_per_s)
