"""What a replay takes as given, and where each default comes from.

Two sets of assumptions have a name. ``validated`` is the default: the plant's table is smoothed
along the clock, steps carry noise, GPUs that wait draw power by their clock, and the host gap
and front end are those that fit measured nodes. ``published`` is what published results
were computed with: the raw table, no noise, one waiting power.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

from beam_runtime.types import Slo
from beamprof.errors import ReplayError
from beamprof.replay.assumptions import Assumptions
from beamprof.traces.policies import OverLimit

# Fitted by benchmarks/fidelity.py on rows of 8 x A100-SXM4-80GB, Llama-3.3 70B tp 2 pp 4
# (github.com/jlee335/BEAM-artifact); other nodes: 6.2 to 7.9 ms and 0 to 33 ms.
HOST_GAP_MS = 6.8
FRONT_END_MS = 33.0
# What steps of one shape differ by on a server, beside what the table says.
STEP_NOISE = 0.03
DEFAULT_SLO = Slo()
MAX_MODEL_LEN = "--max-model-len"  # the flag that limits requests, for hints


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """What is served, how, and what is promised.

    Attributes:
        slo: of every request that brings none of its own.
        classes: names of the trace's SLO classes, each with its SLO.
        noise: standard deviation of a step's time, as a share.
        seed: of the noise.
        smooth: the plant's table is smoothed along the clock; the policies' never is.
        host_gap_ms: per stage and step, not covered by a pass.
        front_end_ms: from a request's sending to its place in the engine's queue.
        idle_power_w: of a waiting GPU; None = by clock, see tables.waiting_power.
        clock_delay_ms: from asking for a clock to running at it.
        kv_blocks: KV-cache blocks; None = what the GPUs leave beside the weights, as far as the
            table tells (tables/kv_room.py), else memory is not what limits.
        max_num_seqs: requests that run at one time.
        max_model_len: most input + output tokens; None = no limit.
        over_limit: what happens to longer requests.
        concurrency: of a closed loop, see site.Site; None = the trace's arrivals.
        prefix_cache: as vLLM's own default; False plays every prompt cold.

    Raises:
        ReplayError: a value that makes no sense.
    """

    slo: Slo = DEFAULT_SLO
    noise: float = STEP_NOISE
    seed: int = 0
    smooth: bool = True
    host_gap_ms: float = HOST_GAP_MS
    front_end_ms: float = FRONT_END_MS
    idle_power_w: float | None = None
    clock_delay_ms: float = 25.0
    kv_blocks: int | None = None
    max_num_seqs: int = 256
    max_model_len: int | None = None
    over_limit: OverLimit = OverLimit.ERROR
    concurrency: int | None = None
    prefix_cache: bool = True
    classes: tuple[tuple[str, Slo], ...] = ()

    def __post_init__(self) -> None:
        if not 0.0 <= self.noise < 1.0:
            raise ReplayError(
                "--noise is a share of a step's time from 0 up to 1",
                cause=f"found {self.noise:g}",
                hint="0.03 lets every step take 3 % more or less",
            )
        for name in ("host_gap_ms", "front_end_ms", "idle_power_w", "clock_delay_ms"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value < math.inf:
                raise ReplayError(f"{name} must be 0 or more", cause=f"found {value:g}")
        for flag, count in (("--kv-blocks", self.kv_blocks), ("--concurrency", self.concurrency)):
            if count is not None and count < 1:
                raise ReplayError(f"{flag} must be 1 or more, found {count}")

    @classmethod
    def assuming(cls, assumptions: Assumptions, **given: Any) -> "ReplayOptions":
        """A named set, with what is ``given`` and not None in place of its own."""
        base = cls()
        if assumptions is Assumptions.PUBLISHED:
            base = replace(base, noise=0.0, smooth=False, host_gap_ms=5.5, front_end_ms=0.0,
                           idle_power_w=45.0)  # fmt: skip
        return replace(base, **{name: value for name, value in given.items() if value is not None})
