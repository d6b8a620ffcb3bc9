"""What cannot be is refused where it is said first."""

import math
from itertools import pairwise

import pytest

from beam_runtime.types import SIZES, Correction, EngineLimits, Slo, StepShape, size_of


@pytest.mark.parametrize(
    "wrong",
    [
        {"pp": 0},
        {"block_size": 0},
        {"max_num_seqs": 0},
        {"max_batched_tokens": -1},
        {"max_model_len": 0},
        {"max_steps_in_flight": -1},
        {"host_gap_ms": -0.1},
        {"transfer_ms": math.nan},
        {"clock_delay_ms": -1.0},
    ],
)
def test_limits_that_no_engine_has(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name} must be"):
        EngineLimits(**({"pp": 4} | wrong))  # type: ignore[arg-type]


def test_as_many_steps_in_flight_as_stages_unless_told() -> None:
    assert EngineLimits(pp=3).max_steps_in_flight == 3
    assert EngineLimits(pp=3, max_steps_in_flight=4).max_steps_in_flight == 4


@pytest.mark.parametrize(
    ("ttft_ms", "tbt_ms"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0), (1, math.nan)]
)
def test_a_promise_is_a_time(ttft_ms: float, tbt_ms: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Slo(ttft_ms, tbt_ms)
    assert Slo(math.inf, 1.0).ttft_ms == math.inf


def test_a_step_of_less_than_nothing() -> None:
    with pytest.raises(ValueError, match="decode_requests must be 0 or more"):
        StepShape(decode_requests=-1)


@pytest.mark.parametrize(("prompts", "narrowest", "fine"), [(1, 16, 256), (0, 4, 64)])
def test_sizes_of_steps_are_a_tile_wide_and_an_eighth_of_a_doubling_beyond(
    prompts: int, narrowest: int, fine: int
) -> None:
    tokens = range(1, 20_000)
    sizes = [size_of(prompts * n, (1 - prompts) * n) for n in tokens]
    assert sizes[0] == 0
    assert max(sizes) == SIZES - 1
    assert all(later - before in (0, 1) for before, later in pairwise(sizes))
    edges = [
        n for n, before, later in zip(tokens, sizes, sizes[1:], strict=False) if later > before
    ]
    assert edges[:20] == [
        *range(narrowest, fine + 1, narrowest),
        *range(9 * fine // 8, 3 * fine // 2 + 1, fine // 8),
    ]


def test_a_factor_that_is_left_out_is_1() -> None:
    learnt = Correction(1.2, 0.9, prefill_by_size=(1.1,))
    assert learnt.scale(16, 0) == learnt.scale(10, 6) == pytest.approx(1.2 * 1.1)
    assert learnt.scale(17, 0) == 1.2
    assert learnt.scale(0, 300) == 0.9
