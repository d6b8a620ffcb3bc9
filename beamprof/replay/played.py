"""What a replay leaves behind: every request, every step, every token, and the energy."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beam_runtime.emulator.state import Records
from beam_runtime.types import Slo

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Played:
    """One trace under one policy.

    Attributes:
        policy: its name.
        slo: what requests without an own SLO were promised.
        promised: (R,) of REQUEST, what each was promised.
        pp: pipeline stages.
        duration_ms: the trace's stated duration.
        end_ms: the duration, or the last token if later.
        arrival_ms, input_tokens, output_tokens: (R,) the requests.
        cached_tokens: (R,) of their prompts, out of the prefix cache.
        first_token_ms, finish_ms: (R,) NaN where it never came.
        tokens: (T,) of event_loop.TOKEN: every token after a request's first.
        steps: (S,) of event_loop.STEP: every step; ``clock`` in MHz.
        active_energy_j: all passes of all stages, until the last token.
        idle_energy_j: every GPU-second until the duration that no pass covers.
        busy_ms: passes, summed over the stages.
        preemptions: requests that lost their KV blocks.
        clock_changes: how often another clock was asked for.
        decisions: how often the policy was asked; decision_s: the time it took.
        undecided: how often it found no answer, and the knobs stayed.
        wall_s: the time that the replay took.
    """

    policy: str
    slo: Slo
    promised: Records
    pp: int
    duration_ms: float
    end_ms: float
    arrival_ms: Floats
    input_tokens: Ints
    output_tokens: Ints
    cached_tokens: Ints
    first_token_ms: Floats
    finish_ms: Floats
    tokens: Records
    steps: Records
    active_energy_j: float
    idle_energy_j: float
    busy_ms: float
    preemptions: int
    clock_changes: int
    decisions: int
    undecided: int
    decision_s: float
    wall_s: float

    @property
    def energy_j(self) -> float:
        """Passes and idling, all GPUs."""
        return self.active_energy_j + self.idle_energy_j

    @property
    def mean_power_w(self) -> float:
        """All GPUs, were the load to go on: its energy over the duration in which it arrived.

        A load that is more than the GPUs can take, or shorter than its answers, would need more
        than they can draw: then it is what they draw in passes.
        """
        in_passes_w = self.pp * self.active_energy_j / (self.busy_ms / 1e3)
        return min(self.energy_j / (self.duration_ms / 1e3), in_passes_w)
