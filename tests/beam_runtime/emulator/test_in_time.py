"""Whether a step's decodes are in time while the clock changes."""

import pytest

from beam_runtime.emulator.moment import Moment
from beam_runtime.emulator.moves import composed
from beam_runtime.emulator.setup import STEP, Setting, make_setup, make_tables
from beam_runtime.table.step_cost import StepCost
from beam_runtime.types import (
    Correction,
    EngineLimits,
    Knobs,
    RequestState,
    Rules,
    Slo,
    Snapshot,
    StepShape,
)

LIMITS = EngineLimits(pp=2, host_gap_ms=2.0)
LEARNT = Correction(tbt_margin_ms=5.0)
SLO = Slo(1000.0, 200.0)
PROMPT = 300


def chunk_tokens(cost: StepCost, *, goes_down_ms: float, left_ms: float) -> int:
    """Of a prompt, in a step now whose decode is due in ``left_ms`` while the clock goes down."""
    decode = RequestState(
        "d", 100, -5000.0, SLO, computed_tokens=108, generated_tokens=9,
        first_token_ms=-4000.0, last_token_ms=left_ms - SLO.token_ms,
    )  # fmt: skip
    prompt = RequestState("p", PROMPT, 0.0, SLO)
    state = Moment.of(Snapshot(0.0, LIMITS, Knobs(1410, 512), (decode,), (prompt,))).state
    setting = Setting(0, len(cost.clocks_mhz) - 1, goes_down_ms, 512, 1, 0.0)
    setup, tables = make_setup(LIMITS, Rules(), LEARNT), make_tables(cost, 512)
    answer, _, batch, _, _ = composed(state, setting, 0.0, setup, tables)
    assert answer == STEP
    assert batch.decodes == 1
    return int(batch.chunk_tokens)


@pytest.mark.parametrize(("after_ms", "whole"), [(0.5, False), (4.9, False), (5.1, True)])
def test_a_pass_that_may_start_after_the_clock_went_down_is_taken_to(
    small_cost: StepCost, after_ms: float, whole: bool
) -> None:
    """At the clock before, all of the prompt is in time; the second stage may miss that."""
    pass_ms = small_cost.latency_ms(StepShape(PROMPT, 0, 1, 108))
    second_ms = float(pass_ms[-1]) + LIMITS.host_gap_ms
    left_ms = 2 * second_ms + 1.2 * LEARNT.tbt_margin_ms + 1.0
    assert pass_ms[0] > pass_ms[-1] + 2.0, "the lower clock makes it late"
    found = chunk_tokens(small_cost, goes_down_ms=second_ms + after_ms, left_ms=left_ms)
    assert (found == PROMPT) == whole
