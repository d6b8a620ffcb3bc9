"""Invariants of the default grid; the fit's needs are in tests of StepCost."""

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from beamprof.profiler.grid import (
    GridLimits,
    attention_steps,
    grid,
    linear_tokens,
    mixed_steps,
    thin,
)

A100 = GridLimits(
    max_tokens=1024,
    max_decodes=256,
    max_context=8192,
    kv_tokens=1_000_000,
    tile_tokens=128,
    max_cells=60,
)

limits = st.builds(
    GridLimits,
    max_tokens=st.integers(8, 8192),
    max_decodes=st.integers(1, 1024),
    max_context=st.integers(16, 131072),
    kv_tokens=st.integers(131072, 4_000_000),
    tile_tokens=st.sampled_from([64, 128]),
    max_cells=st.integers(12, 80),
)


def test_the_linear_part_stands_on_both_feet_of_every_stair() -> None:
    counts = set(linear_tokens(A100))
    assert {1, 8, 16, 32, 64, 72} <= counts
    assert {128 * j for j in range(1, 9)} <= counts
    assert {128 * j + 8 for j in range(1, 8)} <= counts
    assert 192 not in counts
    assert {192, 200} <= set(linear_tokens(replace(A100, tile_tokens=64)))


def test_the_default_grid_has_at_most_sixty_cells_and_thins_nothing_on_an_a100() -> None:
    steps = grid(A100)
    assert len(steps) <= 60
    alone = {s.tokens for s in steps if not s.decode_requests and not s.prefill_context_tokens}
    assert alone == set(linear_tokens(A100))
    assert 13 <= len(attention_steps(A100)) <= 18
    assert 2 <= len(mixed_steps(A100)) <= 4


@given(limits)
def test_no_cell_goes_over_a_limit(limits: GridLimits) -> None:
    assume(limits.max_tokens < limits.max_context)
    for step in grid(limits):
        assert 1 <= step.tokens <= limits.max_tokens
        assert step.decode_requests <= limits.max_decodes
        assert step.prefill_tokens + step.prefill_context_tokens <= limits.max_context
        assert step.prefill_context_tokens + step.decode_context_tokens <= limits.kv_tokens
        if step.decode_requests:
            assert 1 <= step.decode_context_tokens / step.decode_requests <= limits.max_context


@given(limits)
def test_the_grid_keeps_its_size_and_its_ends(limits: GridLimits) -> None:
    assume(limits.max_tokens < limits.max_context)
    steps = grid(limits)
    assert len(steps) == len(set(steps))
    assert max(step.tokens for step in steps) == limits.max_tokens
    assert min(step.tokens for step in steps) == 1
    if limits.max_cells >= 32:
        assert len(steps) <= limits.max_cells


@given(limits)
def test_attention_cells_share_their_token_count_with_the_linear_part(limits: GridLimits) -> None:
    assume(limits.max_tokens < limits.max_context)
    held_out = set(mixed_steps(limits))
    steps = [step for step in grid(limits) if step not in held_out]
    plain = {s.tokens for s in steps if not s.decode_requests and not s.prefill_context_tokens}
    assert {step.tokens for step in steps} <= plain


@given(st.sets(st.integers(1, 10_000), min_size=3), st.integers(2, 20))
def test_thinning_keeps_the_ends_and_what_must_stay(counts: set[int], most: int) -> None:
    keep = {sorted(counts)[1]}
    left = thin(list(counts), most, keep=keep)
    assert set(left) <= counts
    assert {min(counts), max(counts)} | keep <= set(left)
    assert len(left) <= max(most, 3)


def test_thinning_drops_the_finest_ratio_first() -> None:
    assert thin([1, 2, 4, 1000, 1001, 1002], 5, keep=set()) == [1, 2, 4, 1000, 1002]


@pytest.mark.parametrize("budget", [256, 512, 2048])
def test_held_out_cells_lie_off_the_edges(budget: int) -> None:
    limits = replace(A100, max_tokens=budget)
    edges = set(linear_tokens(limits))
    assert all(step.tokens not in edges for step in mixed_steps(limits))
