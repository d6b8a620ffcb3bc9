"""How BEAM steers an engine unless told otherwise: composer's rules, candidates, least margins.

The controller, `beam decide` and the replay's `beam` all take theirs from here, so that what a
replay shows is what an engine gets.

The numbers were found on one hour of one trace with one table (ServeGen 19-20 h, the published
Llama-3 70B table): a TTFT margin that leaves room for prompts not yet arrived, a TBT margin that
only noise needs to be wider, and chunks just above the half of the largest step, where a prompt's
chunk still fits beside all the decodes that ride in it. What holds where no chunk keeps TBT was
found there too, with SLOs half as long. benchmarks/energy.py shows what they give elsewhere.
"""

from dataclasses import dataclass, replace

from beam_runtime.cost import StepCost
from beam_runtime.search import Policy
from beam_runtime.types import Correction, EngineLimits, Rules, Slo, StepShape

# Shares of the SLO; calibration widens them.
TTFT_MARGIN, TBT_MARGIN = 0.15, 0.025
# In 32nds of the largest step.
CHUNKS_32 = (8, 12, 16, 17, 18, 19, 20, 21, 22, 23, 24, 28, 32)


@dataclass(frozen=True, slots=True)
class Stance:
    """How to steer one engine.

    Attributes:
        rules: of the composer.
        policy: of the search.
        floor: the margins that calibration starts from and never goes below.
    """

    rules: Rules
    policy: Policy
    floor: Correction


def stance_for(
    cost: StepCost, limits: EngineLimits, slo: Slo, rules: Rules | None = None
) -> Stance:
    """The stance for one engine.

    Args:
        cost: what its steps cost.
        limits: of the engine.
        slo: what most of its requests are promised.
        rules: other than all of the composer's.
    """
    rules = rules or Rules()
    floor = Correction(
        ttft_margin_ms=TTFT_MARGIN * slo.ttft_ms, tbt_margin_ms=TBT_MARGIN * slo.tbt_ms
    )
    largest = limits.max_batched_tokens
    # Decodes that ride in a chunk of half the largest step can be in time, or ...
    pass_ms = float(cost.latency_ms(StepShape(largest // 2)).min()) + limits.host_gap_ms
    if limits.pp * pass_ms + floor.tbt_margin_ms <= slo.tbt_ms:
        chunks = tuple(share * largest // 32 for share in CHUNKS_32)
        return Stance(rules, Policy(chunk_tokens=chunks), floor)
    # ... are late in any that is worth its weights, at every clock. Then fewer are the larger the
    # chunks and the fewer decode when a prompt comes: they are kept well inside their SLO, not
    # paced up to it. To cut every chunk would halve the prompts' pace and still be late.
    return Stance(
        replace(rules, late_cuts_chunk=False, pace=False),
        Policy(chunk_tokens=(largest * 3 // 4,)),
        replace(floor, tbt_margin_ms=TTFT_MARGIN * slo.tbt_ms),
    )
