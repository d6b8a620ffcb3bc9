"""What an engine's own thread is told, of states in which shortcuts once went wrong."""

import numpy as np
import pytest

from beam_runtime.emulator.next_step import NextStep
from beam_runtime.emulator.promises import promise
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import Correction, EngineLimits, Knobs, Rules, Slo

LIMITS = EngineLimits(pp=2, block_size=16, max_num_seqs=4)


@pytest.fixture(scope="module")
def step(small_cost: StepCost) -> NextStep:
    return NextStep(small_cost, LIMITS)


def running(step: NextStep, *requests: dict[str, float]) -> None:
    for record, values in zip(step.state.requests, requests, strict=False):
        promise(record, Slo(1000.0, 200.0))
        for name, value in values.items():
            record[name] = value
        record["first_token_ms"] = np.nan


def test_a_prompt_that_has_to_preempt_itself_is_no_reason_to_hold(step: NextStep) -> None:
    # 39 tokens are left of it and one block is free: nothing fits, and vLLM preempts.
    running(
        step,
        {"total_tokens": 292, "computed_tokens": 292, "generated_tokens": 25, "last_token_ms": 0},
        {"total_tokens": 329, "computed_tokens": 290, "generated_tokens": 0, "last_token_ms": 0},
    )
    answer = step.ask(
        2, 0, 10.0, Knobs(1410, 256), Correction(), Rules(), (0.0, 0.0), 1, flying=[(40.0, [0])]
    )
    assert answer.until_ms is None
    assert answer.budget_tokens > 0
    assert answer.left_out == ()


def test_decodes_that_are_pressed_go_ahead_of_a_prompt_which_is_left_out(step: NextStep) -> None:
    running(
        step,
        {"total_tokens": 300, "computed_tokens": 299, "generated_tokens": 9, "last_token_ms": -195},
        {"total_tokens": 900, "computed_tokens": 100, "generated_tokens": 0, "last_token_ms": 0},
    )
    answer = step.ask(2, 0, 0.0, Knobs(1410, 512), Correction(), Rules(), (0.0, 0.0), 1 << 30)
    assert (answer.budget_tokens, answer.left_out) == (1, (1,))


def test_between_steps_with_decodes_a_prompt_is_left_a_token_and_those_with_just_one_are_hidden(
    step: NextStep,
) -> None:
    flying = {"total_tokens": 300, "computed_tokens": 300, "generated_tokens": 9}
    running(
        step,
        flying | {"last_token_ms": -20},
        {"total_tokens": 90, "computed_tokens": 89, "generated_tokens": 0, "last_token_ms": 0},
        {"total_tokens": 41, "computed_tokens": 0, "generated_tokens": 0, "last_token_ms": 0},
        {"total_tokens": 400, "computed_tokens": 0, "generated_tokens": 0, "last_token_ms": 0},
    )
    answer = step.ask(
        4, 0, 0.0, Knobs(1410, 64), Correction(), Rules(together=True), (0.0, 0.0), 1 << 30,
        flying=[(40.0, [0])],
    )  # fmt: skip
    assert answer.left_out == (1,)
    assert answer.each_tokens == 40
    assert answer.budget_tokens == 64
