"""How BEAM steers an engine unless told otherwise: composer's rules, candidates, least margins.

The controller, `beam decide` and the replay's `beam` all take theirs from here, so that what a
replay shows is what an engine gets.

The numbers were found on one hour of one trace with one table (ServeGen 19-20 h, the published
Llama-3 70B table): a TTFT margin that leaves room for prompts not yet arrived, a TBT margin that
only noise needs to be wider, and chunks just above the half of the largest step, where a prompt's
chunk still fits beside all the decodes that ride in it. What holds where no chunk keeps TBT was
found there too, with SLOs half as long. benchmarks/energy.py shows what they give elsewhere.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

from beam_runtime.search.policy import Policy
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import Correction, EngineLimits, Rules, Slo, StepShape

# Shares of the SLO; calibration widens them.
TTFT_MARGIN, TBT_MARGIN = 0.15, 0.025
# In 32nds of the largest step that is of use.
CHUNKS_32 = (8, 12, 16, 17, 18, 19, 20, 21, 22, 23, 24, 28, 32)
# A chunk is worth the weights that are read for it from this many times a lone token's pass on.
WORTH = 2.2
# Passes are looked at in steps of so many tokens: GEMM tiles are no finer.
STEP_TOKENS = 16


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
    cost: StepCost,
    limits: EngineLimits,
    slo: Slo,
    rules: Rules | None = None,
    classes: Collection[Slo] = (),
) -> Stance:
    """The stance for one engine.

    Args:
        cost: what its steps cost.
        limits: of the engine.
        slo: what most of its requests are promised.
        rules: other than all of the composer's.
        classes: what others are promised. The tightest promise sets the margins: a share of a
            longer one could be all that a short one has.
    """
    rules = rules or Rules()
    first_token_ms = min(one.ttft_ms for one in (slo, *classes))
    floor = Correction(
        ttft_margin_ms=TTFT_MARGIN * first_token_ms,
        tbt_margin_ms=TBT_MARGIN * min(one.token_ms for one in (slo, *classes)),
    )
    # No table is believed about steps longer than those that it holds.
    longest = min(limits.max_batched_tokens, int(cost.edges_tokens[-1]))
    passes = _passes_ms(cost, longest)
    allowed_ms = (slo.token_ms - floor.tbt_margin_ms) / limits.pp - limits.host_gap_ms
    worth_ms = WORTH * float(cost.latency_ms(StepShape(1)).min())
    # Decodes are in time in some chunks that are worth reading the weights for, or ...
    if allowed_ms >= worth_ms:
        in_time = max((n for n, pass_ms in passes.items() if pass_ms <= allowed_ms), default=1)
        largest = min(longest, in_time * 4 // 3)
        chunks = tuple(max(1, share * largest // 32) for share in CHUNKS_32)
        return Stance(rules, Policy(chunk_tokens=chunks, first_token_ms=first_token_ms), floor)
    # ... are late in all of them, at every clock. Then fewer are the larger the chunks and the
    # fewer decode when a prompt comes: they are kept well inside their SLO, not paced up to it.
    # To cut every chunk would halve the prompts' pace and still be late.
    worth = min((n for n, pass_ms in passes.items() if pass_ms >= worth_ms), default=longest)
    return Stance(
        replace(rules, late_cuts_chunk=False, pace=False),
        Policy(
            chunk_tokens=(max(1, min(longest * 3 // 4, 2 * worth)),),
            first_token_ms=first_token_ms,
        ),
        replace(floor, tbt_margin_ms=floor.tbt_margin_ms * TTFT_MARGIN / TBT_MARGIN),
    )


def _passes_ms(cost: StepCost, longest: int) -> dict[int, float]:
    """A stage's pass over so many prompt tokens, at the fastest clock."""
    sizes = [*range(STEP_TOKENS, longest, STEP_TOKENS), longest]
    return {n: float(cost.latency_ms(StepShape(n)).min()) for n in sizes}
