"""The seam between the controller and a serving engine.

An engine needs no adapter: calling the controller's hooks and reading ``controller.orders``
before each step is enough. An adapter adds two things: orders are handed over as they are
made, and the controller can ask the engine for its own view when events have been lost.
"""

from dataclasses import dataclass, field
from typing import Protocol

from beam_runtime.types import Correction, Decision, EngineLimits, Forecast, Knobs, Rules, Snapshot


@dataclass(frozen=True, slots=True)
class Orders:
    """What the engine is to do until it hears otherwise. Always usable.

    Attributes:
        knobs: chunk, microbatches and pace for its steps; the clock is seen to elsewhere.
        rules: the composer's rules; Rules.vanilla() while BEAM does not steer.
        steering: whether BEAM steers; if not, knobs are the engine's own settings.
        why: one sentence.
        correction: what calibration learnt; the composer keeps its margins.
        decision: behind it; None where there is none. An observer makes decisions, too.
        expected: the forecast of what is in force, which is not the decision's where BEAM
            observes.
        number: counts up with every change.
    """

    knobs: Knobs
    rules: Rules
    steering: bool
    why: str
    correction: Correction = field(default_factory=Correction)
    decision: Decision | None = None
    expected: Forecast | None = None
    number: int = 0


class EngineAdapter(Protocol):
    """Both methods run on the controller's thread and must not wait for the engine's."""

    def snapshot(self) -> Snapshot:
        """The engine's own view of its requests; may be a moment old.

        Only ``running``, ``waiting`` and ``free_blocks`` are looked at. May raise: the
        controller then goes on with what events told it.
        """
        ...

    def apply(self, orders: Orders) -> None:
        """Keep these orders for the steps to come; storing the reference is enough."""
        ...


def check_knobs(knobs: Knobs, limits: EngineLimits) -> None:
    """Refuse knobs that the engine was not started for.

    Raises:
        ValueError: a chunk over the engine's envelope, or any knob out of its range.
    """
    if not 1 <= knobs.chunk_tokens <= limits.max_batched_tokens:
        raise ValueError(
            f"chunk_tokens {knobs.chunk_tokens} is outside 1 to {limits.max_batched_tokens}, "
            "what the engine was started for"
        )
    if not 1 <= knobs.microbatches <= limits.pp:
        raise ValueError(f"microbatches {knobs.microbatches} is outside 1 to {limits.pp}")
    if not knobs.pace_ms >= 0.0:
        raise ValueError(f"pace_ms {knobs.pace_ms} is below 0")
