"""What a policy is: told when something happens, it answers with knobs.

A policy sees what a controller could see online: requests, their prompts and what they have been
given so far. Real output lengths and future arrivals stay in the plant.
"""

import math
from abc import ABC, abstractmethod
from enum import IntFlag

from beam_runtime.types import Correction, Knobs, Rules, Slo
from beamprof.replay.view import View


class Wake(IntFlag):
    """When a policy wants to be asked (the values are event_loop's)."""

    NEVER = 0
    ARRIVAL = 1
    FIRST_TOKEN = 2
    COMPLETION = 4
    STEP = 8


# vLLM's steps where nobody says otherwise: BEAM's authors' chunk, and what a step may hold at most.
CHUNK_TOKENS, LARGEST_STEP_TOKENS = 256, 2048


class Policy(ABC):
    """One way to run an engine.

    Attributes:
        name: as the user writes it.
        rules: of the composer; plain vLLM by default.
        correction: scales and margins that the composer works with.
        wakes: the events after which ``decide`` is called.
        tick_ms: it is also called this often.
        refresh_ms: and this long after it was called last, while there are requests.
        one_step_per_microbatch: as many steps in flight as there are microbatches, which is
            what brings decodes together that went apart; else as many as the engine takes.
        smooths: it looks at its table smoothed along the clock.
        max_batched_tokens: the largest step that its engine was started for.
    """

    rules: Rules = Rules.vanilla()
    correction: Correction = Correction()
    wakes: Wake = Wake.NEVER
    tick_ms: float = math.inf
    refresh_ms: float = math.inf
    one_step_per_microbatch: bool = False
    smooths: bool = False
    max_batched_tokens: int = LARGEST_STEP_TOKENS

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def start(self, view: View) -> Knobs:
        """Knobs before the first request. ``view`` has the table and the engine's limits."""

    def served(self, slo: Slo) -> Slo:
        """A promise as its stream is served; asked after ``start``, and where that has changed."""
        return slo

    @property
    def serves_by(self) -> object:
        """What ``served`` goes by; another value: promises of those to come are asked for anew."""
        return None

    def decide(self, view: View) -> Knobs:
        """Knobs from now on; by default those in force."""
        return view.knobs
