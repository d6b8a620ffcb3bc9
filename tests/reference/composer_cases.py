"""Small engines to compose a step for: four stages, decodes, prompts, and what passes take."""

from collections.abc import Callable

from plain_composer import Hold, Step, compose

from beam_runtime.types import (
    Correction,
    EngineLimits,
    Knobs,
    RequestState,
    Slo,
    Snapshot,
    StepShape,
)

LIMITS = EngineLimits(pp=4, block_size=16, max_num_seqs=8, max_batched_tokens=512)
MARGIN = Correction(tbt_margin_ms=10.0)


def decode(name: str, last_ms: float = 0.0, context: int = 100, tbt_ms: float = 200.0):
    return RequestState(
        name, context, -1000.0, Slo(tbt_ms=tbt_ms), computed_tokens=context,
        generated_tokens=1, last_token_ms=last_ms,
    )  # fmt: skip


def prompt(name: str, tokens: int, computed: int = 0, cached: int = 0):
    return RequestState(name, tokens, 0.0, computed_tokens=computed, cached_tokens=cached)


def state(*running: RequestState, waiting=(), limits=LIMITS, **given) -> Snapshot:
    return Snapshot(
        0.0, limits, Knobs(1410, 256), running, tuple(waiting), correction=MARGIN, **given
    )


def takes(ms_per_token: float, fixed_ms: float = 0.0) -> Callable[[StepShape, float], float]:
    """A pipeline that brings a step back after so long."""
    return lambda shape, issue_ms: issue_ms + fixed_ms + ms_per_token * shape.tokens


AT_256 = Knobs(1410, 256)
QUICK = takes(0.1)


def step(snapshot: Snapshot, knobs=AT_256, now_ms=0.0, finish_ms=QUICK, rules=None):
    found = compose(snapshot, knobs, now_ms, finish_ms, rules)
    assert isinstance(found, Step), found
    return found


def hold(snapshot: Snapshot, knobs=AT_256, now_ms=0.0, finish_ms=QUICK, rules=None):
    found = compose(snapshot, knobs, now_ms, finish_ms, rules)
    assert isinstance(found, Hold), found
    return found
