"""What a play takes as given: limits, rules and corrections as scalars, step costs as lookups."""

from typing import NamedTuple

import numpy as np

from beam_runtime.emulator.compiler import compiled, merged
from beam_runtime.emulator.state import Floats, Records, record_type, records
from beam_runtime.table.cost_fit import FEATURES
from beam_runtime.table.step_cost import FloatArray, StepCost, clock_index
from beam_runtime.types import SAME_MS, SIZES, Correction, EngineLimits, Knobs, Rules, size_of

SETUP = record_type(
    "pp most_microbatches block_size max_num_seqs max_batched_tokens max_model_len "
    "max_steps_in_flight "
    "long_prefill_token_threshold long_prefill_token_threshold_adaptive "
    "just_in_time ride_along give_way late_cuts_chunk pace together min_chunk_tokens",
    "host_gap_ms transfer_ms lead_ms prefill_scale decode_scale ttft_margin_ms tbt_margin_ms "
    "wide_margin_ms arrivals_per_s patience_slos decode_tokens_per_s prompt_tokens",
    "prefill_by_size decode_by_size",
    SIZES,
)
# One record per quantity (latency, energy) and clock, named as cost_fit.FEATURES.
ATTENTION = record_type("", " ".join(FEATURES))
MS, JOULE = range(2)
# What compose answers; GO, from between.py: decodes that are ready do not wait for the others.
HOLD, STEP, GO = range(3)

step_size = compiled(size_of)


class Tables(NamedTuple):
    """StepCost as lookups.

    Attributes:
        linear: (2, T, clocks) milliseconds and joules of a pass over so many tokens.
        attention: (2, clocks) of ATTENTION: what each unit of a feature adds.
        idle_w: (clocks,) a stage that waits.
    """

    linear: Floats
    attention: Records
    idle_w: Floats


class Batch(NamedTuple):
    """A filled step: its items stand in State.places.

    Attributes:
        items: requests in it, the admitted ones last.
        admitted: waiting requests that start running with it.
        preempted: running requests, the last ones, that lose their KV blocks.
        free_blocks: KV blocks that are left.
        chunk_tokens: tokens of prompts.
        chunk_context_tokens: tokens of those prompts already in the KV cache.
        pairs: (query, key) pairs that the chunks attend.
        decodes: requests that compute one token each.
        decode_context_tokens: of those decodes together.
        each_tokens: no prompt got more than this many tokens; 0: as many as there was room for.
    """

    items: int
    admitted: int
    preempted: int
    free_blocks: int
    chunk_tokens: int
    chunk_context_tokens: int
    pairs: float
    decodes: int
    decode_context_tokens: int
    each_tokens: int


class Setting(NamedTuple):
    """One candidate: Knobs, and how its clock comes about; clocks are indices of the table."""

    clock: int
    clock_before: int
    switch_ms: float
    chunk_tokens: int
    microbatches: int
    pace_ms: float


def make_tables(cost: StepCost, max_tokens: int) -> Tables:
    """Every token count up to ``max_tokens`` looked up in advance."""
    attention = np.stack([cost.attention_latency_ms, cost.attention_energy_j])
    by_feature = records(attention[..., 0].size, ATTENTION)
    for at, feature in enumerate(FEATURES):
        by_feature[feature] = attention[..., at].ravel()
    return Tables(
        linear=np.stack(
            [
                _dense(cost, cost.linear_latency_ms, max_tokens),
                _dense(cost, cost.linear_energy_j, max_tokens),
            ]
        ),
        attention=by_feature.reshape(attention.shape[:2]),
        idle_w=np.ascontiguousarray(cost.idle_power_w),
    )


def _dense(cost: StepCost, linear: FloatArray, max_tokens: int) -> FloatArray:
    edges = cost.edges_tokens
    tokens = np.arange(max_tokens + 1, dtype=float)
    right = np.clip(np.searchsorted(edges, tokens), 1, len(edges) - 1)
    weight = (tokens - edges[right - 1]) / (edges[right] - edges[right - 1])
    dense: FloatArray = (1 - weight) * linear[:, right - 1] + weight * linear[:, right]
    return np.ascontiguousarray(dense.T)


def make_setup(limits: EngineLimits, rules: Rules, correction: Correction) -> Records:
    """(1,) of SETUP."""
    setup = records(1, SETUP)
    setup[0] = (
        limits.pp,
        limits.pp if rules.microbatches else 1,
        limits.block_size,
        limits.max_num_seqs,
        limits.max_batched_tokens,
        limits.max_model_len,
        limits.max_steps_in_flight,
        limits.long_prefill_token_threshold,
        limits.long_prefill_token_threshold_adaptive,
        rules.just_in_time,
        rules.ride_along,
        rules.give_way,
        rules.late_cuts_chunk,
        rules.pace,
        rules.together and rules.ride_along and rules.late_cuts_chunk,
        rules.min_chunk_tokens,
        limits.host_gap_ms,
        limits.transfer_ms,
        rules.lead_ms,
        correction.prefill_scale,
        correction.decode_scale,
        correction.ttft_margin_ms,
        correction.tbt_margin_ms,
        correction.wide_margin_ms,
        correction.arrivals_per_s,
        correction.patience_slos,
        correction.decode_tokens_per_s,
        correction.prompt_tokens,
        by_size(correction.prefill_by_size),
        by_size(correction.decode_by_size),
    )
    return setup


def by_size(factors: tuple[float, ...]) -> Floats:
    """(SIZES,) of them."""
    all_sizes = np.ones(SIZES)
    all_sizes[: len(factors)] = factors
    return all_sizes


def lasting_setting(cost: StepCost, knobs: Knobs) -> Setting:
    """These knobs with their clock in effect already."""
    clock = clock_index(cost, knobs.clock_mhz)
    return Setting(
        clock, clock, -np.inf, int(knobs.chunk_tokens), int(knobs.microbatches),
        float(knobs.pace_ms),
    )  # fmt: skip


@merged
def step_cost(what: int, clock: int, batch: Batch, tables: Tables) -> float:
    """StepCost of one pass: latency (``what`` = MS) or energy (JOULE)."""
    tokens = min(batch.chunk_tokens + batch.decodes, tables.linear.shape[1] - 1)
    per = tables.attention[what, clock]
    value: float = tables.linear[what, tokens, clock] + per.prefill_pairs * batch.pairs
    value += per.prefill_context_tokens * batch.chunk_context_tokens
    value += per.decode_context_tokens * batch.decode_context_tokens
    value += per.decode_requests * batch.decodes
    if batch.chunk_tokens == 0:
        value += per.decode_only
    elif batch.decodes > 0:
        value += per.mixed
    return value


@merged
def pass_ms(clock: int, batch: Batch, setup: Records, tables: Tables) -> float:
    """One stage's pass, as calibrated."""
    value: float = scale_of(batch.chunk_tokens, batch.decodes, setup) * step_cost(
        MS, clock, batch, tables
    )
    return value


@merged
def early_share(start_ms: float, before_ms: float, setting: Setting) -> float:
    """How much of a pass is done at the clock before the one that is asked for.

    A pass is many kernels, and each takes the clock that it meets.
    """
    share: float = min(1.0, max(0.0, (setting.switch_ms - start_ms) / max(before_ms, SAME_MS)))
    return share


@merged
def scale_of(chunk_tokens: int, decodes: int, setup: Records) -> float:
    """Correction.scale."""
    size = step_size(chunk_tokens, decodes)
    scale: float = setup.decode_scale * setup.decode_by_size[size]
    if chunk_tokens > 0:
        scale = setup.prefill_scale * setup.prefill_by_size[size]
    return scale


@merged
def decode_batch(decodes: int, context_tokens: int) -> Batch:
    """A step of nothing but decodes."""
    return Batch(0, 0, 0, 0, 0, 0, 0.0, decodes, context_tokens, 0)
