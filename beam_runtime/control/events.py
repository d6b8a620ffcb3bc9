"""What an engine tells the controller. Named tuples: hooks make them at a microsecond's cost.

Times are milliseconds on the controller's own axis.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from beam_runtime.errors import ClockError
from beam_runtime.types import Slo


class Arrival(NamedTuple):
    """A request has come in; it waits for admission."""

    at_ms: float
    request_id: str
    prompt_tokens: int
    slo: Slo | str | None
    cached_tokens: int


class FirstToken(NamedTuple):
    """A request's prompt is done and its first token is out."""

    at_ms: float
    request_id: str


class Completion(NamedTuple):
    """A request has all its tokens; what an engine tells of it goes to the decision log."""

    at_ms: float
    request_id: str
    told: Mapping[str, Any] | None = None


class Abort(NamedTuple):
    """A request is gone before its time."""

    at_ms: float
    request_id: str


class Preemption(NamedTuple):
    """A running request has lost its KV blocks and waits again, before all others."""

    at_ms: float
    request_id: str


class PassedOver(NamedTuple):
    """A prompt had its turn only when the engine got its own settings back."""

    at_ms: float
    request_id: str
    detail: str


class StepIssued(NamedTuple):
    """A step has entered the pipeline: one token of each decode, and prompt chunks."""

    at_ms: float
    decodes: tuple[str, ...]
    chunks: tuple[tuple[str, int], ...]


class StepFinished(NamedTuple):
    """The oldest step in the pipeline is back."""

    at_ms: float


class ClockConfirmed(NamedTuple):
    """The GPUs read back at this clock; None = they are released."""

    at_ms: float
    clock_mhz: int | None


class ClockRefused(NamedTuple):
    """The clock could not be set, or the guard is gone; the GPUs are released."""

    at_ms: float
    clock_mhz: int | None
    error: ClockError


class Resume(NamedTuple):
    """Somebody asks BEAM to steer again after it was switched off."""

    at_ms: float


class Observe(NamedTuple):
    """Somebody asks BEAM to look on only, or to steer again."""

    at_ms: float
    observing: bool


class Promise(NamedTuple):
    """From now on requests that name no SLO are promised this one."""

    at_ms: float
    slo: Slo


Event = (
    Arrival
    | FirstToken
    | Completion
    | Abort
    | Preemption
    | PassedOver
    | StepIssued
    | StepFinished
    | ClockConfirmed
    | ClockRefused
    | Resume
    | Observe
    | Promise
)

# After these the best knobs may be others; the rest only keeps the picture up to date.
ASK_FOR_A_DECISION = (Arrival, FirstToken, Completion, Abort, Preemption, Resume, Observe)
