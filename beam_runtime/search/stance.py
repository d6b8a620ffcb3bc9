"""How BEAM steers an engine unless told otherwise: composer's rules, candidates, least margins.

The controller, `beam decide` and the replay's `beam` all take theirs from here, so that what a
replay shows is what an engine gets.

The numbers were found on one hour of one trace with one table (ServeGen 19-20 h, the published
Llama-3 70B table): a TTFT margin that leaves room for prompts not yet arrived, and a TBT margin
that only noise needs to be wider. benchmarks/energy_grid.py shows what they give elsewhere.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

from beam_runtime.search.chunks import chunk_candidates
from beam_runtime.search.keepable import Keepable
from beam_runtime.search.policy import Policy
from beam_runtime.search.together import STEP_TOKENS, longest_between
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import Correction, EngineLimits, Follows, Rules, Slo, StepShape, StreamKind

# Shares of the SLO; calibration widens them.
TTFT_MARGIN, TBT_MARGIN = 0.15, 0.025
# Of an engine that makes its steps by itself: nothing of the composer's but room for a chunk.
_OWN_STEPS = replace(Rules.vanilla(), min_chunk_tokens=Rules().min_chunk_tokens)


@dataclass(frozen=True, slots=True)
class Stance:
    """How to steer one engine.

    Attributes:
        rules: of the composer.
        policy: of the search.
        floor: the margins that calibration starts from and never goes below.
        by_gap: whether any stream is promised its gaps, or all a mean over their answers.
        hopeless: why no setting keeps the promise, in words; empty where one may. Then the engine
            keeps its own settings: whoever tries all the same starves prompts (design/control.md).
    """

    rules: Rules
    policy: Policy
    floor: Correction
    by_gap: bool = True
    hopeless: str = ""


def stance_for(
    cost: StepCost,
    limits: EngineLimits,
    slo: Slo,
    classes: Collection[Slo] = (),
    follows: Follows = Follows.STEPS,
    own_chunk_tokens: int | None = None,
) -> Stance:
    """The stance for one engine.

    Args:
        cost: what its steps cost.
        limits: of the engine.
        slo: what most of its requests are promised.
        classes: what others are promised. The tightest promise that can be kept sets the margins:
            a share of a longer one could be all that a short one has.
        follows: what the engine follows. What it does not is foreseen as the engine does it.
        own_chunk_tokens: the engine's own, where it follows none; by default its largest.
    """
    steps = follows is Follows.STEPS
    rules = Rules() if steps else _OWN_STEPS
    keepable = Keepable(cost, limits)
    promises = [one for one in (slo, *classes) if not keepable.hopeless(one)] or [slo]
    slo = promises[0]
    first_token_ms = min(one.ttft_ms for one in promises)
    floor = Correction(
        ttft_margin_ms=TTFT_MARGIN * first_token_ms,
        tbt_margin_ms=TBT_MARGIN * min(one.token_ms for one in promises),
    )
    # No table is believed about steps longer than those that it holds.
    longest = min(limits.max_batched_tokens, int(cost.edges_tokens[-1]))
    passes = _passes_ms(cost, longest)
    allowed_ms = (slo.token_ms - floor.tbt_margin_ms) / limits.pp - limits.host_gap_ms
    in_time = max((n for n, pass_ms in passes.items() if pass_ms <= allowed_ms), default=1)
    if slo.kind is not StreamKind.GAP:  # a chunk may be longer than a token's time
        in_time = longest
    between = longest_between(cost, limits, slo, longest)
    if between and steps:
        rules, in_time = replace(rules, together=True), max(in_time, between)
    largest = min(longest, max(in_time * 4 // 3, 4 * rules.min_chunk_tokens))
    useful = replace(limits, max_batched_tokens=largest)
    chunks = chunk_candidates(cost, useful, rules, Policy().most_chunks)
    if follows is Follows.CLOCK:
        chunks = (own_chunk_tokens or limits.max_batched_tokens,)
    policy = Policy(chunk_tokens=chunks, first_token_ms=first_token_ms)
    by_gap = any(one.kind is StreamKind.GAP for one in promises)
    return Stance(rules, policy, floor, by_gap, keepable.hopeless(slo))


def _passes_ms(cost: StepCost, longest: int) -> dict[int, float]:
    """A stage's pass over so many prompt tokens, at the fastest clock."""
    sizes = [*range(STEP_TOKENS, longest, STEP_TOKENS), longest]
    return {n: float(cost.latency_ms(StepShape(n)).min()) for n in sizes}
