"""The numbers that steering is done by."""

from dataclasses import dataclass, field

from beam_runtime.control.calibration_rules import CalibrationRules
from beam_runtime.control.fallback import FallbackRules


@dataclass(frozen=True, slots=True)
class SteeringRules:
    """How often, how long, how far.

    Attributes:
        least_gap_ms: between two decisions; what happens in between is taken in together.
        observing_gap_ms: the same while observing: nobody waits for what it finds, and each
            look takes the interpreter's lock from the engine.
        refresh_ms: a decision this old is made anew while there are requests.
        observing_refresh_ms: an observer makes none sooner, only forecasts: what it would order
            is a sample.
        deadline_ms: a decision that took longer describes an engine that is gone.
        stall_ms: steps in flight and none back for this long: the engine hangs.
        resync_ms: how often an adapter is asked for the engine's own view.
        coverage: how far beyond its largest measured batch and context a table is believed.
        calibration, fallback: see there.
    """

    least_gap_ms: float = 5.0
    observing_gap_ms: float = 100.0
    refresh_ms: float = 500.0
    observing_refresh_ms: float = 500.0
    deadline_ms: float = 20.0
    stall_ms: float = 5_000.0
    resync_ms: float = 1_000.0
    coverage: float = 2.0
    calibration: CalibrationRules = field(default_factory=CalibrationRules)
    fallback: FallbackRules = field(default_factory=FallbackRules)
