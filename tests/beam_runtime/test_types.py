"""What cannot be is refused where it is said first."""

import math
from itertools import pairwise
from typing import Any

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


@pytest.mark.parametrize("streaming", ["tbt_ms", "tpot_ms", "e2e_ms"])
def test_no_stream_is_paced_by_an_infinite_time(streaming: str) -> None:
    """One such request made every search of its engine fail."""
    with pytest.raises(ValueError, match="a long time"):
        Slo(1000.0, **{streaming: math.inf})


@pytest.mark.parametrize("odd", ["1s", True, [1]])
@pytest.mark.parametrize(
    "name",
    ["ttft_ms", "tbt_ms", "tbt_share", "answer_tokens", "least_tokens_per_s", "max_slowdown"],
)
def test_a_promise_is_made_of_numbers(name: str, odd: object) -> None:
    with pytest.raises(TypeError, match=f"{name} is a number"):
        Slo(**{name: odd})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "odd",
    [{"pp": 2.5}, {"pp": True}, {"pp": "4"}, {"max_num_seqs": math.inf}, {"block_size": 16.5},
     {"max_steps_in_flight": 2.5}, {"host_gap_ms": "5"}, {"host_gap_ms": None},
     {"long_prefill_token_threshold_adaptive": 7}],
)  # fmt: skip
def test_limits_are_whole_numbers_and_times(odd: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"{next(iter(odd))} must be"):
        EngineLimits(**{"pp": 4, **odd})


@pytest.mark.parametrize(
    "odd",
    [{"max_batched_tokens": 10**9}, {"max_num_seqs": 10**9}, {"max_model_len": 10**40},
     {"host_gap_ms": math.inf}, {"transfer_ms": math.inf}],
)  # fmt: skip
def test_limits_have_limits(odd: dict[str, Any]) -> None:
    """Costs are looked up for each size of a step: a billion took all memory."""
    with pytest.raises(ValueError, match="at most"):
        EngineLimits(**{"pp": 4, **odd})


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
