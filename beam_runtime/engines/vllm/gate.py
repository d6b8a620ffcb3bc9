"""Lets EngineCore wait while BEAM holds a step, and still take results that come back.

vLLM's queue of steps in flight treats an empty step as a step: a queue filled with them sits
blocked on the oldest, and a pipeline of four runs one step at a time. So a hold is told one
level higher, around EngineCore's step functions:

    go        vLLM's own step, which calls schedule()
    wait      nothing now, come back: EngineCore sleeps a millisecond and looks for requests
    collect   schedule nothing, block on the oldest step in flight

The wrapped functions are told apart by their scheduler: an engine without BEAM is untouched.
"""

import functools
import time
from collections.abc import Callable
from enum import Enum
from typing import Any

# EngineCore sleeps a millisecond by itself in its own process; LLM in one process does not.
NAP_S = 0.0005
_MARK = "__beam_gate__"


class Gate(Enum):
    """What EngineCore is to do now."""

    GO = "go"
    WAIT = "wait"
    COLLECT = "collect"


def install(engine_core_class: type) -> None:
    """Wrap the class's step functions; doing it again changes nothing."""
    for name, nothing in (("step", {}), ("step_with_batch_queue", None)):
        original = getattr(engine_core_class, name)
        if not hasattr(original, _MARK):
            setattr(engine_core_class, name, _gated(original, nothing))


def _gated(original: Callable[[Any], Any], nothing: Any) -> Callable[[Any], Any]:
    @functools.wraps(original)
    def step(core: Any) -> Any:
        scheduler = core.scheduler
        beam = getattr(scheduler, "beam", None)
        if beam is None:
            return original(core)
        queue = getattr(core, "batch_queue", None)
        gate = beam.gate(bool(queue and queue[-1][0].done()))
        if gate is Gate.WAIT:
            time.sleep(NAP_S)
            return nothing, False
        if gate is Gate.COLLECT and queue:
            scheduler.beam_closed = True
            try:
                return original(core)
            finally:
                scheduler.beam_closed = False
        return original(core)

    setattr(step, _MARK, True)
    return step
