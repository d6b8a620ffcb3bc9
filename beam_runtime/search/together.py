"""Whether all decodes should go in one step while prompts are computed: where prompts gain by it.

A gap SLO limits a round through the pipeline, in which every decode gets a token. Decodes ride

    apart      in each of pp steps, d / pp of them beside a chunk
    together   in one step of the round, chunks alone in up to pp - 1 steps between

What goes through differs where a round is short: fewer, longer steps lose less of it to what every
step takes, and climb stairs of the table (GEMM tiles). At 100 ms the published 70B table leaves
room for 64 tokens a step, decodes included, or for two or three chunks of 112 to 128 between steps
of 64. That is a quarter more; from 150 ms on it is nothing. First tokens wait for the step that
the decodes are in, so it has to pay for that, too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import EngineLimits, Slo, StepShape, StreamKind

# Of so many decodes, with so many tokens of context each. The answer hardly depends on either.
DECODES, CONTEXT_TOKENS = 16, 1000
# Calibration has yet to find the TBT margin, in shares of the SLO, and stairs make much of little:
# so the mean over what noise of 1 to 5 % a step may ask for.
MARGINS = (0.025, 0.05, 0.075, 0.1, 0.125, 0.15)
# First tokens wait for half a round on average and a whole at worst. In between is what tells 115
# and 120 ms, where together is better, from 150 ms, and from 120 ms at a TTFT of 500, where it is
# not (docs/how-it-works.md).
WAITED_ROUNDS = 0.75
# Steps are looked at by so many tokens: GEMM tiles are no finer.
STEP_TOKENS = 16

# One stage's pass and the host's gap, of so many prompt tokens and decodes.
Stage = Callable[[int, int], float]


@dataclass(frozen=True, slots=True)
class Flow:
    """What goes through: prompt tokens per ms at best, and the longest chunk in that."""

    tokens_per_ms: float = 0.0
    chunk_tokens: int = 0


def longest_between(cost: StepCost, limits: EngineLimits, slo: Slo, longest: int) -> int:
    """The longest chunk between steps with decodes, in tokens; 0 where decodes had better ride.

    Args:
        cost: what steps cost; the fastest clock counts, for there prompts are pressed.
        limits: of the engine.
        slo: what most requests are promised.
        longest: most tokens of a step.
    """
    if slo.kind is not StreamKind.GAP or limits.pp == 1:
        return 0

    @cache
    def stage_ms(chunk_tokens: int, decodes: int) -> float:
        step = StepShape(chunk_tokens, 0, decodes, decodes * CONTEXT_TOKENS)
        return float(cost.latency_ms(step).min()) + limits.host_gap_ms

    apart = together = 0.0
    chunks = []
    for margin in MARGINS:
        round_ms = slo.token_ms * (1.0 - margin)
        apart += riding(stage_ms, limits.pp, round_ms, longest)
        flow = between(stage_ms, limits.pp, round_ms, longest)
        left_of_ttft = max(0.0, 1.0 - WAITED_ROUNDS * round_ms / slo.ttft_ms)
        together += flow.tokens_per_ms * left_of_ttft
        chunks.append(flow.chunk_tokens)
    return max(chunks) if together > apart else 0


def riding(stage_ms: Stage, pp: int, round_ms: float, longest: int) -> float:
    """Prompt tokens per ms at best with decodes in each of ``pp`` steps."""
    decodes = -(-DECODES // pp)
    best = 0.0
    for tokens in range(STEP_TOKENS, longest + 1, STEP_TOKENS):
        chunk_tokens = tokens - decodes
        if chunk_tokens > 0 and pp * stage_ms(chunk_tokens, decodes) <= round_ms:
            best = max(best, chunk_tokens / stage_ms(chunk_tokens, decodes))
    return best


def between(stage_ms: Stage, pp: int, round_ms: float, longest: int) -> Flow:
    """The same with all decodes in one step and k = 1 .. pp - 1 chunks alone after it.

    The step with decodes goes when the one before is back, and behind k chunks. It takes pp of its
    own stages, or where chunks before it are longer waits for them in each: the round lasts
    a + (pp - 1 + k) / 2 * b, a and b being a stage of either.
    """
    best = Flow()
    for steps in range(1, pp):
        chunk_tokens = longest // STEP_TOKENS * STEP_TOKENS
        for beside in range(0, longest - DECODES + 1, STEP_TOKENS):
            first_ms = stage_ms(beside, DECODES)
            if pp * first_ms > round_ms:
                break
            rounds = (pp - 1 + steps) / 2
            while chunk_tokens and first_ms + rounds * stage_ms(chunk_tokens, 0) > round_ms:
                chunk_tokens -= STEP_TOKENS
            if not chunk_tokens:
                break
            lasts_ms = max(first_ms + rounds * stage_ms(chunk_tokens, 0), pp * first_ms)
            per_ms = (beside + steps * chunk_tokens) / lasts_ms
            if per_ms > best.tokens_per_ms:
                best = Flow(per_ms, chunk_tokens)
    return best
