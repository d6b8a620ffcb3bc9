"""What BEAM sets: the four knobs, and the composer's rules that use them."""

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Knobs:
    """The four settings that BEAM chooses together.

    Attributes:
        clock_mhz: locked SM clock of all the replica's GPUs; the highest stands for unlocked,
            and 0 for it where no table tells the clocks.
        chunk_tokens: tokens of one engine step, decodes included (vLLM's
            max_num_scheduled_tokens).
        microbatches: into how many pipeline microbatches the decodes are split, 1..pp.
        pace_ms: how long a ready decode batch may be held back at most; it is never held
            past the moment at which one of its tokens would be late.
    """

    clock_mhz: int
    chunk_tokens: int
    microbatches: int = 1
    pace_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Rules:
    """The composer's rules, each of which can be switched off (design/control.md).

    Attributes:
        just_in_time: issue a step only when the first stage is about to be free.
        ride_along: while there is prefill, ready decodes ride in every chunk step; off, decodes
            are split into microbatches there too.
        give_way: of those, decodes that will be in time in the step after it too leave their
            places to prompts, but for a fair share of each step; off, all ride.
        late_cuts_chunk: a chunk that would make a decode late is cut to what is in time; where
            nothing is, the decodes go ahead of it alone.
        pace: hold ready decodes, and merge them, until the earliest is due.
        microbatches: choose how many the decodes are split into; off, all that are ready go in one
            step, as in vLLM.
        together: while there is prefill, all decodes go in one step and chunks alone in those
            between (search/together.py says where that pays); off, decodes ride in every step.
        lead_ms: how long before the first stage is free a step is issued.
        min_chunk_tokens: room for prefill that a step keeps beside all running decodes.
    """

    just_in_time: bool = True
    ride_along: bool = True
    give_way: bool = True
    late_cuts_chunk: bool = True
    pace: bool = True
    microbatches: bool = True
    together: bool = False
    lead_ms: float = 2.0
    min_chunk_tokens: int = 32

    @classmethod
    def vanilla(cls) -> "Rules":
        """Plain vLLM: every rule off, its queue filled as soon as it has room."""
        return cls(False, False, False, False, False, False, False, min_chunk_tokens=0)


class Follows(StrEnum):
    """What an engine follows of its orders. The clock BEAM sets by itself."""

    CLOCK = "clock"
    """Nothing: it schedules as it always did."""
    CHUNK = "chunk"
    """``knobs.chunk_tokens`` is its step's token budget, which it fills as it always did."""
    STEPS = "steps"
    """Its steps are those that NextStep composes: chunk, microbatches, pace and rules."""

    @classmethod
    def _missing_(cls, value: object) -> "Follows":
        raise ValueError(f"an engine follows {', '.join(cls)}; {value!r} is none of these")
