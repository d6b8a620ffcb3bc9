"""How a controller is doing, for whoever asks."""

from dataclasses import dataclass

from beam_runtime.control.counts import Counts
from beam_runtime.types import Correction


@dataclass(frozen=True, slots=True)
class Status:
    """How it goes.

    Attributes:
        steering: whether BEAM steers.
        reason: why not; empty while it does.
        clocks: how clocks are set, or why they are not.
        counts: what has happened so far.
        odd_events: events that contradicted what was known.
        dropped_events: hooks' events that could not be kept.
        correction: what calibration learnt.
    """

    steering: bool
    reason: str
    clocks: str
    counts: Counts
    odd_events: int
    dropped_events: int
    correction: Correction
