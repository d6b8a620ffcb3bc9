"""What cannot be is refused where it is said first."""

import math

import pytest

from beam_runtime.types import EngineLimits, Slo, StepShape


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
