"""The nouns that every room shares: frozen, slotted, with units in their names."""

from beam_runtime.types.decision import Alternative, Decision, Forecast
from beam_runtime.types.knobs import Follows, Knobs, Rules
from beam_runtime.types.origin import Origin, Source
from beam_runtime.types.same_time import SAME_MS
from beam_runtime.types.slo import ASSUMED_ANSWER_TOKENS, Slo, StreamKind
from beam_runtime.types.snapshot import (
    MOST_OF_TTFT,
    PATIENT_SLOS,
    Correction,
    EngineLimits,
    Phase,
    RequestState,
    Snapshot,
    StepInFlight,
)
from beam_runtime.types.step_shape import StepShape, chunk_pairs
from beam_runtime.types.step_sizes import SIZES, size_of

__all__ = [
    "ASSUMED_ANSWER_TOKENS",
    "MOST_OF_TTFT",
    "PATIENT_SLOS",
    "SAME_MS",
    "SIZES",
    "Alternative",
    "Correction",
    "Decision",
    "EngineLimits",
    "Follows",
    "Forecast",
    "Knobs",
    "Origin",
    "Phase",
    "RequestState",
    "Rules",
    "Slo",
    "Snapshot",
    "Source",
    "StepInFlight",
    "StepShape",
    "StreamKind",
    "chunk_pairs",
    "size_of",
]
